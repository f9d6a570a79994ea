"""What the crop did: cells and strata by hand, MED's terms, arms together, tokens, and what is said where files are gone."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cos_cli import main
from cos_core.evaluate import EvalConfig, effects
from cos_core.evaluate import compare_runs as compare
from cos_core.evaluate import stage as evaluate
from cos_core.geometry import Box
from cos_core.scoring import arm_effects, facts, statistics
from cos_core.scoring.columns import IdColumn, Scores
from cos_core.scoring.comparison import ScoredRun
from cos_core.scoring.effects import TERMS, Paired, Stratum, paired, terms
from cos_core.scoring.facts import FAILED, ONCE, UNUSABLE, USABLE, Facts
from cos_core.scoring.recorded import UNSAID
from cos_core.types import Example, Prediction, RunManifest, Score

GOLD = Box(0.1, 0.1, 0.4, 0.4)
PLACES = {
    "right": Box(0.1, 0.1, 0.4, 0.4),  # IoU 1, 9 % of the picture
    "half": Box(0.1, 0.1, 0.4, 0.26),  # IoU 0.53, 4.8 %
    "wide": Box(0.0, 0.0, 0.8, 0.8),  # IoU 0.14, 64 %
    "aside": Box(0.5, 0.5, 1.0, 1.0),  # IoU 0, 25 %
}


def question(i: int, per_picture: int = 1) -> Example:
    kind = {"kind": "reading" if i % 2 == 0 else "colour"}
    return Example(
        f"q{i}", "toy", f"{i // per_picture}.png", f"Number {i}?", ("yes",), meta={**kind, "gold": list(GOLD.corners)}
    )


def answered(root: Path, name: str, rows: Sequence[Mapping[str, Any]], **config: Any) -> Path:
    """A scored run of as many questions as `rows`, which are the fields of its predictions; "right" says what is answered."""
    data = root / "data"
    data.mkdir(exist_ok=True)
    examples = [question(i) for i in range(len(rows))]
    (data / "questions.jsonl").write_text("".join(json.dumps(e.to_json()) + "\n" for e in examples))
    folder = root / name
    folder.mkdir()
    lines = []
    for example, row in zip(examples, rows, strict=True):
        fields = {"policy": "from_single_question", "question": example.question, "image": example.image, **row}
        right = fields.pop("right")
        lines.append(json.dumps(Prediction(example.id, "yes" if right else "no", **fields).to_json()) + "\n")
    (folder / "predictions.jsonl").write_text("".join(lines))
    evaluate.run(EvalConfig("scenes", data, folder / "predictions.jsonl", out=folder, replicates=100, **config))
    return folder


def plain(right: Sequence[bool]) -> list[dict[str, Any]]:
    return [{"right": each, "policy": "none"} for each in right]


def looked(place: str, right: bool, **more: Any) -> dict[str, Any]:
    """The fields of an answer after a second look: at one of PLACES, at a fallback ("bad"), or at nothing ("closed")."""
    if place == "bad":
        return {"right": right, "box": Box(0, 0, 1, 1), "box_text": "red", "box_status": "unparsable", **more}
    if place == "closed":
        return {"right": right, "gate": "closed", "plain": "yes", "margin": 2.0, **more}
    return {"right": right, "box": PLACES[place], "box_status": "ok", "gate": more.pop("gate", None), **more}


#           A      B: what its second pass was shown, and whether it is right
BY_HAND = [
    (False, looked("right", True)),
    (False, looked("right", True)),
    (True, looked("right", True)),
    (False, looked("half", False)),
    (True, looked("half", True)),
    (True, looked("wide", False)),
    (True, looked("aside", False)),
    (False, looked("aside", True)),
    (False, looked("bad", True)),
    (True, looked("bad", False)),
    (True, looked("closed", True)),
    (False, looked("closed", False)),
]


def runs_of(*folders: Path) -> list[ScoredRun]:
    return [compare.runs_below(folder)["scenes"] for folder in folders]


def counts(stratum: Stratum | None) -> tuple[int, ...]:
    assert stratum is not None
    return (stratum.n, *(share.n for share in stratum.cells))


@pytest.fixture
def by_hand(tmp_path: Path) -> tuple[Path, Path]:
    a = answered(tmp_path, "a", plain([right for right, _ in BY_HAND]))
    return a, answered(tmp_path, "b", [row for _, row in BY_HAND])


def test_cells_and_strata_by_hand(by_hand: tuple[Path, Path]) -> None:
    a, b = runs_of(*by_hand)
    found = effects.effect(a, b, effects.facts(b), replicates=200)
    # n, fixed, broken, both right, both wrong
    assert counts(found.whole) == (12, 4, 3, 3, 2)
    assert found.whole.net == pytest.approx(1 / 12)
    assert (found.whole.a, found.whole.b) == (0.5, 7 / 12)
    assert (found.test, found.p) == ("exact McNemar", 1.0)  # four against three
    expected = {
        ("box", "box usable"): (8, 3, 2, 2, 1),
        ("box", "box not usable"): (2, 1, 1, 0, 0),
        ("box", "no second look"): (2, 0, 0, 1, 1),
        ("overlap", "IoU at least 0.5"): (5, 2, 0, 2, 1),
        ("overlap", "IoU below 0.5"): (3, 1, 2, 0, 0),
        ("area", "area below 5 %"): (2, 0, 0, 1, 1),
        ("area", "area 5 to 20 %"): (3, 2, 0, 1, 0),
        ("area", "area 20 to 50 %"): (2, 1, 1, 0, 0),
        ("area", "area 50 % or more"): (1, 0, 1, 0, 0),
        ("kind", "reading"): (6, 2, 1, 3, 0),
        ("kind", "colour"): (6, 2, 2, 0, 2),
    }
    assert {(each.kind, each.name): counts(each) for each in found.strata} == expected
    assert found.stratum("box", "no answer") is None
    for each in (found.whole, *found.strata):
        assert each.net == pytest.approx((each.fixed.n - each.broken.n) / each.n)
        assert each.net == pytest.approx(each.b - each.a)
        assert each.low <= each.net <= each.high
    # One question a picture: Wilson's interval of 4 of 12.
    low, high = statistics.wilson(4, 12)
    assert (found.whole.fixed.low, found.whole.fixed.high) == pytest.approx((low, high))
    assert found.whole.fixed.share == pytest.approx(4 / 12)


def test_terms_by_hand(by_hand: tuple[Path, Path]) -> None:
    a, b = runs_of(*by_hand)
    found = effects.effect(a, b, effects.facts(b), replicates=200)
    # A had six wrong and six right; a usable box's region was shown in four of each.
    factors = {each.name: (each.mass, each.policy, each.quality) for each in found.terms}
    assert factors == {
        "call gain": pytest.approx((6 / 12, 4 / 6, 3 / 4)),
        "schema gain": pytest.approx((6 / 12, 2 / 6, 1 / 2)),
        "call harm": pytest.approx((6 / 12, 4 / 6, 2 / 4)),
        "schema harm": pytest.approx((6 / 12, 2 / 6, 1 / 2)),
    }
    assert tuple(factors) == TERMS
    assert sum(each.signed()[0] for each in found.terms) == pytest.approx(found.whole.net, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_terms_add_up_whatever_the_values(seed: int) -> None:
    """Right and wrong, values between, and values beyond 1: gains less harms are the difference, and each is its product."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    levels = [np.array([0.0, 1.0]), np.linspace(0, 1, 11), np.array([-1.0, 0.0, 2.0, 5.0])][seed % 3]
    values = Paired(_scores(n, 3), rng.choice(levels, n), rng.choice(levels, n))
    called = rng.random(n) < rng.random()
    found = terms(values, called, replicates=100)
    assert math.fsum(each.signed()[0] for each in found) == pytest.approx(float((values.b - values.a).mean()), abs=1e-12)
    for each in found:
        assert each.value >= 0
        factors = (each.mass, each.policy, each.quality)
        if all(map(math.isfinite, factors)):
            assert math.prod(factors) == pytest.approx(each.value, abs=1e-12)
        else:
            assert each.value == 0


