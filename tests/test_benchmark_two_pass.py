"""benchmarks/two_pass.py in a tiny shape: every arm runs, the engine answers as the plain loop does, counts are PyTorch's."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import evidence_arms
import random_models
import two_pass

ARMS = (two_pass.ONE, two_pass.REUSE, two_pass.SHARED, two_pass.LOOP)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", random_models.FAMILIES)
def test_every_arm_runs_and_the_engine_answers_as_the_loop(family: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        two_pass.main(["--quick", "--rounds", "1", "--family", family])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    compared = next(line for line in lines if "different answers" in line)
    assert int(compared.split()[0]) > 2, "most answers differ, so that equal ones say something"
    for arm in ARMS:
        seconds, ratio, *_ = next(line for line in lines if line.startswith(arm.ljust(29))).removeprefix(arm).split()
        assert min(float(seconds), float(ratio)) > 0


@pytest.mark.parametrize("family", random_models.FAMILIES)
def test_arms_beside_both_passes_answer_as_they_do_alone(family: str, capsys: pytest.CaptureFixture[str]):
    assert evidence_arms.main(["--quick", "--family", family]) == 0
    assert "20 answers are those of runs of each arm alone" in capsys.readouterr().out


def test_an_engine_that_answers_otherwise_stops_it(monkeypatch: pytest.MonkeyPatch):
    shape = replace(random_models.Shape.small(256, 2), side=84)
    generate = two_pass.HfEngine.generate
    monkeypatch.setattr(two_pass.HfEngine, "generate", lambda self, requests: generate(self, requests)[::-1])
    with pytest.raises(RuntimeError, match="by the loop"):
        two_pass.compared(shape)


@pytest.mark.parametrize("family", random_models.FAMILIES)
def test_counted_operations_are_those_of_pytorch(family: str):
    full = random_models.FAMILIES[family]
    shape = replace(type(full).small(256, 2), side=2 * full.quick_side)
    model = two_pass.made(shape, "cpu", "float32")
    shape = two_pass.built(shape, model)
    model.model.set_attn_implementation("eager")  # the counter knows no CPU kernel of scaled_dot_product_attention
    picture = model.picture(Image.new("RGB", shape.picture_size))
    with FlopCounterMode(display=False) as tower:
        model.features([picture])
    assert tower.get_total_flops() == pytest.approx(shape.picture(), rel=0.01)
    ids = torch.full((1, 50), 9)
    with torch.no_grad(), FlopCounterMode(display=False) as decoder:
        model.model(input_ids=ids, logits_to_keep=1)
    # Eager attention also computes what the causal mask then hides.
    hidden = 4 * shape.width * shape.layers * (50 * 50 - 50 * 51 / 2)
    assert decoder.get_total_flops() - hidden == pytest.approx(shape.run(0, 50) + shape.generate(50, 1), rel=0.01)


@pytest.mark.parametrize("family", random_models.FAMILIES)
def test_a_picture_takes_the_positions_of_its_shape(family: str):
    full = random_models.FAMILIES[family]
    shape = replace(type(full).small(256, 2), side=full.quick_side)
    model = two_pass.made(shape, "cpu", "float32")
    picture = model.picture(Image.new("RGB", shape.picture_size))
    prompt = model.prompt(two_pass.dialogue(model.profile, "What?", chain=False), lambda _: picture)
    assert [span.tokens for span in prompt.spans] == [shape.image_tokens]


def test_pictures_are_prepared_and_encoded_once_and_a_dialogue_is_rendered_once(monkeypatch: pytest.MonkeyPatch):
    full = random_models.FAMILIES["qwen2_5_vl"]
    shape = replace(type(full).small(256, 2), side=full.quick_side)
    model = two_pass.made(shape, "cpu", "float32")
    calls: Counter[str] = Counter()
    for name in ("picture", "prompt", "_features"):
        monkeypatch.setattr(type(model), name, counted(getattr(type(model), name), calls, name))
    two_pass.Arms(model, 8, 8, shape.picture_size).engine(two_pass.SHARED, two_pass.CHAIN, shared=True)
    assert calls == {"picture": 1 + 8, "_features": 1 + 8, "prompt": 8 + 8}


def counted(method: Callable[..., Any], calls: Counter[str], name: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        calls[name] += 1
        return method(*arguments)

    return run
