"""Checkpoints from strangers: folders that are none, settings and weights that are broken, pickles that would run."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad.settings import Trap
from bad.world import Arguments, Case, World, put
from cos_core.files import assets

CONFIG = {
    "text_config": {"num_hidden_layers": 1, "hidden_size": 8, "vocab_size": 9},
    "vision_config": {"image_size": 28, "patch_size": 14},
}


def _shipped(folder: Path) -> Path:
    """A copy of the shipped checkpoint."""
    model = folder / "model"
    model.mkdir()
    for path in assets.miniature_checkpoint().iterdir():
        if path.is_file():
            (model / path.name).write_bytes(path.read_bytes())
    return model


def _info(make: Callable[[Path], object]) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        make(model := _shipped(folder))
        return ["model", "info", model]

    return arguments


def _weights(content: bytes) -> Callable[[Path], object]:
    return lambda m: put(m / "model.safetensors", content)


def _infer(make: Callable[[Path], object]) -> Arguments:
    """The shipped checkpoint with one thing changed, for a model that is really loaded."""

    def arguments(world: World, folder: Path) -> list[Any]:
        make(model := _shipped(folder))
        return ["infer", "--model", model, "--image", world.images / "a.png", "--question", "what?", "--device", "cpu"]

    return arguments


def _convert(make: Callable[[Path, Path], object]) -> Arguments:
    """An original checkpoint in small, whole but for its weights."""

    def arguments(world: World, folder: Path) -> list[Any]:
        source = folder / "original"
        sides = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        names = {"mm_hidden_size": 8, "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "tower"}
        put(source / "config.json", {**sides, **names, "vocab_size": 400})
        put(source / "tower" / "config.json", {**sides, "image_size": 28, "patch_size": 14})
        for name in ("tokenizer.json", "tokenizer_config.json"):
            put(source / name, (assets.miniature_checkpoint() / name).read_bytes())
        make(source, folder)
        return ["model", "convert", source, "--out", folder / "converted"]

    return arguments


def _swap_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    put(model / "pytorch_model.bin", pickle.dumps(Trap(model.parent / "trapped")))


def _more_tokens(model: Path) -> None:
    data = json.loads((model / "tokenizer.json").read_bytes())
    data["model"]["vocab"]["beyond"] = 10**6
    put(model / "tokenizer.json", data)


def _nan_weights(model: Path) -> None:
    """Every number behind the table is a NaN."""
    data = (model / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    put(model / "model.safetensors", data[:end] + b"\xff" * (len(data) - end))


INFO: list[tuple[str, Callable[[Path], object], str]] = [
    ("settings that are empty", lambda m: put(m / "config.json", b""), "config.json"),
    ("settings that are a list", lambda m: put(m / "config.json", []), "config.json"),
    ("settings nested too deeply", lambda m: put(m / "config.json", "[" * 100_000), "nested"),
    ("settings in UTF-16", lambda m: put(m / "config.json", "{}".encode("utf-16")), "UTF-8"),
    ("settings of LLaVA-NeXT", lambda m: put(m / "config.json", {"model_type": "llava_next", "vision_config": {}}), "config.json"),
    ("settings of another model", lambda m: put(m / "config.json", {"model_type": "llama"}), "llama"),
    ("settings of an original", lambda m: put(m / "config.json", {"mm_hidden_size": 1}), "cos model convert"),
    ("no vision settings", lambda m: put(m / "config.json", {"text_config": {}}), "transformers"),
    ("text settings that are a list", lambda m: put(m / "config.json", {**CONFIG, "text_config": []}), "transformers"),
    ("a patch of 0 pixels", lambda m: put(m / "config.json", {**CONFIG, "vision_config": {"image_size": 28, "patch_size": 0}}), "config.json"),
    ("a picture side that is a text", lambda m: put(m / "config.json", {**CONFIG, "vision_config": {"image_size": "big", "patch_size": 1}}), "config.json"),
    ("weights that are empty", _weights(b""), "model.safetensors"),
    ("weights of noise", _weights(b"\xff" * 99), "model.safetensors"),
    ("weights that claim a table of 2^63 bytes", _weights(struct.pack("<Q", 2**63 - 1) + b"{}"), "model.safetensors"),
    ("weights whose table is cut off", _weights(struct.pack("<Q", 90) + b'{"a": '), "model.safetensors"),
    ("weights whose table is a list", _weights(struct.pack("<Q", 2) + b"[]"), "model.safetensors"),
    ("weights without shape", _weights(struct.pack("<Q", 11) + b'{"a": {}}  '), "model.safetensors"),
    ("weights that are a pickle", _weights(pickle.dumps(Trap(Path("/proc/trapped")))), "model.safetensors"),
    ("a profile that is broken", lambda m: put(m / "cos_profile.json", b"{"), "cos_profile.json"),
    ("a profile of unknown keys", lambda m: put(m / "cos_profile.json", {"colour": 1}), "cos_profile.json"),
    ("a profile that is a list", lambda m: put(m / "cos_profile.json", []), "cos_profile.json"),
]  # fmt: skip
CONVERT: list[tuple[str, Callable[[Path, Path], object], str]] = [
    ("no weights", lambda s, f: None, "original"),
    ("settings that are a list", lambda s, f: put(s / "config.json", []), "config.json"),
    ("no tokenizer", lambda s, f: [put(s / "pytorch_model.bin", b""), (s / "tokenizer.json").unlink()], "original"),
    ("empty weights", lambda s, f: put(s / "pytorch_model.bin", b""), "pytorch_model.bin"),
    ("a pickle that would run", lambda s, f: put(s / "pytorch_model.bin", pickle.dumps(Trap(f / "trapped"))), "pytorch_model.bin"),
    ("weights of noise", lambda s, f: put(s / "model.safetensors", b"\xff" * 99), "original"),
]  # fmt: skip
LOADED: list[tuple[str, Callable[[Path], object], str]] = [
    ("a pickle for weights", _swap_weights, "model"),
    ("weights cut off", lambda m: put(m / "model.safetensors", (m / "model.safetensors").read_bytes()[:-5000]), "model.safetensors"),
    ("a tokenizer of noise", lambda m: put(m / "tokenizer.json", b"noise"), "tokenizer.json"),
    ("another model's tokenizer", _more_tokens, "tokenizer"),
    ("weights of NaN", _nan_weights, "NaN"),
    ("no tokenizer", lambda m: (m / "tokenizer.json").unlink(), "model"),
]  # fmt: skip

CASES = [Case("checkpoint", name, 3, fact, _info(make), "model") for name, make, fact in INFO]
CASES += [Case("checkpoint converted", name, 3, fact, _convert(make), "original", slow=True) for name, make, fact in CONVERT]
CASES += [Case("checkpoint loaded", name, 3, fact, _infer(make), "model", slow=True) for name, make, fact in LOADED]