def test_an_arm_without_a_call_has_no_call_terms(tmp_path: Path) -> None:
    a = answered(tmp_path, "a", plain([True, False, True, False]))
    rows = [looked("right", right, shown="absent") for right in (True, True, False, False)]
    first, b = runs_of(a, answered(tmp_path, "b", rows))
    known = effects.facts(b)
    assert (known.looks.tolist(), known.called.tolist()) == ([USABLE] * 4, [False] * 4)
    found = effects.effect(first, b, known, replicates=100)
    assert [each.value for each in found.terms] == [0, 0.25, 0, 0.25]
    usable = found.stratum("box", "box usable")
    assert usable is not None
    assert (usable.low, usable.high) == (found.whole.low, found.whole.high)
    assert (found.terms[0].low, found.terms[0].high) == (None, None)


# --- intervals -------------------------------------------------------------------------------------------------------


def _scores(n: int, per_picture: int) -> Scores:
    return Scores(Score(f"q{i}", 0.0, groups={"image": f"{i // per_picture}.png"}) for i in range(n))


@pytest.mark.parametrize(
    ("pictures", "per_picture", "fixed", "broken", "together"),
    [(20, 1, 0.10, 0.05, 0.0), (40, 1, 0.05, 0.0, 0.0), (30, 3, 0.10, 0.05, 0.5), (8, 5, 0.2, 0.1, 0.5)],
)
def test_the_interval_of_net_holds_the_truth(
    pictures: int, per_picture: int, fixed: float, broken: float, together: float
) -> None:
    """Small strata, rare changes, and questions that change together with their picture: at least 93 of 100 intervals."""
    rng = np.random.default_rng(1)
    index = np.repeat(np.arange(pictures), per_picture)
    runs, holds = 300, 0
    for seed in range(runs):
        own, shared = rng.random((pictures, per_picture)), rng.random((pictures, 1))
        drawn = np.where(rng.random((pictures, 1)) < together, shared, own).ravel()
        gap = np.where(drawn < fixed, 1.0, np.where(drawn < fixed + broken, -1.0, 0.0))
        low, high = statistics.paired_mean_interval(gap, index, replicates=400, seed=seed)
        holds += low <= fixed - broken <= high
    assert holds / runs >= 0.93


