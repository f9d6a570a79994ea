"""The openai engine against a real server, `transformers serve`: every box and answer is the local engine's.

The checkpoints are those that `cos` writes, as they lie there: the miniature's after some training, and a converted one with
SentencePiece's vocabulary. `make test-vllm` (tests/with_vllm) does the same with vLLM.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import served_world as world

from cos_cli import main
from cos_core.dialogue.prompts import dialogue
from cos_core.engines import openai
from cos_core.files import assets
from cos_core.interfaces import Request, Sampling
from cos_core.miniature import scenes

pytest.importorskip("fastapi", reason="the server's own packages are not installed")

LIMITS = {"max_new_tokens": 8, "box_tokens": 24, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all of them: it loads what it is asked for."""
    command = [str(Path(sys.executable).parent / "transformers"), "serve", "--device", "cpu", "--port", "{port}"]
    with world.serving(command, "/health", tmp_path_factory.mktemp("server") / "log") as address:
        yield address + "/v1"


@pytest.mark.slow
def test_a_trained_checkpoint_answers_as_locally(address: str, tmp_path: Path) -> None:
    data = world.write_questions(tmp_path / "questions", 300)
    model = str(world.train_a_little(tmp_path, world.write_profile(tmp_path / "where.json")))
    local = world.predictions(data, tmp_path / "local.jsonl", model=model, **LIMITS)
    served = world.predictions(data, tmp_path / "served.jsonl", model=model, engine="openai", server=address, **LIMITS)
    assert world.differences(served, local) == []
    assert len(local) == 300
    # The comparison could have failed: boxes and answers are many, and boxes usable.
    assert sum(record["box_status"] == "ok" for record in local) > 100
    assert len({record["answer"] for record in local}) > 50


@pytest.mark.slow
@pytest.mark.parametrize("model", ["miniature", "converted"])
def test_other_checkpoints_answer_as_locally(address: str, model: str, tmp_path: Path) -> None:
    data = world.write_questions(tmp_path / "questions", 120)
    where = str(world.convert_a_tiny_one(tmp_path) if model == "converted" else assets.miniature_checkpoint())
    local = world.predictions(data, tmp_path / "local.jsonl", model=where, **LIMITS)
    served = world.predictions(data, tmp_path / "served.jsonl", model=where, engine="openai", server=address, **LIMITS)
    assert world.differences(served, local) == []
    assert len({record["answer"] for record in local}) > 10
    padded, bare = world.padded_and_bare(Path(where), address)
    assert padded == bare


@pytest.mark.slow
def test_the_doctor_sees_whose_prompts_they_are(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = shutil.copytree(assets.miniature_checkpoint(), tmp_path / "other")
    template = other / "chat_template.jinja"
    assert "</s>" in template.read_text()
    template.write_text(template.read_text().replace("</s>", ""))
    ours = (assets.miniature_checkpoint(), world.convert_a_tiny_one(tmp_path))
    for model, code, level, words in (*((where, 0, "ok", "as the local engine's") for where in ours),
                                      (other, 4, "missing", "the end mark after the assistant's turn is missing")):  # fmt: skip
        assert main.run(["doctor", "--server", address, "--model", str(model), "--json"]) == code
        findings = json.loads(capsys.readouterr().out)["findings"]
        said = [finding for finding in findings if finding["check"] == "prompt"]
        assert {finding["level"] for finding in said} == {level}
        assert any(words in finding["said"] for finding in said), said


@pytest.mark.slow
def test_answers_are_drawn_by_their_seeds_and_margins_are_not_to_be_had(address: str) -> None:
    engine = openai.build(assets.miniature_checkpoint(), server=address, concurrency=1)
    picture, turns = scenes.draw(scenes.make_scene(random.Random(3))), dialogue(engine.dialogue.profile, "What is it?")

    def ask(sampling: Sampling | None = None, margins: bool = False) -> Request:
        return Request(turns, {"full": picture}, 12, sampling=sampling, margins=margins)

    drawn = engine.generate([ask(Sampling(3.0, 1.0, seed)) for seed in (1, 2, 3, 4, 5, 1, 2, 3, 4, 5)])
    assert [reply.error for reply in drawn] == [None] * 10
    assert [reply.text for reply in drawn[:5]] == [reply.text for reply in drawn[5:]]
    assert len({reply.text for reply in drawn}) > 3
    greedy, sure, without = engine.generate([ask(), ask(Sampling(1.0, 1e-9, 1)), ask(margins=True)])
    assert greedy.text == sure.text
    assert "log-probabilities" in str(without.error)
