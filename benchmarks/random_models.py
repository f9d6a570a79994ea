"""Checkpoints of random weights in the shapes that `two_pass.py` and `gpu.py` measure, and what they cost to run.

A shape counts floating-point operations: the least that a prompt, a generated text and a picture take. Normalisation,
activation functions, position embeddings (M-RoPE too) and moving data count nothing; a tower counts whole, as its library runs
it. tests/test_benchmark_two_pass.py holds the counts against PyTorch's own. Every tokenizer is Llama's, which splits digits;
every model writes BOX_TEXT.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers

from cos_core.models.processor import NoVideo, pictures_only

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "tests" / "golden" / "original" / "tokenizers" / "legacy_true"
BOX_TEXT = "[0.251, 0.251, 0.251, 0.251,"


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides how many floating-point operations a model takes; this class: LLaVA-1.5's.

    `side`: of a picture in pixels; `head_width`: of a head of the decoder.
    """

    width: int
    layers: int
    inner: int
    vocabulary: int
    vision_width: int
    vision_layers: int
    vision_inner: int
    side: int = 336
    head_width: int = 128

    quick_side: ClassVar[int] = 84
    """Of the pictures in tests."""
    marks: ClassVar[tuple[str, ...]] = ("<image>",)
    """What the tokenizer gets beside its words."""

    @classmethod
    def small(cls, width: int, layers: int) -> Shape:
        """A model of few layers."""
        return cls(width, layers, width * 11008 // 4096, 32000, 128, 4, 512)

    @property
    def key_width(self) -> int:
        """All key heads of a layer together."""
        return self.width

    @property
    def image_tokens(self) -> int:
        """Positions of a picture."""
        return (self.side // 14) ** 2

    @property
    def picture_size(self) -> tuple[int, int]:
        """(width, height) in pixels of the pictures that are asked about, the size in which the model sees them."""
        return self.side, self.side

    def run(self, start: int, end: int) -> float:
        """Positions [start, end), each looking back at all before it."""
        token = 2 * self.layers * (2 * self.width * (self.width + self.key_width) + 3 * self.width * self.inner)
        return (end - start) * token + 4 * self.width * self.layers * (end * (end + 1) - start * (start + 1)) / 2

    def generate(self, end: int, tokens: int) -> float:
        """`tokens` new ones behind `end` positions; the last is not run again."""
        return self.run(end, end + tokens - 1) + tokens * 2 * self.width * self.vocabulary

    def picture(self) -> float:
        """A picture through the tower and the projector."""
        wide, patches = self.vision_width, (self.side // 14) ** 2
        seen = patches + 1
        tower = 2 * seen * self.vision_layers * (4 * wide**2 + 2 * wide * self.vision_inner + 2 * seen * wide)
        return tower + 2 * patches * (wide * 3 * 14**2 + self.width * (wide + self.width))

    def parts(self, tokenizer: Any) -> tuple[Any, Any]:
        """(configuration, the processor, or the image processor where there is no more)."""
        config = transformers.LlavaConfig(
            vision_config=self._tower(),
            text_config=transformers.LlamaConfig(**self._text(tokenizer)),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=self.image_tokens,
            vision_feature_layer=-2,
        )
        return config, transformers.CLIPImageProcessorPil(**self._square())

    def _text(self, tokenizer: Any) -> dict[str, Any]:
        return {
            "vocab_size": len(tokenizer),
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.width // self.head_width,
            "num_key_value_heads": self.key_width // self.head_width,
            "max_position_embeddings": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }

    def _tower(self) -> Any:
        return transformers.CLIPVisionConfig(
            hidden_size=self.vision_width,
            intermediate_size=self.vision_inner,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_width // 32 if self.vision_width < 1024 else 16,
            image_size=self.side,
            patch_size=14,
        )

    def _square(self) -> dict[str, Any]:
        return {"size": {"shortest_edge": self.side}, "crop_size": {"height": self.side, "width": self.side}}


@dataclass(frozen=True, slots=True)
class TiledShape(Shape):
    """LLaVA-NeXT's, for pictures of 4:3: the whole picture, and two tiles of `side`, whose padding gets no position."""

    @classmethod
    def small(cls, width: int, layers: int) -> Shape:
        return cls(width, layers, width * 11008 // 4096, 32000, width // 4, 2, width)

    @property
    def image_tokens(self) -> int:
        rows, columns = self.side // 14, self.side // 14 * 4 // 3
        return rows**2 + rows * (columns + 1)

    @property
    def picture_size(self) -> tuple[int, int]:
        return self.side * 4 // 3, self.side

    def picture(self) -> float:
        return 3 * Shape.picture(self)

    def parts(self, tokenizer: Any) -> tuple[Any, Any]:
        canvases = [[high * self.side, wide * self.side] for high, wide in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
        config = transformers.LlavaNextConfig(
            vision_config=self._tower(),
            text_config=transformers.LlamaConfig(**self._text(tokenizer)),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_grid_pinpoints=canvases,
            image_seq_length=(self.side // 14) ** 2,
            vision_feature_layer=-2,
        )
        template = (
            "{% for m in messages %}{{ m['role'].upper() }}: {% for c in m['content'] %}"
            "{{ '<image>\n' if c['type'] == 'image' else c['text'] + ' ' }}{% endfor %}{% endfor %}"
            "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
        )
        pixels = transformers.LlavaNextImageProcessorPil(**self._square(), image_grid_pinpoints=canvases)
        options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        return config, transformers.LlavaNextProcessor(pixels, tokenizer, chat_template=template, **options)


@dataclass(frozen=True, slots=True)
class WindowShape(Shape):
    """Qwen2.5-VL's: four patches of 14 pixels a position, windows of 8x8 patches save in every eighth layer and the last."""

    side: int = 672
    quick_side: ClassVar[int] = 112
    marks: ClassVar[tuple[str, ...]] = (
        *("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    )

    @classmethod
    def small(cls, width: int, layers: int) -> Shape:
        """All widths by the same factor, in whole heads: of 128, in the tower of 80."""
        vision = max(1, round(width * 1280 / 3584 / 80)) * 80
        return cls(width, layers, width * 18944 // 3584, 152064, vision, 2, vision * 3420 // 1280)

    @property
    def key_width(self) -> int:
        return max(1, round(self.width / self.head_width / 7)) * self.head_width

    @property
    def image_tokens(self) -> int:
        return (self.side // 28) ** 2

    @property
    def _whole_layers(self) -> list[int]:
        """Layers of the tower in which every patch looks at all."""
        return [i for i in range(self.vision_layers) if i % 8 == 7 or i == self.vision_layers - 1]

    def picture(self) -> float:
        wide, patches, whole = self.vision_width, 4 * self.image_tokens, len(self._whole_layers)
        token = self.vision_layers * (4 * wide**2 + 3 * wide * self.vision_inner)
        looks = 2 * wide * (64 * (self.vision_layers - whole) + patches * whole)
        merger = 4 * wide * (4 * wide + self.width)
        return 2 * patches * (wide * 3 * 2 * 14**2 + token + looks) + 2 * self.image_tokens * merger

    def parts(self, tokenizer: Any) -> tuple[Any, Any]:
        names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
        names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
        rope = {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [part * self.head_width // 128 for part in (16, 24, 24)],
        }
        vision = {
            "depth": self.vision_layers,
            "hidden_size": self.vision_width,
            "intermediate_size": self.vision_inner,
            "num_heads": self.vision_width // 80,
            "out_hidden_size": self.width,
            "fullatt_block_indexes": self._whole_layers,
        }
        config = transformers.Qwen2_5_VLConfig(
            text_config={**self._text(tokenizer), "rope_parameters": rope},
            vision_config=vision,
            **{name: tokenizer.convert_tokens_to_ids(mark) for name, mark in names.items()},
        )
        template = (
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
            "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
        pixels = transformers.Qwen2VLImageProcessorPil(patch_size=14, merge_size=2)
        return config, pictures_only(transformers.Qwen2_5_VLProcessor)(pixels, tokenizer, NoVideo(), chat_template=template)


SHAPE_7B = Shape(4096, 32, 11008, 32000, 1024, 24, 4096)
FAMILIES: dict[str, Shape] = {
    "llava": SHAPE_7B,
    "llava_next": TiledShape(4096, 32, 11008, 32000, 1024, 24, 4096),
    "qwen2_5_vl": WindowShape(3584, 28, 18944, 152064, 1280, 32, 3420),
}
"""The shape of each family's model of seven billion weights."""


def make_model(directory: Path, shape: Shape, dtype: torch.dtype, device: str = "cpu", *, box_text: bool = True) -> None:
    """Writes a checkpoint; its random weights are drawn on `device`. `box_text`: whether it always writes BOX_TEXT."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_special_tokens({"additional_special_tokens": list(shape.marks)})
    tokenizer.pad_token = tokenizer.unk_token
    config, processor = shape.parts(tokenizer)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    torch.set_default_dtype(torch.float32)
    if box_text:
        write_box_text(model, _beginning(processor, tokenizer))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    processor.save_pretrained(directory)


def _beginning(processor: Any, tokenizer: Any) -> list[int]:
    """Ids of BOX_TEXT as an answer, and of the token in front of it."""
    if not hasattr(processor, "apply_chat_template"):
        ids = tokenizer(f"ASSISTANT: {BOX_TEXT}", add_special_tokens=False)["input_ids"]
        return list(ids[ids.index(tokenizer.convert_tokens_to_ids(":")) :])
    asked = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": BOX_TEXT}]}]
    before = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    text = processor.apply_chat_template(answered, tokenize=False)
    start = len(tokenizer(before)["input_ids"]) - 1
    return list(tokenizer(text[: text.index(BOX_TEXT) + len(BOX_TEXT)])["input_ids"][start:])


def write_box_text(model: Any, ids: list[int]) -> None:
    """Lets the model write `ids` behind the first: each is so loud an input that the next is the likeliest, layers or not."""
    with torch.no_grad():
        for token, successor in dict(itertools.pairwise(ids)).items():
            direction = torch.nn.functional.normalize(
                torch.randn(model.config.text_config.hidden_size, device=model.device), dim=0
            )
            model.get_input_embeddings().weight[token] = 4000 * direction
            model.get_output_embeddings().weight[successor] += direction