def test_an_interval_of_few_changes() -> None:
    """Nothing changed is not certain, and three changes all one way are not significant (McNemar's p is 1/4)."""
    nothing = statistics.paired_mean_interval(np.zeros(40), np.arange(40))
    assert -0.15 < nothing.low < 0 < nothing.high < 0.15
    three = statistics.paired_mean_interval(np.array([1.0] * 3 + [0.0] * 37), np.arange(40))
    assert three.low <= 0 < 3 / 40 < three.high
    assert all(map(math.isnan, statistics.paired_mean_interval(np.zeros(0), np.zeros(0, dtype=np.intp))))
    # Of many pictures the two that are added change nothing: the plain bootstrap's interval.
    gap = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 2000, p=[0.1, 0.7, 0.2])
    columns = np.stack([gap, np.ones(2000)], axis=1)
    (bootstrap,) = statistics.bootstrap([(columns, statistics.ratio)], np.arange(2000))
    assert statistics.paired_mean_interval(gap, np.arange(2000)) == pytest.approx(bootstrap, abs=0.003)


# --- facts -----------------------------------------------------------------------------------------------------------


def test_facts_of_predictions() -> None:
    ids = IdColumn([f"q{i}" for i in range(8)])
    tokens = {"pass1_in": 5, "pass2_in": 70}
    rows = [
        Prediction("q0", "a", PLACES["half"], "[..]", "ok", "from_single_question", tokens=tokens),
        Prediction("q1", "a", Box(0, 0, 1, 1), "red", "unparsable", "from_single_question", tokens=tokens),
        Prediction("q2", None, None, "red", "unparsable", "from_single_question", error="skipped as asked"),
        Prediction("q3", "a", policy="none", tokens={"pass1_in": 5}),
        Prediction("q4", "a", PLACES["half"], "[..]", "ok", gate="closed", tokens={"plain_in": 5}),
        Prediction("q5", None, error="pass 2: no server"),
        Prediction("q6", "a", PLACES["wide"], policy="center_crop", shown="swap: 3.png", tokens=tokens),
        Prediction("q0", None, error="asked again in vain"),
        Prediction("other", "a"),
    ]
    known = facts.collect(ids, rows)
    assert (known.known, known.looked, known.remarks) == (True, True, ())
    assert known.looks.tolist() == [USABLE, UNUSABLE, UNUSABLE, ONCE, ONCE, FAILED, USABLE, FAILED]
    assert known.called.tolist() == [True, False, False, False, False, False, True, False]
    assert known.area[[0, 6]].tolist() == pytest.approx([0.048, 0.64])
    assert np.isnan(known.area[[1, 2, 3, 4, 5, 7]]).all()
    assert known.prompt.tolist() == [70, 70, -1, -1, -1, -1, 70, -1]
    some = known.take(IdColumn(["q6", "q3"]))
    assert (some.looks.tolist(), some.prompt.tolist()) == ([USABLE, ONCE], [70, -1])


