"""Loading checkpoints: what tells two of them apart, and what is refused."""

from pathlib import Path

import pytest

from cos_core import llava
from cos_core.errors import InputError


def checkpoint(folder: Path, weights: bytes) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_fingerprint_sees_a_change_deep_inside_large_weights(tmp_path: Path):
    size = 8 << 20
    changed = bytearray(size)
    changed[5 << 20 : (5 << 20) + 64_000] = b"\1" * 64_000
    first = llava.checkpoint_fingerprint(str(checkpoint(tmp_path / "a", bytes(size))))
    assert first == llava.checkpoint_fingerprint(str(checkpoint(tmp_path / "b", bytes(size))))
    assert first != llava.checkpoint_fingerprint(str(checkpoint(tmp_path / "c", bytes(changed))))


def test_fingerprint_does_not_depend_on_manifests(tmp_path: Path):
    folder = checkpoint(tmp_path / "a", b"weights")
    first = llava.checkpoint_fingerprint(str(folder))
    (folder / "manifest.json").write_text('{"seconds": 12}')
    (folder / "train_log.jsonl").write_text("{}")
    assert llava.checkpoint_fingerprint(str(folder)) == first


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"not a checkpoint: it has no config\.json"):
        llava.load(tmp_path)
