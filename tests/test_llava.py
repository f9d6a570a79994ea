"""Loading checkpoints: what tells two of them apart, and what is refused."""

import socket
import threading
from pathlib import Path

import pytest
import torch

from cos_core.errors import InputError, MissingError
from cos_core.models import devices, hub, llava


def checkpoint(folder: Path, weights: bytes) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_fingerprint_sees_a_change_deep_inside_large_weights(tmp_path: Path):
    size = 8 << 20
    changed = bytearray(size)
    changed[5 << 20 : (5 << 20) + 64_000] = b"\1" * 64_000
    first = hub.fingerprint(str(checkpoint(tmp_path / "a", bytes(size))))
    assert first == hub.fingerprint(str(checkpoint(tmp_path / "b", bytes(size))))
    assert first != hub.fingerprint(str(checkpoint(tmp_path / "c", bytes(changed))))


def test_fingerprint_does_not_depend_on_manifests(tmp_path: Path):
    folder = checkpoint(tmp_path / "a", b"weights")
    first = hub.fingerprint(str(folder))
    (folder / "manifest.json").write_text('{"seconds": 12}')
    (folder / "train_log.jsonl").write_text("{}")
    assert hub.fingerprint(str(folder)) == first


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"not a checkpoint: it has no config\.json"):
        llava.load(tmp_path)


def test_a_hub_that_cannot_be_reached_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not file by file: every file that is asked for takes seconds until it is given up."""
    asked = list[bytes]()
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def refuse() -> None:
            while True:
                try:
                    connection, _ = proxy.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(4096).split(b"\r\n")[0])

        threading.Thread(target=refuse, daemon=True).start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with pytest.raises(MissingError, match="no folder owner/nothing, and the model hub cannot be reached"):
            llava.load("owner/nothing")
        proxy.shutdown(socket.SHUT_RDWR)
    assert 1 <= len(asked) <= 6, asked
    with pytest.raises(InputError, match="no hub id"):
        llava.load("no/folder/of/mine")


def test_devices_and_number_formats(monkeypatch: pytest.MonkeyPatch):
    assert devices.devices("cpu, cpu") == ["cpu", "cpu"]
    assert devices.dtype_name("cpu", "auto") == "float32"
    assert devices.dtype_name("cuda", "float16") == "float16"
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        devices.devices("cpu,gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert devices.devices("auto") == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices.dtype_name("auto", "auto") == "bfloat16"
    with pytest.raises(MissingError, match="'cuda:3' was asked for, but torch sees 3 of them"):
        devices.devices("cuda:2,cuda:3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices.devices("auto") == ["cpu"]


@pytest.mark.parametrize(
    ("capability", "auto"),
    [
        ((7, 0), "float16"),
        ((7, 5), "float16"),
        ((8, 0), "bfloat16"),
        ((8, 6), "bfloat16"),
        ((9, 0), "bfloat16"),
        ((12, 0), "bfloat16"),
    ],
)
def test_a_gpu_without_bfloat16_gets_float16_and_a_word(
    capability: tuple[int, int], auto: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert devices.dtype_name("auto", "auto") == auto
    # What is loaded is what the fingerprint says.
    assert devices.placement("cuda", "auto") == (torch.device("cuda"), getattr(torch, auto))
    assert devices.placement("cuda", "bfloat16")[1] == torch.bfloat16
    lacks = auto == "float16"
    for dtype, told in (("auto", lacks), ("bfloat16", lacks), ("float16", False), ("float32", False)):
        assert (devices.dtype_remark("auto", dtype) is not None) == told
    assert devices.dtype_remark("cpu", "auto") is None
    assert devices.dtype_name("cpu", "auto") == "float32"