def test_answers_that_tell_nothing() -> None:
    ids = IdColumn(["q0"])
    for prediction, word in ((Prediction("1", "a", PLACES["half"]), "ids"), (Prediction("q0", "a", profile=UNSAID), "boxes")):
        known = facts.collect(ids, [prediction])
        assert not known.known
        assert word in known.remarks[0]


def test_missing_and_changed_answers_are_said(by_hand: tuple[Path, Path]) -> None:
    a, b = runs_of(*by_hand)
    file = by_hand[1] / "predictions.jsonl"
    kept = file.read_bytes()
    whole = effects.effect(a, b, effects.facts(b), replicates=100)

    def left_out() -> effects.Effect:
        found = effects.effect(a, b, effects.facts(b), replicates=100)
        assert found.whole == whole.whole
        assert ({each.kind for each in found.strata}, found.terms) == ({"kind"}, ())
        (remark,) = found.remarks
        assert str(file) in remark
        return found

    file.write_bytes(kept + b"\n")
    left_out()
    file.unlink()
    left_out()
    (by_hand[1] / "regions.jsonl").unlink()
    left_out()
    file.write_bytes(kept)
    found = effects.effect(a, b, effects.facts(b), replicates=100)
    assert {each.kind for each in whole.strata} - {each.kind for each in found.strata} == {"overlap"}


def test_a_run_of_one_pass_is_known_without_its_answers(by_hand: tuple[Path, Path]) -> None:
    (by_hand[0] / "predictions.jsonl").unlink()
    known = effects.facts(runs_of(by_hand[0])[0])
    assert (known.known, known.looked, known.remarks) == (True, False, ())
    assert set(known.looks.tolist()) == {ONCE}


def test_a_moved_folder_still_tells(by_hand: tuple[Path, Path]) -> None:
    moved = by_hand[1].rename(by_hand[1].with_name("moved"))
    assert effects.facts(runs_of(moved)[0]).looked


def test_groups_with_too_many_values_are_left_out() -> None:
    names = [f"word {i}" for i in range(30)]
    scores = [
        [Score(f"q{i}", float(i % side == 0), groups={"image": str(i), "word": names[i]}) for i in range(30)] for side in (2, 3)
    ]
    run = RunManifest("eval", "complete", {"benchmark": "scenes"}, "f", {}, results={"benchmark": "scenes"})
    a, b = (ScoredRun(Path(name), run, rows) for name, rows in zip("ab", scores, strict=True))
    found = effects.effect(a, b, facts.nothing(IdColumn([f"q{i}" for i in range(30)])), replicates=100)
    assert found.strata == ()
    assert all(fact in found.remarks[0] for fact in ("'word'", "30"))


# --- arms together ---------------------------------------------------------------------------------------------------


