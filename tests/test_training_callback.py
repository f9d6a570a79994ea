"""Runs that stop: killed, asked to, by the clock, or by a guard that names the samples."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_llava import make_checkpoint
from training_world import (
    NO_SIZE,
    config,
    log_of,
    make_world,
    weights,
)

from cos_core import training
from cos_core.dialogue.encoding import IGNORE
from cos_core.errors import CosError, InputError
from cos_core.files import manifest
from cos_core.interfaces import SilentReporter


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


class Interrupt(SilentReporter):
    """Stops the run as Ctrl-C would, after some steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        if stage == "train" and done == self.after:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_to_the_same_weights(world: Path, tmp_path: Path) -> None:
    records = json.loads((world / "data.json").read_text())
    records[1]["image"] = "gone.png"
    (tmp_path / "data.json").write_text(json.dumps(records))
    data = tmp_path / "data.json"
    whole = config(world, tmp_path / "whole", data=data, epochs=3, max_steps=None, save_every=2)
    training.run(whole, SilentReporter())
    torn = replace(whole, out=tmp_path / "torn")
    with pytest.raises(KeyboardInterrupt):
        training.run(torn, Interrupt(8))
    assert not (torn.out / manifest.FILE).exists()
    training.run(torn, SilentReporter())
    assert [r["step"] for r in log_of(torn.out)] == list(range(1, 10))
    assert [r["loss"] for r in log_of(torn.out)] == [r["loss"] for r in log_of(whole.out)]
    assert manifest.read(torn.out).counts == manifest.read(whole.out).counts == {"ok": 4, "failed": 1, "skipped": 0}
    assert (torn.out / "skipped.jsonl").read_text() == (whole.out / "skipped.jsonl").read_text()
    one, two = weights(whole.out), weights(torn.out)
    assert all(one[name].equal(two[name]) for name in one)


def test_adapters_and_projector_go_on_too(world: Path, tmp_path: Path) -> None:
    whole = config(world, tmp_path / "whole", lora=4, train_projector=True, save_every=2)
    training.run(whole, SilentReporter())
    torn = replace(whole, out=tmp_path / "torn")
    with pytest.raises(KeyboardInterrupt):
        training.run(torn, Interrupt(3))
    training.run(torn, SilentReporter())
    assert [r["loss"] for r in log_of(torn.out)] == [r["loss"] for r in log_of(whole.out)]
    before, one, two = weights(world / "model"), weights(whole.out), weights(torn.out)
    assert all(one[name].equal(two[name]) for name in one)
    moved = {name for name, tensor in before.items() if not tensor.equal(one[name])}
    assert any("multi_modal_projector" in name for name in moved)
    assert any("language_model" in name for name in moved)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, None])
