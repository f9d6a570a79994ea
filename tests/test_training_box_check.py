"""The data doctor on boxes in other frames and on the pixel budget: by functions, and end to end for two families."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from box_world import pictures, places, written
from PIL import Image
from reporters import Told
from tiny_llava import make_checkpoint

from cos_core import training
from cos_core.data.datasets import read_examples
from cos_core.dialogue.box_conventions import IMAGE, SQUARE, THOUSANDTHS, in_order, of_style
from cos_core.dialogue.prompts import BoxStyle, load_profile
from cos_core.files.jsonl import read_lines
from cos_core.geometry import Box, full_box
from cos_core.models import families
from cos_core.store.annotations import Store
from cos_core.training import TrainConfig
from cos_core.training.box_check import FRAME, ORDER, TEXT_FRAME, BoxCheck, family_styles
from cos_core.training.budget_check import PictureTokens, Shown, share_of, way_out
from cos_core.training.samples import Region, Sample
from cos_core.types import Annotation, Example

PLAIN = "[{x0}, {y0}, {x1}, {y1}]"
CHAT = load_profile("chat")


def text_of(numbers: np.ndarray, style: BoxStyle) -> str:
    """Four numbers in the order of a style, in its words."""
    if style.unit == "fraction":
        shown = [f"{number:.3f}" for number in numbers]
    else:
        shown = [f"{int(number):04}" if style.unit == "1024th" else str(int(number)) for number in numbers]
    first, *between = style.literals
    return first + "".join(number + gap for number, gap in zip(shown, between, strict=True))


def sample(i: int, answer: str, region: Region | None = None, gold: Box | None = None, own: bool = True) -> Sample:
    example = Example(f"e{i}", "d", f"{i}.png", "Where is it?", (answer,), line=i + 1, gold=gold)
    return Sample(example.id, (example,), (region,), (0,), () if own else (0,))


def checked(style: BoxStyle, texts: BoxStyle, mix: str, count: int = 100, seed: int = 1) -> list[Any]:
    """The findings about `count` texts with boxes written as `texts`, for a model that writes them in `style`."""
    random = np.random.default_rng(seed)
    shown = pictures(random, count, mix)
    numbers = written(places(random, count, "uniform"), shown, of_style(texts)).numbers
    check = BoxCheck(CHAT.with_boxes(style), "the family", regions=False)
    for i, row in enumerate(numbers):
        wide, high, seen_wide, seen_high = (int(v) for v in shown[i])
        text = f"A cup is at {text_of(row, texts)}."
        check.add(sample(i, text), lambda _, i=i: (Path("d"), i + 1, f"e{i}"), (wide, high), (seen_wide, seen_high))
    return list(check.findings())


@pytest.mark.parametrize("texts", family_styles(), ids=lambda style: style.text or style.frame)
@pytest.mark.parametrize("style", family_styles(), ids=lambda style: style.text or style.frame)
def test_texts_in_every_familys_boxes_for_every_other_family(style: BoxStyle, texts: BoxStyle) -> None:
    """Silent where both mean the same by their numbers; else one fault that names both and the first box."""
    same = of_style(style).name == of_style(texts).name
    for mix in ("photos", "large", "mixed"):
        found = checked(style, texts, mix)
        assert len(found) == (not same), mix
        for finding in found:
            assert (finding.kind, finding.fault, finding.line) == (TEXT_FRAME, True, finding.line)
            assert of_style(style).name in finding.reason
            assert of_style(texts).name in finding.reason


def test_a_few_boxes_in_the_words_of_another_family_are_a_remark() -> None:
    paligemma, qwen3 = families.of_type("paligemma").boxes, families.of_type("qwen3_vl").boxes
    (finding,) = checked(qwen3, paligemma, "photos", count=5)
    assert not finding.fault
    assert "PaliGemma" in finding.reason
    assert checked(qwen3, paligemma, "photos", count=2) == []


def test_lists_of_small_numbers_are_no_boxes() -> None:
    check = BoxCheck(CHAT.with_boxes(families.of_type("llava").boxes), "LLaVA-1.5", regions=False)
    for i in range(60):
        listed = f"The list is [{i % 3}, {i % 4 + 2}, {i % 5 + 4}, {i % 7 + 6}]."
        check.add(sample(i, listed), lambda _, i=i: (Path("d"), i + 1, f"e{i}"), (640, 480))
    assert list(check.findings()) == []


def region_findings(true: Any, *, gold: bool = False, count: int = 100, own: bool = True) -> list[Any]:
    random = np.random.default_rng(2)
    shown = pictures(random, count, "photos")
    fractions = places(random, count, "centred")
    check = BoxCheck(CHAT.with_boxes(BoxStyle()), "the family", regions=True)
    for i, row in enumerate(written(fractions, shown, true).numbers):
        known = Box(*map(float, fractions[i])) if gold else None
        one = sample(i, "a cup", Box(*map(float, row)), known, own)
        check.add(one, lambda _, i=i: (Path("d"), i + 1, f"e{i}"), (int(shown[i, 0]), int(shown[i, 1])))
    return list(check.findings())


def test_regions_in_the_padded_square_and_beside_gold_regions() -> None:
    assert region_findings(IMAGE) == region_findings(IMAGE, gold=True) == []
    (finding,) = region_findings(SQUARE)
    assert (finding.kind, finding.fault, finding.line) == (FRAME, True, 1)
    assert region_findings(SQUARE, own=False) == [], "the whole picture in the place of a missing region says nothing"
    (finding,) = region_findings(SQUARE, gold=True, count=30)
    assert SQUARE.name in finding.reason
    swapped = in_order(IMAGE, "y0x0y1x1")
    (finding,) = region_findings(swapped, gold=True, count=30)
    assert swapped.name in finding.reason
    assert {finding.kind for finding in region_findings(swapped)} <= {ORDER}, "without gold regions it may stay unseen"


def test_what_is_said_of_the_budget() -> None:
    tokens = PictureTokens(" (--max-pixels 7056)")
    assert str(tokens) == tokens.too_small() == ""
    for one in (Shown(312, 64), Shown(720, 300, small=True), Shown(1296, 90), Shown(720)):
        tokens.add(one)
    said = str(tokens)
    assert all(number in said for number in ("312", "1,296", "720", "64", "300", "90", "--max-pixels 7056"))
    assert "1 of 3 regions (33 %)" in tokens.too_small()
    assert share_of(Box(0, 0, 0.5, 0.5), (200, 100)) == 0.25
    assert share_of(full_box("square"), (200, 100)) == 2.0
    assert "--max-pixels" in way_out(families.of_type("qwen2_5_vl"))
    assert "--max-tiles" in way_out(families.of_type("internvl"))
    assert "--longest-edge" in way_out(families.of_type("smolvlm"))
    assert "--max-" not in way_out(families.of_type("llava")).replace("--max-length", "")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Forty pictures of three sizes, one of them a strip, each with a question whose answer is a box in thousandths."""
    random = np.random.default_rng(3)
    sizes = [(120, 90), (90, 120), (150, 80)]
    thousandths = (1000 * places(random, 40, "uniform")).round().astype(int)
    (tmp_path / "images").mkdir()
    lines = []
    for i, box in enumerate(thousandths.tolist()):
        size = (2, 900) if i == 7 else sizes[i % 3]
        Image.linear_gradient("L").resize(size).convert("RGB").save(tmp_path / "images" / f"{i}.png")
        answer = json.dumps({"bbox_2d": box, "label": "cup"})
        turns = [{"from": "human", "value": "<image>\nWhere is it?"}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps({"id": str(i), "image": f"{i}.png", "conversations": turns}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    with Store.create_or_resume(tmp_path / "store", "f", {}) as store:
        for i, example in enumerate(read_examples(tmp_path / "data.jsonl")):
            x, y, side = *(float(v) for v in random.uniform(0, 0.5, 2)), 0.01 if i == 3 else 0.45
            store.put_many([Annotation(example.id, Box(x, y, x + side, y + side), 1.0, "p", "f", image=example.image)])
    return tmp_path


def examined(world: Path, model: Path, **changes: Any) -> tuple[list[dict[str, Any]], Told]:
    settings: dict[str, Any] = {"max_length": 4000, "max_faults": 1000, **changes}
    paths = {"data": world / "data.jsonl", "images": world / "images", "store": world / "store", "out": world / "out"}
    told = Told()
    training.run(TrainConfig(model=str(model), device="cpu", check_only=True, **paths, **settings), told)
    return [record for _, record in read_lines(world / "out" / "check.jsonl")], told


def test_qwen_is_trained_on_boxes_of_its_successor(world: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    found, told = examined(world, tiny_checkpoint("qwen2_5_vl"))
    frames = [record for record in found if record["kind"] == TEXT_FRAME]
    assert [(record["line"], record["fault"]) for record in frames] == [(1, True)]
    assert THOUSANDTHS.name in frames[0]["reason"]
    assert "Qwen2.5-VL" in frames[0]["reason"]
    assert [record["line"] for record in found if record["kind"] == "refused picture"] == [8], "2 x 900 pixels"
    assert [record["line"] for record in found if record["kind"] == "regions below one image token"] == [4]
    budget = [line for line in told.lines if line.startswith("pictures take ")]
    assert len(budget) == 1
    assert "--max-pixels" in budget[0]


def test_its_successor_is_content_with_them(world: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    found, _ = examined(world, tiny_checkpoint("qwen3_vl"))
    assert {record["kind"] for record in found} == {"refused picture", "regions below one image token"}


def test_llava_is_trained_on_boxes_of_qwen(world: Path, tmp_path: Path) -> None:
    found, told = examined(world, make_checkpoint(tmp_path / "model"))
    (frame,) = [record for record in found if record["kind"] == TEXT_FRAME]
    assert SQUARE.name in frame["reason"]
    assert THOUSANDTHS.name in frame["reason"]
    assert not [record for record in found if record["kind"] == "refused picture"], "it takes any shape"
    assert any(line.startswith("pictures take 16 tokens each") for line in told.lines)


def test_samples_that_are_too_long_name_the_familys_option(world: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    found, told = examined(world, tiny_checkpoint("qwen2_5_vl"), max_length=60)
    cut = [record for record in found if record["kind"] == "tokens"]
    assert len(cut) == 39
    assert all("--max-pixels" in record["reason"] for record in cut)
    assert any(line.startswith("pictures take ") for line in told.lines), "the budget is said where it is needed most"