def arms(tmp_path: Path, n: int = 60) -> dict[str, Path]:
    """One pass, the box without its picture, the model's own, and noise that costs one token more in every second question."""
    rng = random.Random(5)
    rates = {"none": 0.5, "absent": 0.4, "model": 0.8, "noise": 0.5}
    folders = {}
    for name, rate in rates.items():
        rows = []
        for i in range(n):
            right = rng.random() < rate
            tokens = {"pass1_in": 9, "pass2_in": 70 + (name == "noise" and i % 2)}
            shown = name if name in ("absent", "noise") else None
            rows.append(
                {"right": right, "policy": "none"} if name == "none" else looked("half", right, shown=shown, tokens=tokens)
            )
        folders[name] = answered(tmp_path, name, rows)
    return folders


def test_a_split_by_arms(tmp_path: Path) -> None:
    folders = arms(tmp_path)
    told = effects.told(compare.compare(list(folders.values()), replicates=200), replicates=200)
    (split,) = told.splits
    runs = dict(zip(folders, runs_of(*folders.values()), strict=True))
    assert (split.schema.of, split.schema.over) == (str(folders["absent"]), str(folders["none"]))
    assert (split.call.of, split.call.over) == (str(folders["model"]), str(folders["absent"]))
    for step, (of, over) in ((split.schema, ("absent", "none")), (split.call, ("model", "absent"))):
        gap = paired(runs[over], runs[of]).gap
        assert (step.gain.n, step.harm.n) == (int((gap > 0).sum()), int((gap < 0).sum()))
        assert step.gain.share - step.harm.share == pytest.approx(step.net)
        assert step.low <= step.net <= step.high
        assert step.sides()["harm"][0] == -step.harm.share
    whole = paired(runs["none"], runs["model"]).gap.mean()
    assert split.schema.net + split.call.net == pytest.approx(whole)
    assert split.n == 60


def test_arms_say_when_they_do_not_cost_alike(tmp_path: Path) -> None:
    folders = arms(tmp_path)
    outcome = compare.compare(list(folders.values()), replicates=100)
    (gap,) = effects.told(outcome, replicates=100).tokens
    assert (gap.arm, gap.model) == (str(folders["noise"]), str(folders["model"]))
    assert (gap.n, gap.differ, gap.mean, gap.mean_model) == (60, 30, 70.5, 70.0)
    assert all(fact in gap.words() for fact in ("30", "70.5"))
    runs = {name: run for name, run in zip(folders, runs_of(*folders.values()), strict=True) if name != "model"}
    assert not list(arm_effects.token_gaps(runs, {name: facts.read(run) for name, run in runs.items()}))


# --- protocol --------------------------------------------------------------------------------------------------------


def _settings_beside(folder: Path, **settings: Any) -> None:
    record = RunManifest("infer", "complete", {}, "f", {"ok": 1}, results={"settings": settings})
    (folder / "predictions.jsonl.manifest.json").write_text(json.dumps(record.to_json()))


def _protocol(root: Path, rows: Sequence[Mapping[str, Any]], **settings: Any) -> dict[str, Any]:
    root.mkdir()
    folder = answered(root, "run", rows)
    _settings_beside(folder, **settings)
    scored = evaluate.run(EvalConfig("scenes", root / "data", folder / "predictions.jsonl", replicates=100))
    names = ("crop", "box_text", "global_scale", "gate")
    return {key: value for key, value in scored.results["protocol"].items() if key in names}


