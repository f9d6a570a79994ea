"""Fingerprints, digests, atomic files and run manifests."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from refusals import refused

import cos_core
from cos_core.errors import InputError
from cos_core.files import manifest
from cos_core.files.durable import atomic_file, atomic_write
from cos_core.files.durable_writer import DurableWriter
from cos_core.types import RunManifest


@dataclass(frozen=True)
class Config:
    data: Path
    seed: int = 0
    sizes: tuple[int, ...] = (2, 3)
    rate: float = 2e-5


def test_fingerprint_by_hand_and_stable_under_order() -> None:
    expected = hashlib.sha256(b'{"a":1,"b":[2,3]}').hexdigest()[:16]
    assert manifest.fingerprint({"b": (2, 3), "a": 1}) == expected
    assert manifest.fingerprint({"a": 1, "b": [2, 3]}) == expected
    assert len(expected) == 16


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_any_change_changes_the_fingerprint(values: dict) -> None:
    mark = manifest.fingerprint(values)
    key = next(iter(values))
    assert manifest.fingerprint(dict(reversed(values.items()))) == mark
    assert manifest.fingerprint({**values, key: "something else entirely"}) != mark or values[key] == "something else entirely"
    assert manifest.fingerprint({k: v for k, v in values.items() if k != key}) != mark


def test_plain_knows_configs_and_refuses_what_has_no_value() -> None:
    config = Config(Path("a/b"))
    assert manifest.plain(config) == {"data": "a/b", "seed": 0, "sizes": [2, 3], "rate": 2e-5}
    assert manifest.plain({"x": {3, 1, 2}}) == {"x": [1, 2, 3]}
    for bad in (object(), float("nan"), float("inf"), {"x": lambda: 0}):
        with pytest.raises(InputError):
            manifest.plain(bad)


def test_digest_and_input_record(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    # pragma: allowlist nextline secret
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest.file_digest(path) == digest
    assert manifest.file_input(path) == {"path": str(path), "sha256": digest, "bytes": 3}
    with refused(os.strerror(errno.ENOENT)):
        manifest.file_digest(tmp_path / "none")


def test_atomic_write_replaces_or_leaves(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.txt"
    atomic_write(path, "née")
    atomic_write(path, b"bytes")
    assert path.read_bytes() == b"bytes"

    def half() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        half()
    assert path.read_bytes() == b"bytes"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_atomic_write_follows_links(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real").write_text("old")
    (tmp_path / "link").symlink_to("there/real")
    atomic_write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "real").read_text() == "new"


def test_only_a_file_is_replaced(tmp_path: Path) -> None:
    """A rename over a device would leave a file in its place: /dev/null, for every program of the machine."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "to-folder").symlink_to("folder")
    here, there = os.openpty()  # a device that nobody misses
    (tmp_path / "to-device").symlink_to(os.ttyname(there))
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    for name in ("to-folder", "self", "to-device", "pipe"):
        for write in (lambda path: atomic_write(path, "new"), DurableWriter):
            with pytest.raises(InputError) as raised:
                write(tmp_path / name)
            assert str(tmp_path / name) in str(raised.value)
    assert (tmp_path / "to-device").is_char_device()
    os.close(here)
    os.close(there)
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "hanging").symlink_to("folder/new")
    atomic_write(tmp_path / "hanging", "new")
    assert (tmp_path / "folder" / "new").read_text() == "new"


def test_unwritable_places_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "x", tmp_path / "folder"):
        with pytest.raises(InputError) as raised:
            atomic_write(place, "")
        assert str(place) in str(raised.value)
    assert not list(tmp_path.glob(".*"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_run_from_start_to_manifest(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    run = manifest.started("annotate", Config(data), seed=3, inputs={"data": manifest.file_input(data)})
    done = run.finish({"ok": 5, "failed": 1}, "partial", {"rate": 2.5})
    assert done.fingerprint == manifest.fingerprint(manifest.plain(Config(data)))
    assert done.counts == {"ok": 5, "failed": 1, "skipped": 0}
    assert done.started <= done.finished
    assert done.started.endswith("+00:00")
    assert 0 <= done.seconds < 60
    assert done.versions["cos"] == cos_core.__version__
    path = manifest.path_for(tmp_path)
    assert path == tmp_path / "manifest.json"
    manifest.write(path, done)
    assert manifest.read(tmp_path) == manifest.read(path)
    assert manifest.read(path).to_json() == done.to_json()
    beside = manifest.path_for(tmp_path / "out.jsonl")
    assert beside.name == "out.jsonl.manifest.json"
    manifest.write(beside, structs.replace(done, stage="infer"))
    assert manifest.read(beside).stage == "infer"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"stage": "eval"}'])
def test_broken_manifests_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with refused("manifest.json"):
        manifest.read(tmp_path)


def test_a_missing_manifest_means_unfinished(tmp_path: Path) -> None:
    with refused("manifest.json"):
        manifest.read(tmp_path)


def test_versions_and_hardware_import_no_library() -> None:
    code = (
        "import sys; from cos_core.files import manifest; v = manifest.versions(); h = manifest.hardware();"
        "assert v['numpy'] and h['cores'] >= 1 and h['memory_bytes'] > 2**20, (v, h);"
        "assert not {'torch', 'transformers', 'lmdb', 'numpy'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cos_core.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_manifests_name_no_host_and_no_user() -> None:
    assert set(manifest.hardware()) == {"system", "machine", "processor", "cores", "memory_bytes", "gpus"}
    assert isinstance(RunManifest("x", "complete", {}, "", {}, hardware=manifest.hardware()).to_json(), dict)
