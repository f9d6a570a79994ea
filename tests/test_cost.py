"""What answers cost, by hand, and against the FLOPs that torch counts while the engine answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import scored_runs
from two_passes import QUIET, make_config, stored

from cos_core import infer
from cos_core.engines.scripted import ScriptedEngine
from cos_core.files import manifest
from cos_core.infer import InferConfig, model_flops
from cos_core.infer.settings import setting
from cos_core.models.flops import PictureFlops
from cos_core.scoring import cost
from cos_core.scoring.cost import AnswerFlops, Cost
from cos_core.types import Example, ImageSlot, Prediction, Sample, Turn

TWO_PASSES = {"pass1_in": 100, "pass1_out": 10, "pass1_steps": 4, "pass2_in": 200, "pass2_out": 5}
PLAIN = {"plain_in": 90, "plain_out": 2}
ONE_SIZE = AnswerFlops(position=100.0, word=3.0, square=2.0, picture=PictureFlops(each=1e6))


def answer(tokens: Mapping[str, int], **more: Any) -> Prediction:
    return Prediction("q", "red", tokens=tokens, **more)


def flops(prediction: Prediction, model: AnswerFlops) -> float:
    return float(cost.flops_of(cost.token_table([prediction]), model).sum())


def test_tokens_are_those_of_all_passes_and_samples() -> None:
    samples = tuple(Sample("red", tokens=TWO_PASSES) for _ in range(3))
    for prediction, sent, written in (
        (answer(TWO_PASSES), 300, 15),
        (answer({**TWO_PASSES, **PLAIN}), 390, 17),
        (answer(TWO_PASSES, samples=samples), 900, 45),
        (answer({}), 0, 0),
    ):
        assert cost.mean_cost(cost.token_table([prediction]), 1) == Cost(sent, written, None)
    both = cost.token_table([answer(TWO_PASSES), answer(PLAIN)])
    assert cost.mean_cost(both, 4) == Cost(390 / 4, 17 / 4)


def test_flops_by_hand() -> None:
    """Pass 2 goes on behind the 110 tokens of pass 1; attention is half a square; words are those written."""
    first, second = 100 * 110 + 110**2 + 3 * 10, 100 * (205 - 110) + (205**2 - 110**2) + 3 * 5
    assert flops(answer(TWO_PASSES), ONE_SIZE) == first + second + 2e6
    assert flops(answer(TWO_PASSES, shown="absent"), ONE_SIZE) == first + second + 1e6
    plain = 100 * 92 + 92**2 + 3 * 2
    assert flops(answer({**TWO_PASSES, **PLAIN}), ONE_SIZE) == first + second + plain + 2e6
    assert flops(answer(PLAIN), ONE_SIZE) == plain + 1e6
    anew = AnswerFlops(100.0, 3.0, 2.0, ONE_SIZE.picture, continued=False)
    assert flops(answer(TWO_PASSES), anew) == first + 100 * 205 + 205**2 + 3 * 5 + 2e6
    samples = tuple(Sample("red", tokens=TWO_PASSES) for _ in range(3))
    assert flops(answer(TWO_PASSES, samples=samples), ONE_SIZE) == 3 * (first + second) + 4e6
    assert flops(answer({}), ONE_SIZE) == 0


def test_pictures_of_any_size_cost_their_tokens() -> None:
    """What a prompt has beside its text: 60 image tokens in the first, 160 in the second, of which 100 are the crop's."""
    tower = PictureFlops(token=10.0, square=0.5)
    text = {"plain": 30, "pass1": 40, "pass2": 40}
    model = AnswerFlops(0.0, 0.0, 0.0, tower, text)
    whole, crop = 600 + 0.5 * 60**2, 1000 + 0.5 * 100**2
    assert flops(answer(TWO_PASSES), model) == whole + crop
    assert flops(answer(PLAIN), model) == whole
    assert flops(answer(TWO_PASSES), AnswerFlops(0.0, 0.0, 0.0, tower, text, seen_again=True)) == 2 * whole + crop
    only_second = {"pass2_in": 200, "pass2_out": 5}
    assert flops(answer(only_second), model) == 2 * (800 + 0.5 * 80**2)