def test_the_protocol_says_what_the_second_pass_was_shown(tmp_path: Path) -> None:
    own, black = looked("half", True), looked("half", True, shown="black")
    swapped = looked("half", True, shown="swap: 7.png")
    opened, closed = looked("half", True, gate="open"), looked("closed", True)
    cases: list[tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = [
        ([own, own], {}, {}),
        ([own], {"crop": "region", "box_text": "written", "global_scale": 1.0}, {}),
        ([black, black], {"crop": "black"}, {"crop": "black"}),
        ([swapped], {}, {"crop": "swap"}),
        ([own, black], {"crop": "black"}, {"crop": ["black", "region"]}),
        # A run without any second pass is still one of its setting.
        (plain([True]), {"crop": "black"}, {"crop": "black"}),
        ([own], {"box_text": "none", "global_scale": 0.25}, {"box_text": "none", "global_scale": 0.25}),
        ([opened, closed], {"gate": "margin:1"}, {"gate": "margin:1"}),
        ([opened, own], {"gate": "all"}, {"gate": ["all", "none"]}),
        ([opened], {}, {"gate": "unknown"}),
    ]
    for number, (rows, settings, expected) in enumerate(cases):
        assert _protocol(tmp_path / str(number), rows, **settings) == expected, (rows, settings)


def test_answers_in_parts_have_the_settings_of_a_part(tmp_path: Path) -> None:
    folder = answered(tmp_path, "run", [looked("half", True)])
    record = RunManifest("infer", "complete", {}, "f", {"ok": 1}, results={"settings": {"global_scale": 0.25}})
    (folder / "predictions.1-of-2.jsonl.manifest.json").write_text(json.dumps(record.to_json()))
    scored = evaluate.run(EvalConfig("scenes", tmp_path / "data", folder / "predictions.jsonl", replicates=100))
    assert scored.results["protocol"]["global_scale"] == 0.25


def test_arms_are_compared_by_these_fields(tmp_path: Path) -> None:
    folders = [answered(tmp_path, "own", [looked("half", True)] * 4)]
    folders.append(answered(tmp_path, "black", [looked("half", False, shown="black")] * 4))
    (found,) = compare.compare(folders, replicates=100).comparisons
    assert (found.differs, len(found.lost)) == ([], 4)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = arms(tmp_path)
    paths = [str(path) for path in folders.values()]
    assert main.run(["eval", "compare", *paths, "--replicates", "100", "--flips", "0"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "fixed",
        "both wrong",
        "box usable",
        "IoU at least 0.5",
        "kind: reading",
        "call gain",
        "schema harm",
        "30 of 60",
    ):
        assert words in shown
    tables = [line for line in shown.splitlines() if str(tmp_path) not in line]
    assert max(map(len, tables)) <= 80
    assert main.run(["eval", "compare", *paths, "--replicates", "100", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [Path(each["b"]).name for each in record["effects"]] == ["absent", "model", "noise"]
    model = record["effects"][1]
    assert model["whole"]["n"] == 60
    assert {each["name"] for each in model["terms"]} == set(TERMS)
    gained = sum(each["value"] * (-1 if "harm" in each["name"] else 1) for each in model["terms"])
    assert gained == pytest.approx(model["whole"]["net"])
    assert (len(record["splits"]), len(record["tokens"])) == (1, 1)


def test_runs_without_boxes_stay_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [answered(tmp_path, name, plain([i % side == 0 for i in range(12)])) for name, side in (("a", 2), ("b", 3))]
    assert main.run(["eval", "compare", *map(str, pair), "--flips", "0"]) == 0
    shown = capsys.readouterr().out
    assert "of 12 questions: fixed 2, broken 4, both right 2, both wrong 4" in shown
    assert not any(words in shown for words in ("call gain", "kind: reading"))


def test_runs_without_a_common_question_have_no_figures() -> None:
    run = RunManifest("eval", "complete", {"benchmark": "scenes"}, "f", {}, results={"benchmark": "scenes"})
    a, b = (ScoredRun(Path(name), run, [Score(name, 1.0)]) for name in "ab")
    found = effects.effect(a, b, facts.nothing(IdColumn(["b"])), replicates=100).to_json()
    assert (found["whole"]["n"], found["whole"]["net"], found["strata"]) == (0, None, [])
    json.dumps(found, allow_nan=False)


def test_facts_hold_columns_of_one_length(by_hand: tuple[Path, Path]) -> None:
    known: Facts = effects.facts(runs_of(by_hand[1])[0])
    assert {len(column) for column in (known.looks, known.called, known.area, known.iou, known.prompt)} == {len(known.ids)}
