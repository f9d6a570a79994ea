"""Checkpoints of any family that cannot be used, through every command: one sentence, the code, no traceback, bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from strange_checkpoints import copied, put

from cos_cli import main
from cos_core.errors import InputError
from cos_core.models import checkpoint_info, general_check, general_probe, processor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Build = Callable[..., Path]
Change = Callable[[Path], object]


def changed(name: str, *at: str, value: Any) -> Change:
    """Sets a setting of a file; KeyError as the value takes it out."""

    def make(folder: Path) -> None:
        data = json.loads((folder / name).read_bytes())
        place = data
        for key in at[:-1]:
            place = place[key]
        if value is KeyError:
            del place[at[-1]]
        else:
            place[at[-1]] = value
        put(folder / name, data)

    return make


def config(*at: str, value: Any) -> Change:
    return changed("config.json", *at, value=value)


def without(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def all_of(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def only_weights(part: str) -> Change:
    """Leaves the weights whose names hold `part`, in the same file."""

    def make(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        held = {name: tensor for name, tensor in load_file(folder / WEIGHTS).items() if part in name}
        assert held
        (folder / WEIGHTS).unlink()
        save_file(held, folder / WEIGHTS, metadata={"format": "pt"})

    return make


def renamed_weight(old: str, new: str) -> Change:
    def make(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        held = load_file(folder / WEIGHTS)
        name = next(name for name in held if old in name)
        held[name.replace(old, new)] = held.pop(name)
        (folder / WEIGHTS).unlink()
        save_file(held, folder / WEIGHTS, metadata={"format": "pt"})

    return make


def cast(dtype: str) -> Change:
    def make(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        held = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(folder / WEIGHTS).items()}
        (folder / WEIGHTS).unlink()
        save_file(held, folder / WEIGHTS, metadata={"format": "pt"})

    return make


def own_config(**fields: Any) -> Change:
    return lambda folder: put(folder / "config.json", fields)


REMOTE = {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.XModel"}
LANGUAGE = {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 152064, "intermediate_size": 11008}
# (what is wrong, of which family, how it is made, what the sentence names beside the folder)
CASES: list[tuple[str, str, Change, str]] = [
    ("a text-only folder", "qwen2_5_vl", own_config(model_type="qwen2", **LANGUAGE), "qwen2"),
    ("a text-only type that few know", "qwen2_5_vl", own_config(model_type="olmo2", **LANGUAGE), "olmo2"),
    ("its language model alone", "qwen2_5_vl", only_weights("layers"), "larger model"),
    ("language weights under the family's defaults", "qwen2_5_vl", all_of(own_config(model_type="qwen2_5_vl", vision_config={}), only_weights("layers")), "larger model"),
    ("a tower alone", "qwen2_5_vl", own_config(model_type="siglip_vision_model"), "siglip_vision_model"),
    ("the tower's weights alone", "internvl", only_weights("vision_tower"), "larger model"),
    ("LXMERT", "qwen2_5_vl", own_config(model_type="lxmert"), "--backbone lxmert"),
    ("code in the checkpoint", "qwen2_5_vl", own_config(model_type="internvl_chat", auto_map=REMOTE, vision_config={}), "auto_map"),
    ("code in the checkpoint, of a type nobody knows", "llava_next", config("model_type", value="my_model"), "my_model"),
    ("a type of another task", "qwen2_5_vl", config("model_type", value="phi4_multimodal"), "phi4_multimodal"),
    ("a type that is a number", "qwen2_5_vl", config("model_type", value=7), "model_type"),
    ("another width", "qwen2_5_vl", config("text_config", "hidden_size", value=128), "shape"),
    ("another vocabulary", "llava_next", config("text_config", "vocab_size", value=999), "shape"),
    ("a width of 10^9", "gemma3", config("text_config", "hidden_size", value=10**9), "larger model"),
    ("a vocabulary of 10^9", "idefics3", config("text_config", "vocab_size", value=10**9), "larger model"),
    ("10^9 layers", "qwen3_vl", config("text_config", "num_hidden_layers", value=10**9), "num_hidden_layers"),
    ("a tower 10^9 deep", "qwen2_vl", config("vision_config", "depth", value=10**9), "depth"),
    ("9,000 layers", "mistral3", config("text_config", "num_hidden_layers", value=9000), "larger model"),
    ("a layer too many", "internvl", config("text_config", "num_hidden_layers", value=3), "layer"),
    ("a layer too few", "internvl", config("text_config", "num_hidden_layers", value=1), "layers"),
    ("a tower of another size", "pixtral", config("vision_config", "hidden_size", value=64), "shape"),
    ("an image mark beyond the words", "idefics3", config("image_token_id", value=10**9), "image_token_id"),
    ("a number beyond all", "smolvlm", config("text_config", "max_position_embeddings", value=10**30), "max_position_embeddings"),
    ("nested too deeply", "qwen2_vl", lambda f: put(f / "config.json", {"model_type": "qwen2_vl", "x": json.loads("[" * 90 + "]" * 90)}), "nested"),
    ("quantized by gptq", "qwen2_5_vl", config("quantization_config", value={"quant_method": "gptq", "bits": 4}), "gptq"),
    ("quantized in a section", "internvl", config("text_config", "quantization_config", value={"quant_method": "awq"}), "awq"),
    ("weights of eight bits", "qwen2_5_vl", cast("float8_e4m3fn"), "F8_E4M3"),
    ("weights of another file", "qwen2_vl", config("transformers_weights", value="../other.safetensors"), "transformers_weights"),
    ("kernels of a stranger", "qwen2_vl", config("text_config", "_attn_implementation", value="owner/kernel"), "_attn_implementation"),
    ("pickles alone", "qwen2_vl", lambda f: ((f / WEIGHTS).unlink(), put(f / "pytorch_model.bin", b"x")), "pickles"),
    ("an adapter alone", "qwen2_vl", lambda f: ((f / WEIGHTS).unlink(), put(f / "adapter_config.json", {"base_model_name_or_path": "me/base"})), "me/base"),
    ("an adapter beside", "qwen2_vl", lambda f: put(f / "adapter_config.json", {}), "adapter"),
    ("an index beyond the folder", "qwen2_vl", lambda f: ((f / WEIGHTS).rename(f.parent / "w"), put(f / INDEX, {"weight_map": {"a": "../w"}})), "own folder"),
    ("weights a link out of the folder", "qwen2_vl", lambda f: ((f / WEIGHTS).rename(f.parent / "w"), (f / WEIGHTS).symlink_to(f.parent / "w")), "link out of"),
    ("a template that is a pipe", "qwen2_vl", lambda f: ((f / "chat_template.jinja").unlink(), os.mkfifo(f / "chat_template.jinja")), "not a file"),
    ("weights cut off", "idefics3", lambda f: put(f / WEIGHTS, (f / WEIGHTS).read_bytes()[:-1]), "cut off"),
    ("no weights", "idefics3", without(WEIGHTS), "no weights"),
    ("a weight without its name", "gemma3", renamed_weight("o_proj", "x_proj"), ""),
    ("no processor", "qwen2_5_vl", without("processor_config.json", "tokenizer_config.json", "tokenizer.json"), "processor"),
    ("no image processor", "llava_next", without("processor_config.json"), "pictures"),
    ("a processor of tomorrow", "qwen2_5_vl", changed("processor_config.json", "processor_class", value="TomorrowProcessor"), "TomorrowProcessor"),
    ("torchvision only", "qwen2_5_vl", changed("processor_config.json", "image_processor", "image_processor_type", value="Llama4ImageProcessorFast"), "torchvision"),
    ("pictures of 10^9 pixels a side", "gemma3", changed("processor_config.json", "image_processor", "size", value={"height": 10**9, "width": 10**9}), "size"),
    ("a floor of 10^12 pixels", "qwen2_5_vl", changed("processor_config.json", "image_processor", "size", value={"shortest_edge": 10**12, "longest_edge": 10**13}), "size"),
    ("10^9 tiles", "internvl", changed("processor_config.json", "image_processor", "max_patches", value=10**9), "max_patches"),
    ("no chat template", "qwen2_5_vl", without("chat_template.jinja"), "chat template"),
    ("a chat template that is broken", "qwen2_5_vl", lambda f: put(f / "chat_template.jinja", b"{% for %}"), ""),
    ("a chat template without pictures", "qwen2_5_vl", lambda f: put(f / "chat_template.jinja", b"{% for m in messages %}{{ m.role }}{% endfor %}"), "picture"),
    ("Fuyu", "fuyu", lambda f: None, "Fuyu"),
]  # fmt: skip
COMMANDS = ("infer", "eval", "model info", "annotate", "train")
THROUGH_ALL = ("a text-only folder", "a width of 10^9", "code in the checkpoint", "quantized by gptq", "no chat template")
"""Those that every command is given; the others go through `model info` and `infer`, which look at the same."""
ROWS = [(command, *case) for case in CASES for command in (COMMANDS if case[0] in THROUGH_ALL else COMMANDS[:3:2])]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture, a question about it, its region, and a benchmark of it."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    Image.new("RGB", (40, 30), "red").save(root / "images" / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": "red"}]
    put(root / "questions.json", [{"id": "1", "image": "a.png", "conversations": turns}])
    question = {
        "imageId": "a",
        "question": "what colour?",
        "answer": "red",
        "isBalanced": True,
        "types": {"structural": "query", "semantic": "attr", "detailed": "x"},
    }
    put(root / "testdev_balanced_questions.json", {"1": question})
    return root


def arguments(command: str, folder: Path, data: Path, out: Path) -> list[str]:
    images, questions = data / "images", data / "questions.json"
    given: dict[str, list[Any]] = {
        "infer": ["infer", "--model", folder, "--image", images / "a.png", "--question", "what?"],
        "eval": ["eval", "gqa", "--model", folder, "--data", data, "--out", out],
        "model info": ["model", "info", folder],
        "annotate": ["annotate", "--model", folder, "--data", questions, "--images", images, "--out", out],
        "train": ["train", "--model", folder, "--data", questions, "--images", images, "--out", out, "--annotator", "patches"],
    }
    return [str(word) for word in given[command]]


@pytest.mark.parametrize(
    ("command", "name", "make", "fact"),
    [pytest.param(command, name, make, fact, id=f"{what}-{command}") for command, what, name, make, fact in ROWS],
)
def test_one_sentence(
    command: str,
    name: str,
    make: Change,
    fact: str,
    tiny_checkpoint: Build,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = copied(tiny_checkpoint(name), tmp_path / "model")
    make(folder)
    assert main.run(arguments(command, folder, data, tmp_path / "out")) == 3
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cos: ")]
    assert len(said) == 1
    assert str(folder) in said[0]
    assert "Traceback" not in said[0]
    if command not in ("annotate", "train"):
        assert fact in said[0]


GROWS = """
import json, resource, sys
from pathlib import Path
from cos_cli import main
import torch, transformers
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
codes = [main.run(words) for words in json.loads(sys.argv[1])]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([codes, peak]))
"""


def test_a_small_folder_takes_little_memory(tiny_checkpoint: Build, data: Path, tmp_path: Path) -> None:
    """A text-only folder, and configurations whose models would take 24 GB and more, in a process that may take 1 GiB more."""
    changes = (
        own_config(model_type="qwen2", **LANGUAGE),
        own_config(model_type="qwen2_5_vl", vision_config={}),  # 7B by the defaults of the library
        config("text_config", "num_hidden_layers", value=9000),
        config("text_config", "vocab_size", value=2 * 10**9),
        config("vision_config", "depth", value=10**9),
        changed("processor_config.json", "image_processor", "size", value={"shortest_edge": 10**10, "longest_edge": 10**11}),
    )
    asked = []
    for number, change in enumerate(changes):
        folder = copied(tiny_checkpoint("qwen2_5_vl"), tmp_path / str(number))
        change(folder)
        asked.append(arguments("infer", folder, data, tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", GROWS, json.dumps(asked)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    codes, peak = json.loads(done.stdout)
    assert codes == [3] * len(changes), done.stderr
    assert "Traceback" not in done.stderr
    assert peak < 2 * 2**30


@pytest.mark.parametrize("name", ["qwen2_5_vl", "paligemma", "idefics3", "llava_next"])
@pytest.mark.parametrize("layout", ["saved", "published"])
def test_sound_checkpoints_pass(name: str, layout: str, tiny_checkpoint: Build) -> None:
    folder = tiny_checkpoint(name, layout=layout, shape="other")
    facts = general_check.facts(folder)
    assert (facts.layers, facts.hidden) == (3, 96)
    general_probe.check_dialogue(folder, pictures=2)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (["--max-tiles", "4"], "--max-tiles"),
        (["--longest-edge", "500"], "--longest-edge"),
        (["--min-pixels", "900", "--max-pixels", "800"], "900"),
        (["--box-decode", "grammar"], "grammar"),
    ],
)
def test_options_that_a_family_does_not_have(
    options: list[str], fact: str, tiny_checkpoint: Build, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_checkpoint("qwen2_vl")
    assert main.run([*arguments("infer", folder, data, tmp_path), *options]) == 3
    said = capsys.readouterr().err
    assert "loading" not in said  # before a model is loaded
    assert fact in said.splitlines()[-1]


def test_conversion_and_templates_are_llavas(
    tiny_checkpoint: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_checkpoint("qwen2_vl")
    assert main.run(["model", "convert", str(folder), "--out", str(tmp_path / "out")]) == 3
    said = capsys.readouterr().err
    assert str(folder) in said
    assert "qwen2_vl" in said
    assert main.run(["model", "template", "--profile", "chat"]) == 3
    assert "chat" in capsys.readouterr().err


def test_sizes_that_no_weight_shows(
    tiny_checkpoint: Build, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The heads of a tower: its weights are as large with another number of them, and its classes fail when it runs."""
    folder = copied(tiny_checkpoint("qwen2_5_vl"), tmp_path / "model")
    config("vision_config", "num_heads", value=16)(folder)
    assert main.run(arguments("infer", folder, data, tmp_path)) == 3
    said = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in said)
    assert str(folder) in said[-1]


