"""Runs of the whole stage on a real model: batches, grammar, verification, relevance, several devices."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from children import children
from PIL import Image
from reporters import Told
from tiny_llava import make_checkpoint
from two_passes import QUIET, comparable, make_config, questions, stored

from cos_core.errors import InputError, MissingError
from cos_core.infer import InferConfig, run
from cos_core.infer import stage as infer
from cos_core.models import hub


@pytest.fixture
def config(tmp_path: Path) -> InferConfig:
    return make_config(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("roi", ["model", "center", "none", "from_questions"])
def test_on_a_real_model_the_batch_size_changes_nothing(config: InferConfig, model: Path, tmp_path: Path, roi: str) -> None:
    config = replace(config, model=model, engine="hf", roi=roi, device="cpu", max_new_tokens=6, box_tokens=9)
    done = run(config, QUIET)
    assert done.counts["ok"] == 3
    assert done.inputs["model"]["fingerprint"] == hub.fingerprint(str(model))
    run(replace(config, out=tmp_path / "alone.jsonl", batch_size=1), QUIET)
    assert comparable(config.out) == comparable(tmp_path / "alone.jsonl")


def test_grammar_and_verification_on_a_real_model(config: InferConfig, tmp_path: Path) -> None:
    from cos_core.infer.verify import verify

    where = make_checkpoint(tmp_path / "model")
    config = replace(config, model=where, engine="hf", device="cpu", box_decode="grammar", max_new_tokens=4)
    done = run(config, QUIET)
    assert done.counts["box_ok"] == 3
    assert all(p.tokens["pass1_steps"] < 0.6 * p.tokens["pass1_out"] for p in stored(config.out))
    with pytest.raises(InputError, match="other settings"):
        run(replace(config, box_decode="free"), QUIET)
    verdict = verify(config, 2, QUIET)
    assert (verdict["questions"], verdict["replies"]) == (2, 4)
    assert all(flip["margin"] < 1e-4 for flip in verdict["flips"])


def test_regions_from_relevance_need_no_training(config: InferConfig, tmp_path: Path) -> None:
    where = make_checkpoint(tmp_path / "model")
    config = replace(config, model=where, engine="hf", device="cpu", roi="relevance", max_new_tokens=4)
    assert run(config, QUIET).counts["ok"] == 3
    predictions = stored(config.out)
    assert all(p.policy == "relevance" and p.box is not None and p.box_status == "skipped" for p in predictions)
    assert any(p.box is not None and p.box.area < 0.9 for p in predictions), "a region, not always the whole picture"
    assert all(p.tokens["pass2_in"] > p.tokens["pass1_in"] + 16 for p in predictions)


# --- several devices ----------------------------------------------------------------------------------------------------------


def many(config: InferConfig, tmp_path: Path) -> InferConfig:
    """64 questions, one to six side by side on each of nineteen pictures of two kinds."""
    pictures = config.images or Path()
    rows = []
    for place in range(19):
        name = f"{place}.png"
        Image.open(pictures / ("a.png" if place % 2 else "b.png")).rotate(90 * (place // 2)).save(pictures / name)
        rows += [(f"{place}-{i}", name, f"what {i}?") for i in range(1 + place % 6)]
    return replace(config, data=questions(tmp_path, rows, "many.jsonl"))


class Killer(Told):
    """Kills both workers once something is answered."""

    done = False

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        if done and not self.done:
            self.done = True
            for pid in children():
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_the_bytes_of_a_run_do_not_depend_on_the_number_of_devices(config: InferConfig, tmp_path: Path) -> None:
    """On the miniature: in this process, in two others, and in two that are killed; nothing but the seconds may differ."""
    config = replace(many(config, tmp_path), model="miniature", engine="hf", batch_size=4, max_new_tokens=4, device="cpu")
    counts = run(config, QUIET).counts
    assert counts["ok"] == 64
    config, alone = replace(config, device="cpu,cpu", out=tmp_path / "two.jsonl"), config
    with infer.start(config, QUIET) as workers:
        assert run(config, QUIET, workers=workers).counts == counts
        assert comparable(config.out) == comparable(alone.out)
        killer, torn = Killer(), replace(config, out=tmp_path / "torn.jsonl")
        assert run(torn, killer, workers=workers).counts == counts
        assert killer.done
        assert comparable(torn.out) == comparable(alone.out)


@pytest.mark.slow
def test_what_a_worker_cannot_load_ends_the_run_in_a_sentence(config: InferConfig, tmp_path: Path) -> None:
    config = replace(config, engine="hf", model=tmp_path)
    with pytest.raises(InputError, match=r"config\.json"):
        run(replace(config, device="cpu,cpu"), QUIET)
    with pytest.raises(MissingError, match="cuda:1"):
        run(replace(config, device="cpu,cuda:1"), QUIET)