def test_a_signal_leaves_a_whole_checkpoint(world: Path, tmp_path: Path, number: signal.Signals | None) -> None:
    """None: the file that a launcher puts down instead of a signal."""

    class Signal(SilentReporter):
        def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
            if stage == "train" and done == 2 and number is None:
                (tmp_path / "out" / ".stop").touch()
            elif stage == "train" and done == 2 and number is not None:
                os.kill(os.getpid(), number)

    from cos_core.training import resume_points

    made = config(world, tmp_path / "out", max_steps=6)
    before = None if number is None else signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        training.run(made, Signal())
    last = resume_points.last_whole(tmp_path / "out" / "checkpoints")
    assert last is not None
    assert resume_points.step_of(last) == 3, "the step at hand is finished"
    assert number is None or signal.getsignal(number) == before, "handlers are put back"
    assert not (tmp_path / "out" / ".stop").exists()
    torn = tmp_path / "out" / "checkpoints" / "checkpoint-5"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    assert resume_points.last_whole(torn.parent) == last, "a torn checkpoint does not count"
    training.run(made, SilentReporter())
    assert [r["step"] for r in log_of(tmp_path / "out")] == list(range(1, 7))
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_the_older_checkpoint_goes_when_the_newer_is_whole(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cos_core.training import resume_points

    marked: list[int] = []
    there: list[list[int]] = []
    whole = resume_points.mark_whole

    def mark(folder: Path, files: list[dict[str, int]]) -> None:
        there.append(sorted(resume_points.step_of(path) for path in folder.parent.glob("checkpoint-*")))
        whole(folder, files)
        marked.append(resume_points.step_of(folder))

    monkeypatch.setattr(resume_points, "mark_whole", mark)
    training.run(config(world, tmp_path / "out", save_every=1, max_steps=3), SilentReporter())
    assert marked == [1, 2, 3]
    assert there == [[1], [1, 2], [2, 3]]


def test_a_loss_that_is_no_number_stops_the_run(world: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    overflowing = make_checkpoint(tmp_path / "model")
    weights = load_file(overflowing / "model.safetensors")
    save_file({name: 1e30 * w for name, w in weights.items()}, overflowing / "model.safetensors", {"format": "pt"})
    with pytest.raises(CosError, match="the loss became"):
        training.run(config(world, tmp_path / "out", model=str(overflowing), max_steps=9), SilentReporter())


def test_guards_name_the_samples(world: Path) -> None:
    from cos_core.training.callback import CallbackSettings, StopRequest, TrainingCallback
    from cos_core.training.collate import BatchContents
    from cos_core.training.ranks import Ranks
    from cos_core.training.sample_order import BatchSizes, SampleOrder

    class Trainer:
        contents = (BatchContents(ids=["a", "b"]), BatchContents(ids=["c"]))
        ranks = Ranks(None, 0, 1)
        skipped: dict[str, str] = {}  # noqa: RUF012

    settings = CallbackSettings(world, SilentReporter(), None, NO_SIZE, None, None)
    callback = TrainingCallback(SampleOrder(1, 0, BatchSizes(1, 1, 1)), settings, StopRequest())
    callback.trainer = Trainer()  # type: ignore[assignment]
    with pytest.raises(CosError, match=r"exactly 0 at step 3.* \(samples of this step: a, b, c\)"):
        callback._guard(0.0, 1.0, 3)
    with pytest.raises(CosError, match="became nan at step 4"):
        callback._guard(float("nan"), 1.0, 4)
    for step in range(3):
        callback._guard(1.0, float("inf"), step)
    callback._guard(1.0, 1.0, 3)
    for step in range(4, 7):
        callback._guard(1.0, float("inf"), step)
    with pytest.raises(CosError, match="not finite for 4 steps up to step 7"):
        callback._guard(1.0, float("inf"), 7)


def test_a_batch_with_nothing_to_learn_stops_the_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cos_core.training import dataset as data_module

    monkeypatch.setattr(data_module, "cut", lambda encoded, *_: replace(encoded, labels=(IGNORE,) * len(encoded)))
    with pytest.raises(CosError, match=r"nothing of these samples would be learnt.*: s\d|words"):
        training.run(config(world, tmp_path / "out", max_steps=1, check="off"), SilentReporter())


def test_only_public_methods_of_the_trainer_are_overridden() -> None:
    """Private ones may change in any release of transformers."""
    from transformers import Trainer, TrainingArguments

    from cos_core.training.trainer import ChainTrainer, OneDeviceArguments

    for kind, base in ((ChainTrainer, Trainer), (OneDeviceArguments, TrainingArguments)):
        overridden = {name for name in vars(kind) if hasattr(base, name) and not name.startswith("__")}
        assert overridden
        assert not {name for name in overridden if name.startswith("_")}


def test_several_visible_gpus_are_used_by_several_processes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainingArguments

    from cos_core.training.trainer import OneDeviceArguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda _: 4))
    arguments = OneDeviceArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=3, report_to="none")
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 3)


@pytest.mark.parametrize("step", ["torch.save", "cos_core.training.resume_points.mark_whole"])
def test_a_full_disk_names_the_checkpoint_and_removes_it(
    world: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the Trainer writes, and while its checkpoint is finished."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(step, full)
    folder = tmp_path / "out" / "checkpoints" / "checkpoint-1"
    with pytest.raises(InputError) as error:
        training.run(config(world, tmp_path / "out", save_every=1, max_steps=2), SilentReporter())
    assert str(folder) in str(error.value)
    assert not folder.exists()