def test_one_picture_in_a_dialogue(tiny_checkpoint: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that refuses a second picture, and a processor that drops it."""
    folder = copied(tiny_checkpoint("gemma3"), tmp_path / "refuses")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    put(
        folder / "chat_template.jinja",
        ("{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}" + template).encode(),
    )
    general_probe.check_dialogue(folder)
    with pytest.raises(InputError, match="--roi none"):
        general_probe.check_dialogue(folder, pictures=2)
    real = general_probe.tokens
    monkeypatch.setattr(general_probe, "tokens", lambda processor, _pictures, *size: real(processor, 1, *size))
    folder = copied(tiny_checkpoint("gemma3"), tmp_path / "drops")
    with pytest.raises(InputError, match="--roi none"):
        general_probe.check_dialogue(folder, pictures=2)


def test_llava_onevision_shows_two_in_fewer_tokens(tiny_checkpoint: Build) -> None:
    loaded = processor.processor(tiny_checkpoint("llava_onevision"))
    one, two, three = (general_probe.tokens(loaded, count) for count in (1, 2, 3))
    assert two < one
    assert two < three
    assert general_probe.dialogues(tiny_checkpoint("llava_onevision")).one_picture == ""


def test_what_works_is_told_without_weights(tiny_checkpoint: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safetensors.safe_open", lambda *_: pytest.fail("weights were read"))
    found, refused = checkpoint_info.describe(str(tiny_checkpoint("qwen2_5_vl")))
    assert refused is None
    assert {part: word is True for part, word in found["works"].items()} == {
        "answer": True, "two_passes": True, "reuse": True, "annotate": True, "train": True,
    }  # fmt: skip
    assert found["boxes"]["unit"] == "pixel of the resized picture"
    assert json.loads(found["boxes"]["example"])["bbox_2d"][0] > 0
    assert set(found["budget"]) == {"--min-pixels", "--max-pixels"}
    assert list(found["tokens"]) == ["336 x 336", "1280 x 720", "3000 x 2000"]
    assert len(found["template"]["sha256"]) == 64
    found, refused = checkpoint_info.describe(str(tiny_checkpoint("blip_2")))
    assert refused is None
    assert found["works"]["answer"] is True
    assert found["works"]["two_passes"] is not True
    assert found["works"]["annotate"] is not True
    found, refused = checkpoint_info.describe("miniature")
    assert refused is None
    assert set(found["works"].values()) == {True}


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl"])
def test_the_picture_of_a_checkpoint_fits_80_columns(
    name: str, tiny_checkpoint: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_checkpoint(name)
    assert main.run(["model", "info", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if str(folder) not in line) <= 80
