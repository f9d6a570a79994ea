"""Whole runs in one process: what moves, what stays, what is written, and that it repeats."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from training_world import (
    BOX,
    IMAGE_TOKENS,
    Ears,
    collected,
    config,
    examples,
    log_of,
    make_world,
    recipe,
    weights,
)

from cos_core import training
from cos_core.data.datasets import read_examples
from cos_core.dialogue.prompts import load_profile
from cos_core.errors import InputError
from cos_core.files import manifest, plug
from cos_core.files.jsonl import read_lines
from cos_core.interfaces import SilentReporter
from cos_core.store.annotations import Store
from cos_core.training import runtime
from cos_core.training.dataset import TrainDataset
from cos_core.training.samples import NO_ANNOTATION
from cos_core.types import Annotation


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def trained(world: Path) -> Path:
    training.run(config(world, world / "trained"), SilentReporter())
    return world / "trained"


def test_frozen_weights_stay_and_the_others_move(world: Path, trained: Path) -> None:
    before, after = weights(world / "model"), weights(trained)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        frozen = "vision_tower" in name or "multi_modal_projector" in name
        assert tensor.equal(after[name]) == frozen, name


def test_the_projector_moves_when_asked(world: Path, tmp_path: Path) -> None:
    training.run(config(world, tmp_path / "out", train_projector=True, max_steps=2), SilentReporter())
    before, after = weights(world / "model"), weights(tmp_path / "out")
    for name, tensor in before.items():
        assert tensor.equal(after[name]) == ("vision_tower" in name), name


def test_the_checkpoint_loads_as_any_other(trained: Path) -> None:
    from transformers import AutoProcessor

    from cos_core.models import llava

    model = llava.load(trained, device="cpu")
    assert model.profile == load_profile("paper")
    assert model.model.config.text_config.use_cache
    assert json.loads((trained / "config.json").read_text()).get("use_cache", True)
    assert model.image_tokens == IMAGE_TOKENS
    processor = AutoProcessor.from_pretrained(trained, backend="pil")
    ids = processor(images=Image.new("RGB", (56, 56)), text="<image> hi")["input_ids"]
    assert sum(i == model.image_token_id for i in ids[0]) == IMAGE_TOKENS


def test_the_run_is_recorded(world: Path, trained: Path) -> None:
    done = manifest.read(trained)
    assert done.status == "complete"
    assert done.counts == {"ok": 5, "failed": 0, "skipped": 0}
    assert done.inputs.keys() == {"data", "model", "store"}
    log = log_of(trained)
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    assert done.results["steps"] == 4
    assert done.results["first_loss"] == log[0]["loss"]
    assert not (trained / "checkpoints").exists()


def test_two_runs_have_the_same_losses(world: Path, trained: Path, tmp_path: Path) -> None:
    training.run(config(world, tmp_path / "again"), SilentReporter())
    assert [r["loss"] for r in log_of(tmp_path / "again")] == [r["loss"] for r in log_of(trained)]
    again, first = weights(tmp_path / "again"), weights(trained)
    assert all(again[name].equal(first[name]) for name in first)


def test_workers_and_accumulation_change_nothing(world: Path, tmp_path: Path) -> None:
    training.run(config(world, tmp_path / "one", batch_size=4, max_steps=3), SilentReporter())
    parts = config(world, tmp_path / "parts", batch_size=2, global_batch=4, max_steps=3, workers=2)
    training.run(parts, SilentReporter())
    whole, sharded = log_of(tmp_path / "one"), log_of(tmp_path / "parts")
    assert [r["loss"] for r in sharded] == pytest.approx([r["loss"] for r in whole], rel=1e-4)
    assert manifest.read(tmp_path / "one").fingerprint == manifest.read(tmp_path / "parts").fingerprint


def test_a_finished_run_is_not_repeated_and_other_settings_are_refused(world: Path, trained: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in trained.iterdir()}
    done = training.run(config(world, trained), SilentReporter())
    assert done == manifest.read(trained)
    assert {path.name: path.stat().st_mtime_ns for path in trained.iterdir()} == before
    with pytest.raises(InputError, match=r"other settings \(learning_rate differ"):
        training.run(config(world, trained, learning_rate=1e-4), SilentReporter())
    with pytest.raises(InputError, match="did not write"):
        training.run(config(world, world / "model"), SilentReporter())


def test_lora_learns_adapters_and_merges_them(world: Path, tmp_path: Path) -> None:
    done = training.run(config(world, tmp_path / "out", lora=4, max_steps=2), SilentReporter())
    before, after = weights(world / "model"), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name, tensor in before.items() if not tensor.equal(after[name])}
    assert changed
    assert all("language_model" in name and "_proj" in name for name in changed)
    assert done.results["trained_weights"] < 20_000
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_questions_without_region_and_broken_images_are_counted(world: Path, tmp_path: Path) -> None:
    records = json.loads((world / "data.json").read_text())
    records[1]["image"] = "gone.png"
    (tmp_path / "data.json").write_text(json.dumps([*records, {"id": "odd"}]))
    with Store.create_or_resume(tmp_path / "store", "f", {}) as store:
        store.put_many(Annotation(e.id, BOX, 1.0, "p", "f") for e in examples(world) if e.image and e.id != "s0#q1")
    ears = Ears()
    made = config(world, tmp_path / "out", data=tmp_path / "data.json", store=tmp_path / "store", max_steps=None, epochs=6)
    done = training.run(made, ears)
    assert done.counts == {"ok": 4, "failed": 2, "skipped": 0}
    named = {record["id"]: record["reason"] for _, record in read_lines(tmp_path / "out" / "skipped.jsonl")}
    assert named.keys() == {"s1", ""}
    assert "data.json:" in named[""]
    assert "gone.png" in named["s1"]
    assert any("1 of 12 questions about pictures have no region" in text and NO_ANNOTATION in text for text in ears.warnings)
    with Store.read(tmp_path / "store") as store:
        read = read_examples(tmp_path / "data.json", text_only="keep", on_problem=lambda _: None)
        data = TrainDataset(collected(read, plug.load("policies", "from_single_question"), store).samples, recipe(world))
    expected = [sum(data[key].fallback for key in range(5 * epoch, 5 * epoch + 5)) for epoch in range(6)]
    steps = log_of(tmp_path / "out")
    assert [sum(r["fallbacks"] for r in steps[i : i + 3]) for i in range(0, 18, 3)] == expected
    assert sum(expected) > 0
    assert done.results["fallbacks"] == sum(expected)
    assert done.results["questions_without_region"] == 1
    skipping = replace(made, out=tmp_path / "skip", on_no_region="skip", epochs=1)
    assert training.run(skipping, Ears()).counts == {"ok": 4, "failed": 2, "skipped": 1}
    assert {r["id"]: r["reason"] for _, r in read_lines(tmp_path / "skip" / "skipped.jsonl")}["s0#q1"] == NO_ANNOTATION


def test_a_store_of_other_questions_stops_the_run(world: Path, tmp_path: Path) -> None:
    with Store.create_or_resume(tmp_path / "store", "f", {}) as store:
        store.put_many(Annotation(e.id, BOX, 1.0, "p", "f") for e in examples(world) if e.image and e.id[:2] != "s0")
    made = config(world, tmp_path / "out", store=tmp_path / "store", max_faults=0)
    with pytest.raises(InputError, match=r"3 of 12 questions about pictures have no region, more than the 0\.1 of them"):
        training.run(made, SilentReporter())
    assert training.run(replace(made, max_no_region=0.25, max_steps=1), SilentReporter()).counts["ok"] == 5


def test_bfloat16_arithmetic_keeps_float32_weights(world: Path, tmp_path: Path, trained: Path) -> None:
    training.run(config(world, tmp_path / "out", dtype="bfloat16"), SilentReporter())
    after = weights(tmp_path / "out")
    assert {str(tensor.dtype) for tensor in after.values()} == {"torch.float32"}
    assert log_of(tmp_path / "out")[0]["loss"] == pytest.approx(log_of(trained)[0]["loss"], rel=0.02)


def test_nothing_is_written_to_stdout(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    training.run(config(world, tmp_path / "out", max_steps=1), SilentReporter())
    assert capfd.readouterr().out == ""


def test_text_only_data_spends_no_vision_pass(world: Path, tmp_path: Path) -> None:
    records = json.loads((world / "data.json").read_text())[-1:]
    (tmp_path / "data.json").write_text(json.dumps(records))
    done = training.run(config(world, tmp_path / "out", data=tmp_path / "data.json", max_steps=1), SilentReporter())
    assert done.counts["ok"] == 1


@pytest.mark.parametrize("reporter", ["tensorboard", "wandb"])
def test_the_trainers_own_reports(world: Path, tmp_path: Path, reporter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_PROJECT", "")
    out = tmp_path / "out"
    training.run(config(world, out, report_to=reporter), SilentReporter())
    if reporter == "wandb":
        import wandb

        assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 1
        assert wandb.run.project == "cos"
        wandb.teardown()
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([r["loss"] for r in log_of(out)])


@pytest.mark.parametrize(("variable", "file", "project"), [("", "", "cos"), ("", "mine", "mine"), ("ours", "mine", "ours")])
def test_the_project_of_weights_and_biases(
    world: Path, tmp_path: Path, variable: str, file: str, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_PROJECT": variable}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    if file:
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb" / "settings").write_text(f"[default]\nproject = {file}\n")
    wandb.teardown()
    assert runtime.reporters(config(world, tmp_path / "out", report_to="wandb"), main=True) == []
    assert os.environ["WANDB_PROJECT"] == project
    wandb.teardown()


def test_a_run_killed_at_its_end_takes_no_step_more(world: Path, tmp_path: Path) -> None:
    """After its last step, inside an epoch (4 steps, 3 an epoch), and after its manifest: what is left is put in order."""
    made = config(world, tmp_path / "out", save_every=4)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cos_core.training.save.save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            training.run(made, SilentReporter())
    before = log_of(tmp_path / "out")
    last = tmp_path / "out" / "checkpoints" / "checkpoint-4"
    assert (last / "whole.json").is_file()
    shutil.copytree(last, tmp_path / "kept")
    assert training.run(made, SilentReporter()).results["steps"] == 4
    assert log_of(tmp_path / "out") == before
    kept, done = weights(tmp_path / "kept"), weights(tmp_path / "out")
    assert all(kept[name].equal(done[name]) for name in kept)
    shutil.copytree(tmp_path / "kept", last)
    training.run(made, SilentReporter())
    assert not last.exists()


def test_qlora_trains_adapters_over_four_bits(world: Path, tmp_path: Path) -> None:
    """By bitsandbytes' way for a CPU: the merged weights are the stored ones'."""
    training.run(config(world, tmp_path / "out", lora=4, qlora=True, max_steps=2), SilentReporter())
    before, after = weights(world / "model"), weights(tmp_path / "out")
    changed = {name for name, tensor in before.items() if not tensor.equal(after[name])}
    assert changed
    assert all("language_model" in name and "_proj" in name for name in changed)
