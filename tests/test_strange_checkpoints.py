"""Checkpoints from strangers: whatever their files say, a sentence or an answer, before memory or time is spent on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from strange_checkpoints import copied, put

from cos_core.errors import CosError, InputError, MissingError
from cos_core.files import assets
from cos_core.models import checkpoint_info, hub
from cos_core.models.checkpoint_files import header
from cos_core.models.layout.check import check

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
KNOWN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def changed(folder: Path, name: str, *at: str | int, value: Any) -> None:
    data = json.loads((folder / name).read_bytes())
    place = data
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value
    put(folder / name, data)


def config(*at: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder, "config.json", *at, value=value)


def of_family(kind: str, **more: Any) -> Callable[[Path], None]:
    return lambda folder: put(folder / "config.json", {"model_type": kind, **more})


def table(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    """Weights under another table; their bytes stay."""

    def make(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(data[:8], "little")
        made = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
        put(folder / WEIGHTS, len(made).to_bytes(8, "little") + made + data[8 + length :])

    return make


def indexed(weight_map: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
        put(folder / INDEX, {"weight_map": weight_map})

    return make


def linked(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return make


def piped(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def pattern(text: str) -> Callable[[Path], None]:
    split = {"type": "Split", "pattern": {"Regex": text}, "behavior": "Isolated", "invert": False}
    return lambda folder: changed(folder, "tokenizer.json", "pre_tokenizer", value=split)


TEXT, VISION = "text_config", "vision_config"
CASES: list[tuple[str, Callable[[Path], object], str]] = [
    *((f"{TEXT}.{name} {value!r}", config(TEXT, name, value=value), name)
      for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
      for value in (0, -1, "many", 2.5, None, 10**12, [])),
    *((f"{VISION}.{name} {value!r}", config(VISION, name, value=value), name)
      for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
      for value in (0, -1, "many", True, [40, 40])),
    ("10^9 wide", config(TEXT, "hidden_size", value=10**9), "has shape [365, 128], and config.json asks for [365, 1000000000]"),
    ("10^9 words", config(TEXT, "vocab_size", value=10**9), "has shape [365, 128]"),
    ("10^7 layers", config(TEXT, "num_hidden_layers", value=10**7), "which no model has"),
    ("one layer too many", config(TEXT, "num_hidden_layers", value=6), "lacks 9 weights, first language_model.model.layers.5."),
    ("one layer too few", config(TEXT, "num_hidden_layers", value=4), "config.json speaks of 4 layers"),
    ("pictures of 10^6 pixels", config(VISION, "image_size", value=10**6), "position_embedding"),
    ("an image mark beyond the words", config("image_token_index", value=10**9), "image_token_id"),
    ("no image mark", config("image_token_index", value=None), "image_token_id"),
    ("feature layer 99", config("vision_feature_layer", value=99), "vision_feature_layer"),
    ("feature layers of another projector", config("vision_feature_layer", value=[-2, -1]), "multi_modal_projector.linear_1"),
    ("strategy x", config("vision_feature_select_strategy", value="x"), "vision_feature_select_strategy"),
    ("an activation that is a list", config(TEXT, "hidden_act", value=[]), "hidden_act"),
    ("a type of evil", config("dtype", value="evil"), "dtype"),
    ("quantized by gptq", config("quantization_config", value={"quant_method": "gptq", "bits": 4}), "quantized (gptq)"),
    ("kernels of a stranger", config("_attn_implementation", value="owner/kernel"), "_attn_implementation"),
    ("another language model", config(TEXT, "model_type", value="mamba"), "mamba"),
    ("another tower", config(VISION, "model_type", value="siglip_vision_model"), "vision tower"),
    ("settings nested too deeply", lambda f: put(f / "config.json", b"[" * 100_000), "nested too deeply"),
    ("settings of 50 MB", lambda f: put(f / "config.json", b" " * (50 << 20)), "larger than"),
    ("a wording of 50 MB", lambda f: put(f / "cos_profile.json", b" " * (50 << 20)), "larger than"),
    ("an original", of_family("llava", mm_hidden_size=1024), "cos model convert"),
    ("llava_next", of_family("llava_next", vision_config={}), "LLaVA-NeXT"),
    ("Qwen2.5-VL", of_family("qwen2_5_vl", vision_config={}), "need LLaVA-1.5"),
    ("SmolVLM", of_family("smolvlm", vision_config={}, text_config={}), "SmolVLM"),
    ("a text-only Llama", of_family("llama", hidden_size=8), "sees no pictures"),
    ("CLIP", of_family("clip", vision_config={}, text_config={}), "vision tower"),
    ("LXMERT", of_family("lxmert"), "--backbone lxmert"),
    ("a model of tomorrow", of_family("newvlm", vision_config={}), "newvlm"),
    ("a type that is a number", of_family(7), "model_type"),
    ("an index beyond the folder", indexed({"a": "../outside.safetensors"}), "not one of its own folder"),
    ("an absolute index", indexed({"a": "/etc/passwd"}), "not one of its own folder"),
    ("an index that is a list", indexed([]), "weight_map"),
    ("an index of numbers", indexed({"a": 1}), "weight_map"),
    ("an index of nothing", indexed({}), "names no file"),
    ("an index of what is gone", indexed({"a": "gone.safetensors"}), "cut off"),
    *((f"{name} a link out of the folder", linked(name), "link out of") for name in (WEIGHTS, "config.json", "tokenizer.json")),
    *((f"{name} a pipe", piped(name), "not a file") for name in (WEIGHTS, INDEX, "config.json", "tokenizer.json", "generation_config.json", "cos_profile.json", "preprocessor_config.json")),
    ("a pointer of Git LFS for weights", lambda f: put(f / WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    ("a pointer of Git LFS for words", lambda f: put(f / "tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    ("an adapter alone", lambda f: ((f / WEIGHTS).unlink(), put(f / "adapter_config.json", {"base_model_name_or_path": "me/base"})), "LoRA adapter of me/base"),
    ("an adapter beside", lambda f: put(f / "adapter_config.json", {"base_model_name_or_path": "me/base"}), "an adapter beside a model"),
    ("pickles alone", lambda f: ((f / WEIGHTS).unlink(), put(f / "pytorch_model.bin", b"x")), "pickles"),
    ("weights cut off", lambda f: put(f / WEIGHTS, (f / WEIGHTS).read_bytes()[:-1]), "cut off"),
    ("a shape of 10^18", table(lambda t: {**t, "language_model.model.norm.weight": {**t["language_model.model.norm.weight"], "shape": [10**18]}}), "norm.weight has shape"),
    ("names of peft", table(lambda t: {f"base_model.model.{k}": v for k, v in t.items() if k != "__metadata__"}), "merge_and_unload"),
    ("names of a wrapper", table(lambda t: {f"module.{k}": v for k, v in t.items() if k != "__metadata__"}), "model.module"),
    ("no projector", table(lambda t: {k.replace("projector", "x"): v for k, v in t.items()}), "multi_modal_projector.linear_1.weight"),
    ("an end mark that is a text", lambda f: changed(f, "generation_config.json", "eos_token_id", value="x"), "eos_token_id"),
    ("generation settings that are a list", lambda f: put(f / "generation_config.json", []), "generation_config.json"),
    ("pictures of another size", lambda f: changed(f, "processor_config.json", "image_processor", "size", value={"shortest_edge": 10**9}), "pixels of the vision tower"),
    ("no spread of colours", lambda f: changed(f, "processor_config.json", "image_processor", "image_std", value=[0, 0, 0]), "image_std"),
    ("a pattern that never ends", pattern("(a+)+$"), "does not come to an end"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "said"), [pytest.param(make, said, id=name) for name, make, said in CASES])
def test_a_sentence_before_anything_is_built(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    folder = copied(assets.miniature_checkpoint(), tmp_path / "model")
    make(folder)
    with pytest.raises(CosError) as told:
        check(folder)
    assert said in str(told.value)
    assert str(folder) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", [KNOWN, r"\A x(?=USER:)", r"[a-z]+|\d+|\s+|."])
def test_ordinary_patterns_pass(text: str, tmp_path: Path) -> None:
    folder = copied(assets.miniature_checkpoint(), tmp_path / "model")
    pattern(text)(folder)
    assert check(folder).image_tokens == 25


def test_the_hubs_cache_is_made_of_links(tmp_path: Path) -> None:
    folder = copied(assets.miniature_checkpoint(), tmp_path / "models--me--mini" / "snapshots" / "0123")
    blobs = folder.parent.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..", "..", "blobs", str(number)))
    assert check(folder).layers == 5
    assert checkpoint_info.describe(str(folder))[1] is None


def test_what_transformers_leaves_out_is_known(tmp_path: Path) -> None:
    """The published config.json of LLaVA-1.5-7B names few of its sizes."""
    folder = copied(assets.miniature_checkpoint(), tmp_path / "model")
    put(folder / "config.json", {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}})
    with pytest.raises(
        InputError, match=r"embed_tokens.weight has shape \[365, 128\], and config.json asks for \[32064, 4096\]"
    ):
        check(folder)


def test_another_family_is_described_and_refused(tmp_path: Path) -> None:
    folder = copied(assets.miniature_checkpoint(), tmp_path / "model")
    put(folder / "config.json", {"model_type": "llava_next", "text_config": {"num_hidden_layers": 7}, "vision_config": {}})
    found, refused = checkpoint_info.describe(str(folder))
    assert found["weights"] == sum(tensor.count for tensor in header(folder / WEIGHTS).values())
    assert (found["model_type"], found["layers"]) == ("llava_next", 7)
    assert refused is not None
    assert str(folder) in refused


@pytest.mark.parametrize("name", ["minature", "Miniture", "miniatur"])
def test_a_slip_of_the_pen_is_seen(name: str) -> None:
    with pytest.raises(CosError, match="did you mean 'miniature'"):
        hub.resolve(name)


def test_what_is_not_cached_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="hf download me/model --revision v1"):
        hub.resolve("me/model@v1")
    with pytest.raises(InputError, match="no folder"):
        hub.resolve("x" * 5000)


@pytest.mark.slow
def test_two_hundred_mutations_are_answers_or_sentences(tmp_path: Path) -> None:
    """In one process that may take 2 GiB more than it had: no exception but a CosError, and none that does not end."""
    from tiny_llava import make_checkpoint

    from cos_core.dialogue.prompts import load_profile

    sound = make_checkpoint(tmp_path / "sound")
    put(sound / "cos_profile.json", load_profile("paper").to_json())
    program = Path(__file__).with_name("strange_checkpoints.py")
    done = subprocess.run(
        [sys.executable, program, sound, tmp_path / "scratch", "280"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        check=True,
        timeout=1200,
    )
    told = json.loads(done.stdout)
    assert len(told) >= 250
    assert told["sound"] == "answered"
    ends = (
        "answered",
        "refused: ",
        "the model's output is not a number",
        "the tokenizer cannot read this text",
        "out of memory",
    )
    assert {name: words for name, words in told.items() if not words.startswith(ends)} == {}
    assert any(words == "answered" for name, words in told.items() if name != "sound")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_5_vl", "idefics3"])
def test_mutations_of_another_family(name: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    program = Path(__file__).with_name("strange_checkpoints.py")
    done = subprocess.run(
        [sys.executable, program, tiny_checkpoint(name), tmp_path / "scratch", "120"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        check=True,
        timeout=1200,
    )
    told = json.loads(done.stdout)
    assert told["sound"] == "answered"
    ends = (
        "answered",
        "refused: ",
        "the model's output is not a number",
        "the tokenizer cannot read this text",
        "out of memory",
    )
    context = "exceed the model's context"
    assert {what: words for what, words in told.items() if not words.startswith(ends) and context not in words} == {}
    assert sum(words.startswith("refused: ") for words in told.values()) > 100