def test_records_are_read_back() -> None:
    model = AnswerFlops(1.5, 2.0, 3.0, PictureFlops(token=4.0), {"plain": 3}, continued=False)
    assert cost.recorded_flops({"flops": json.loads(json.dumps(cost.flops_record(model)))}) == model
    assert cost.recorded_flops({"flops": cost.flops_record("too strange")}) == "too strange"
    for nothing in ({}, {"flops": None}, {"flops": {"position": 1}}, {"flops": {**model.to_json(), "new": 1}}):
        assert isinstance(cost.recorded_flops(nothing), str)


def test_a_run_without_a_checkpoint_records_nothing(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    infer.run(config, QUIET, engine=ScriptedEngine({}, "red"))
    assert config.out is not None
    assert set(manifest.read(manifest.path_for(config.out)).results) == {"settings"}


@pytest.mark.parametrize("options", [{"roi": "none"}, {}, {"crop": "absent"}])
def test_flops_are_those_that_torch_counts(tmp_path: Path, options: dict[str, Any]) -> None:
    """The miniature on its engine: within a tenth of what its own layers multiply (masked attention aside)."""
    from torch.utils.flop_counter import FlopCounterMode

    data = scored_runs.folder(tmp_path / "data", questions=1, pictures=1)
    places = {"data": data / "questions.jsonl", "images": data / "images"}
    config = InferConfig(model="miniature", device="cpu", out=tmp_path / "out.jsonl", **places, **options)
    model_flops.recorded(config, setting(config), [Example("q", "toy", None, "what?")])  # measured before, and kept
    with FlopCounterMode(display=False) as counted:
        found = infer.run(config, QUIET)
    model = cost.recorded_flops(found.results)
    assert isinstance(model, AnswerFlops)
    assert model.continued == (not options.get("roi"))
    assert flops(stored(config.out)[0], model) == pytest.approx(counted.get_total_flops(), rel=0.1)


def test_a_family_whose_pictures_vary_says_how_much_of_a_prompt_is_text(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("qwen2_5_vl")
    config = InferConfig(model=folder, device="cpu", gate="all")
    found = model_flops.recorded(config, setting(config), [Example("q", "toy", None, "what colour is the disc?")])
    model = cost.recorded_flops(found)
    assert isinstance(model, AnswerFlops)
    assert model.picture.token > 0
    assert 0 < model.text["plain"] < model.text["pass2"]
    assert 0 < model.text["pass1"] < model.text["pass2"]
    assert model.continued


def test_prompts_are_those_of_the_passes() -> None:
    """By name: which pictures each shows."""

    def pictures(turns: tuple[Turn, ...]) -> list[str]:
        return [part.slot for turn in turns for part in turn.parts if isinstance(part, ImageSlot)]

    def shown(**options: Any) -> dict[str, list[str]]:
        config = InferConfig(model="miniature", device="cpu", **options)
        found = model_flops.prompts(setting(config), Example("q", "toy", None, "what?"))
        return {name: pictures(turns) for name, turns in found.items()}

    assert shown() == {"plain": ["full"], "pass1": ["full"], "pass2": ["full", "roi"]}
    assert shown(roi="none") == {"pass1": ["full"]}
    assert shown(roi="center") == {"plain": ["full"], "pass2": ["full", "roi"]}
    assert shown(crop="absent")["pass2"] == ["full"]
    assert shown(box_text="none")["pass2"] == ["full", "roi"]
    assert shown(roi="relevance") == {"plain": ["full"], "pass1": ["full"], "pass2": ["full", "roi"]}


def test_what_cannot_be_measured_says_so(tiny_checkpoint: Callable[..., Path]) -> None:
    config = InferConfig(model=tiny_checkpoint("mllama"), device="cpu", roi="none")
    found = model_flops.recorded(config, setting(config), [Example("q", "toy", None, "what?")])
    assert found["flops"]["not_measured"]
