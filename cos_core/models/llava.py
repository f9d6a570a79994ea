"""Loading a LLaVA-1.5-layout checkpoint, once, for every stage that runs a model.

A checkpoint is a local directory, a hub id (`llava-hf/llava-1.5-7b-hf`) or the word `miniature`, in the ordinary `transformers`
layout. Only safetensors are read: a pickle from a stranger can run code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_core.dialogue.encoding import Encoded, encode
from cos_core.dialogue.prompts import Profile, checkpoint_profile
from cos_core.errors import InputError, MissingError
from cos_core.files.images import reduced, square_pad
from cos_core.files.text import one_line
from cos_core.geometry import SquarePad
from cos_core.models import hub, pretrained
from cos_core.models.layout.check import check
from cos_core.system.extras import install
from cos_core.system.memory import is_out_of_memory
from cos_core.types import Turn

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


@dataclass(slots=True)
class Llava:
    """A loaded model with what is needed to talk to it.

    `image_tokens`: positions that one picture takes in the sequence (576 for LLaVA-1.5); `fill`: the colour that pads a
    picture to a square (the processor's mean, as LLaVA pads).
    """

    model: Any
    tokenizer: Any
    image_processor: Any
    profile: Profile
    image_token_id: int
    image_tokens: int
    fill: tuple[int, int, int]
    name: str
    fingerprint: str
    unspoken: tuple[int, ...] = ()
    """Rows of the vocabulary that no answer can hold; see `unspoken_rows`."""

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def pixels(self, images: Sequence[Image]) -> torch.Tensor:
        """Pictures of any size as (n, 3, side, side) in the model's dtype, padded to squares, resized, normalised."""
        return processed(self.image_processor, images, self.fill).to(self.model.device, self.model.dtype)

    def encode(self, turns: Sequence[Turn]) -> Encoded:
        """Token ids, labels and image slots of a dialogue under this checkpoint's profile."""
        return encode(self.profile, turns, self.tokenizer, self.image_token_id, self.image_tokens, self.context)

    @property
    def context(self) -> int:
        """Positions of a sequence that the model was made for."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Projected features of pictures: (n, 3, side, side) -> (n, image_tokens, hidden), without gradients."""
        import torch

        with torch.no_grad():
            return torch.stack(list(self.model.get_image_features(pixel_values=pixel_values).pooler_output))

    def embed(self, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Token embeddings (batch, length, hidden) with the image positions replaced, in order, by `features` (..., hidden).

        Raises InputError when the number of image positions and of features differ.
        """
        embeddings = self.model.get_input_embeddings()(ids)
        places = ids == self.image_token_id
        features = features.reshape(-1, features.shape[-1]).to(embeddings.dtype)
        if int(places.sum()) != features.shape[0]:
            raise InputError(f"{int(places.sum())} image positions, but {features.shape[0]} image features")
        return embeddings.masked_scatter(places[..., None].expand_as(embeddings), features)


def load(
    model: str | Path,
    *,
    profile: str | Profile | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = None,
) -> Llava:
    """Loads a checkpoint for inference (eval mode), each weight straight to the device.

    `device`: "auto" takes a CUDA GPU when there is one; `dtype`: see `dtype_name`; `attention`: an
    attention implementation name known to `transformers`. Raises MissingError without torch or transformers, InputError for a
    checkpoint that cannot be read, is not LLaVA-1.5, or lacks weights.
    """
    where = hub.resolve(model)
    # Before anything large is imported: what is no LLaVA-1.5 is said at once.
    check(where)
    target, kind = placement(device, dtype)
    try:
        net = read_network(where, dtype=kind, device=None if target.type == "cpu" else target, attention=attention)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        name = str(kind).removeprefix("torch.")
        raise MissingError(
            f"the checkpoint {where} does not fit on {target} in {name}; take bfloat16, or serve it with --engine openai"
        ) from None
    return equipped(net, where, name=str(model), profile=profile)


def read_network(
    where: str,
    *,
    dtype: torch.dtype,
    device: torch.device | None = None,
    attention: str | None = None,
    quantization: Any = None,
) -> Any:
    """The network of a checkpoint folder, in eval mode, each weight read from its file to where it stays.

    `device`: a GPU, to which the weights go one by one; None: the CPU, or, where DeepSpeed's ZeRO-3 is set up, the parts that
    it cuts them into. Nothing is moved afterwards: no second copy exists at any time, and what ZeRO-3 placed stays there.
    `quantization`: a transformers quantization configuration, applied weight by weight. Raises InputError for a checkpoint that
    cannot be read, is not LLaVA or lacks weights; what says that memory ran out is let through (see memory.py).
    """
    import torch

    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    if device is not None:
        if find_spec("accelerate") is None:
            raise MissingError(f"loading to a GPU needs the package 'accelerate': {install('model')}")
        index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
        options["device_map"] = {"": torch.device(device.type, index)}
    if quantization is not None:
        options["quantization_config"] = quantization
    net, info = pretrained.network(where, **options)
    check_complete(where, info)
    return net


def equipped(net: Any, where: str, *, name: str, profile: str | Profile | None = None) -> Llava:
    """A network with its checkpoint folder's tokenizer, processor and profile. Raises InputError when they cannot be read."""
    tokenizer, processor = pretrained.tokenizer(where), pretrained.image_processor(where)
    rows = int(net.config.text_config.vocab_size)
    check_tokens(where, tokenizer, rows)
    fill = check_pictures(where, processor, int(net.config.vision_config.image_size))
    return Llava(
        model=net,
        tokenizer=tokenizer,
        image_processor=processor,
        profile=profile if isinstance(profile, Profile) else checkpoint_profile(where, profile),
        image_token_id=int(net.config.image_token_id),
        image_tokens=image_tokens_of(net.config),
        fill=fill,
        name=name,
        fingerprint=hub.fingerprint(where),
        unspoken=unspoken_rows(tokenizer, int(net.config.image_token_id), rows),
    )


@dataclass(frozen=True, slots=True)
class DialogueEncoder:
    """What turns dialogues into token ids, without the weights; `image_tokens`: positions of one picture."""

    tokenizer: Any
    image_token_id: int
    image_tokens: int

    def encode(self, profile: Profile, turns: Sequence[Turn]) -> Encoded:
        """Ids, labels and slots of a dialogue (encoding.py)."""
        return encode(profile, turns, self.tokenizer, self.image_token_id, self.image_tokens)


def encoder(folder: str) -> DialogueEncoder:
    """The encoder of a checkpoint's folder. Raises MissingError without transformers, InputError for what is no LLaVA."""
    check(folder, weights=False)
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingError(f"reading a tokenizer needs the extra 'model': {install('model')} ({error})") from None
    quiet_libraries()
    config, tokenizer = pretrained.configuration(folder), pretrained.tokenizer(folder)
    check_tokens(folder, tokenizer, int(config.text_config.vocab_size))
    return DialogueEncoder(tokenizer, int(config.image_token_id), image_tokens_of(config))


def quiet_libraries() -> None:
    """What libraries would like to have installed, and their bars, are not our users' affair; their errors are."""
    import logging

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Imported by peft wherever it is installed, it warns of a kernel that only 4-bit weights on a CPU would use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def placement(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Where and in which number format a model runs; see `load`. Makes transformers quiet.

    Raises MissingError without torch, transformers or the GPU asked for, InputError for names that are none.
    """
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingError(f"running a model needs the extra 'model': {install('model')} ({error})") from None
    quiet_libraries()
    target = _device(torch, device)
    kind = getattr(torch, _auto_type(torch, target) if dtype == "auto" else dtype, None)
    if not isinstance(kind, torch.dtype):
        raise InputError(f"unknown dtype {dtype!r}; use auto, float32, bfloat16 or float16")
    return target, kind


def check_tokens(where: str, tokenizer: Any, rows: int) -> None:
    """Raises InputError for a tokenizer that has tokens beyond the `rows` of the embedding."""
    with pretrained.reading(where):
        token, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if number >= rows:
        raise InputError(
            f"cannot load the checkpoint {where}: its tokenizer gives {one_line(token, 60)!r} the id {number}, and the "
            f"vocabulary has {rows} rows; is it the tokenizer of another model?"
        )


def unspoken_rows(tokenizer: Any, image_token_id: int, rows: int) -> tuple[int, ...]:
    """The rows of a vocabulary that stand for no text: the picture's mark, and what pads the vocabulary beyond the tokenizer.

    An original checkpoint has none of them. They are there in the layout of `transformers`, trained or copied from others, and
    an answer that holds one has no text: it is never generated, and takes no share of the probability in training.
    """
    spoken = set(tokenizer.get_vocab().values()) - {image_token_id}
    return tuple(row for row in range(rows) if row not in spoken)


def check_pictures(where: str, image_processor: Any, side: int) -> tuple[int, int, int]:
    """The colour that pads pictures. Raises InputError for a processor whose pictures are not `side` pixels wide and high."""
    from PIL import Image

    with pretrained.reading(where):
        fill = padding_colour(image_processor)
        made = square_side(image_processor)
        if made is None:
            shape = tuple(processed(image_processor, [Image.new("RGB", (3, 2))], fill).shape)
        else:
            shape = (1, 3, made, made)
    if shape != (1, 3, side, side):
        raise InputError(
            f"cannot load the checkpoint {where}: its image processor makes pictures of the shape {list(shape)}, and the "
            f"vision tower takes {[1, 3, side, side]}"
        )
    return fill


def check_complete(where: str, info: Mapping[str, Any]) -> None:
    """Raises InputError when `from_pretrained` left weights to chance; `info`: its loading info."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(f"the checkpoint {where} lacks {len(missing)} weights, first {missing[0]}")


def padding_colour(image_processor: Any) -> tuple[int, int, int]:
    """`int(255 * mean)` per channel: (122, 116, 104) with CLIP's mean (upstream §1.3)."""
    red, green, blue = (int(255 * m) for m in image_processor.image_mean)
    return red, green, blue


def processed(image_processor: Any, pictures: Sequence[Image], fill: tuple[int, int, int]) -> torch.Tensor:
    """What the processor makes of pictures padded to squares, (n, 3, side, side) in float32 on the CPU, bit for bit.

    Where it only resizes, rescales and normalises, that is done here, for a fraction of its time: a batch of bytes through one
    table a channel, instead of four passes over floats for each picture.
    """
    import numpy as np
    import torch

    side = square_side(image_processor)
    if side is None:
        squares = [square_pad(picture, fill) for picture in pictures]
        result: torch.Tensor = image_processor(squares, return_tensors="pt")["pixel_values"]
        return result
    # What the processor's arithmetic makes of each of the 256 values a byte can have, in its own order of rounding.
    rescaled = (np.arange(256) * image_processor.rescale_factor).astype(np.float32)
    tables = [
        (rescaled - np.float32(mean)) / np.float32(std)
        for mean, std in zip(image_processor.image_mean, image_processor.image_std, strict=True)
    ]
    out = np.empty((len(pictures), 3, side, side), np.float32)
    for place, picture in zip(out, pictures, strict=True):
        raster = np.asarray(square_resized(picture, side, image_processor.resample, fill))
        for channel, table in enumerate(tables):
            # A byte is never out of range; the mode that would find out fills a copy first.
            np.take(table, raster[..., channel], out=place[channel], mode="clip")
    return torch.from_numpy(out)


_BAND_PIXELS = 2**24
_WIDEST, _TALLEST = 2**16, 2**14
"""Longer sides, in pixels, up to which pictures are resized bit for bit as their padded squares; others are reduced first."""


def square_resized(picture: Image, side: int, resample: Any, fill: tuple[int, int, int]) -> Image:
    """The picture padded to a square and resized to `side`, bit for bit, but padded late or in bands where that is the same.

    Pillow resizes rows first, then columns: rows of padding stay what they are, so a wide picture gets them in between, when
    the canvas is a third as large; and rows do not know of each other, so a tall one's go in bands of bounded memory.
    """
    from PIL import Image

    wide = picture.width > picture.height
    picture = reduced(picture, float((_WIDEST if wide else _TALLEST) ** 2))
    pad = SquarePad(*picture.size)
    if not wide and pad.side**2 <= _BAND_PIXELS:
        return square_pad(picture, fill).resize((side, side), resample)
    canvas = Image.new("RGB", (side, pad.side), fill)
    if wide:
        canvas.paste(picture.resize((side, picture.height), resample), (0, pad.offset[1]))
    else:
        rows = max(1, _BAND_PIXELS // pad.side)
        for top in range(0, pad.side, rows):
            height = min(rows, pad.side - top)
            band = Image.new("RGB", (pad.side, height), fill)
            band.paste(picture.crop((0, top, picture.width, top + height)), (pad.offset[0], 0))
            canvas.paste(band.resize((side, height), resample), (0, top))
    return canvas.resize((side, side), resample)


def square_side(image_processor: Any) -> int | None:
    """The side that a square is resized to, when resizing, rescaling and normalising is all the processor does to a square.

    LLaVA's own processor, which pads to a square, does nothing more either.
    """
    steps = ("do_resize", "do_rescale", "do_normalize")
    pads = getattr(image_processor, "do_pad", False) and not type(image_processor).__name__.startswith("LlavaImageProcessor")
    if pads or not all(getattr(image_processor, step, False) for step in steps):
        return None
    sides = {int(v) for v in dict(image_processor.size).values() if v is not None}
    if getattr(image_processor, "do_center_crop", False):
        sides |= {int(v) for v in dict(image_processor.crop_size).values() if v is not None}
    return sides.pop() if len(sides) == 1 else None


def image_tokens_of(config: Any) -> int:
    """How many positions one picture takes under a LLaVA configuration: 576 for LLaVA-1.5."""
    vision = config.vision_config
    patches = (int(vision.image_size) // int(vision.patch_size)) ** 2
    return patches if config.vision_feature_select_strategy == "default" else patches + 1


def gpus() -> int:
    """CUDA GPUs that torch sees on this machine; 0 without torch."""
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count()


def devices(name: str) -> list[str]:
    """The devices that a run over many questions means: "auto" is every CUDA GPU, else the CPU; "cuda:0,cuda:1" those two.

    Raises MissingError without torch, or without the GPU that is named, and InputError for an unknown name.
    """
    if name == "cpu":
        return [name]
    torch = _torch()
    if name == "auto":
        return [f"cuda:{i}" for i in range(gpus())] or ["cpu"]
    return [str(_device(torch, part.strip())) for part in name.split(",")]


def dtype_name(device: str, dtype: str) -> str:
    """The number format that `load` would use: "auto" is float32 on a CPU, bfloat16 on a GPU or float16 without it."""
    if dtype != "auto":
        return dtype
    first = devices(device)[0]
    return _auto_type(_torch(), first) if first.startswith("cuda") else "float32"


def dtype_remark(device: str, dtype: str) -> str | None:
    """What a user should know of the number format on the GPU that a run begins with; None when there is nothing to say."""
    first = devices(device)[0]
    if not first.startswith("cuda") or _has_bfloat16(_torch(), first) or dtype not in ("auto", "bfloat16"):
        return None
    name = _torch().cuda.get_device_name(first)
    if dtype == "auto":
        return f"{name} has no units for bfloat16: the model runs in float16"
    return f"{name} has no units for bfloat16, which is emulated there, slowly; take float16"


def _auto_type(torch: Any, device: Any) -> str:
    """What "auto" means on a device (a torch.device or its name)."""
    if torch.device(device).type != "cuda":
        return "float32"
    return "bfloat16" if _has_bfloat16(torch, device) else "float16"


def _has_bfloat16(torch: Any, device: Any) -> bool:
    """NVIDIA's have it from compute capability 8.0 (Ampere) on: neither a V100 (7.0) nor a T4 (7.5) does. AMD's all have."""
    return torch.version.hip is not None or bool(torch.cuda.get_device_capability(device) >= (8, 0))


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingError(f"running a model needs the extra 'model': {install('model')} ({error})") from None
    return torch


def _device(torch: Any, name: str) -> Any:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        seen = f"{count} of them" if count else "no CUDA GPU"
        raise MissingError(f"device {name!r} was asked for, but torch sees {seen} on this machine")
    return device


def first_line(error: BaseException) -> str:
    """An exception of someone else's library as part of one sentence."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
