"""The gate's curve of one full run, against runs made with each gate; its controls by hand; its choices and intervals."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scored_runs
from PIL import Image
from two_passes import stored

from cos_cli.evaluate import gate_table
from cos_core import evaluate, infer
from cos_core.dialogue.gate import read_gate
from cos_core.engines.scripted import last_user_text
from cos_core.evaluate import EvalConfig
from cos_core.files import manifest
from cos_core.geometry import Box
from cos_core.infer import InferConfig, stage
from cos_core.interfaces import Benchmark, BenchmarkData, Engine, Reply, Request, SilentReporter
from cos_core.miniature import scenes as miniature
from cos_core.models.flops import PictureFlops
from cos_core.scoring import cost, gate_curve, metrics
from cos_core.scoring.columns import Scores
from cos_core.scoring.gate_curve import Curve, FullRun, Resampling
from cos_core.scoring.metrics import Estimate
from cos_core.scoring.mixture import Mixture
from cos_core.types import Prediction, Score
from cos_core.visualize import gate_section
from cos_core.visualize import run_report as report
from cos_core.visualize.config import ReportConfig

QUIET = SilentReporter()


class Guesser(Engine):
    """Answers question i rightly or wrongly in one pass and in two, as a generator seeded with i says, with a margin that is
    larger for right answers; some boxes cannot be read, and some requests fail."""

    name = "guesser"

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Reply:
        text = last_user_text(request)
        asked = re.findall(r"shape (\d+)\?", "".join(str(part) for turn in request.turns for part in turn.parts))
        # A first pass about the picture alone: the picture's number.
        number = int(asked[0]) if asked else (request.images["full"].getpixel((0, 0))[1] - 30) // 20
        draw = random.Random(number)
        plain, two, sure = draw.random() < 0.5, draw.random() < 0.7, draw.choice([0.5, 1.25, 2.0, draw.random() * 4])
        side = draw.choice([0.25, 0.5, draw.random(), 0.01])
        words = {"tokens_in": 30 + number, "tokens_out": 1 + number % 4}
        if "region of interest" in text:
            box = "nowhere" if number % 6 == 5 else f"[0.000, 0.000, {side:.3f}, {side:.3f}]"
            return Reply("", error="lost") if number == 7 else Reply(box, **words)
        if "roi" in request.images:
            return Reply("", error="lost") if number == 3 else Reply(str(number % 10) if two else "no", 90 + number, 2)
        margins = (9.0, sure + plain) if request.margins else ()
        return Reply(str(number % 10) if plain else "no", 25 + number, 1, margins=margins)


MODEL = cost.AnswerFlops(1000.0, 10.0, 2.5, PictureFlops(token=7.0, square=0.5), {"plain": 20, "pass1": 25, "pass2": 40})


def answered(out: Path, data: Path, gate: str | None, **options: Any) -> None:
    """A run of the guesser under a gate; its manifest says the arithmetic of a model."""
    settings = {"model": "no/model", "engine": "scripted", "gate": gate, "batch_size": 5, **options}
    file = out / "predictions.jsonl"
    infer.run(InferConfig(data=data / "questions.jsonl", images=data / "images", out=file, **settings), QUIET, engine=Guesser())
    record = json.loads(manifest.path_for(file).read_text())
    assert "flops" not in record["results"]
    record["results"]["flops"] = cost.flops_record(MODEL)
    manifest.path_for(file).write_text(json.dumps(record))


def scored(out: Path, data: Path) -> dict[str, Any]:
    return dict(evaluate.run(EvalConfig("scenes", data, out, out, replicates=50)).results)


def predictions(out: Path) -> list[Prediction]:
    return stored(out / "predictions.jsonl")


@pytest.mark.parametrize("roi", ["model", "from-image"])
def test_every_point_of_the_curve_is_a_run_with_that_gate(tmp_path: Path, roi: str) -> None:
    """Answers and tokens of every question, headline, second looks, tokens and FLOPs a question."""
    data = scored_runs.folder(tmp_path / "data", questions=18, pictures=5)
    answered(tmp_path / "all", data, "all", roi=roi)
    full = scored(tmp_path / "all", data)["gate"]
    curves = json.loads((tmp_path / "all" / gate_curve.CURVE).read_text())["curves"]
    both = {each.example_id: each for each in predictions(tmp_path / "all")}
    assert full["cost"]["flops"] > 0
    assert set(curves) == set(gate_curve.KINDS)
    points = [point for curve in curves.values() for point in curve["points"]]
    assert len(points) > 15
    for number, point in enumerate({point["gate"]: point for point in points}.values()):
        out = tmp_path / str(number)
        answered(out, data, point["gate"], roi=roi)
        run = scored(out, data)
        assert run["headline"]["value"] == point["value"], point
        assert run["gate"]["looks"] == point["looks"], point
        assert run["gate"]["cost"] == {name: point[name] for name in ("sent", "written", "flops")}, point
        for each in predictions(out):
            whole = both[each.example_id]
            assert each.answer == (whole.plain if each.gate == "closed" else whole.answer)


def test_the_ends_are_runs_without_a_gate(tmp_path: Path) -> None:
    data = scored_runs.folder(tmp_path / "data", questions=18, pictures=5)
    answered(tmp_path / "all", data, "all")
    full = scored(tmp_path / "all", data)["gate"]
    for name, roi in (("never", "none"), ("always", "model")):
        out = tmp_path / name
        answered(out, data, None, roi=roi)
        # A run of one pass names its prompt after the first pass.
        model = MODEL if roi == "model" else dataclasses.replace(MODEL, text={"pass1": MODEL.text["plain"]})
        found = cost.mean_cost(cost.token_table(predictions(out)), 18, model)
        run = scored(out, data)
        assert "gate" not in run
        assert not (out / gate_curve.CURVE).exists()
        assert run["headline"]["value"] == full[name]["value"]
        assert found.to_json() == pytest.approx({key: full[name][key] for key in ("sent", "written", "flops")})


def test_a_run_that_is_not_full_tells_its_cost_alone(tmp_path: Path) -> None:
    data = scored_runs.folder(tmp_path / "data", questions=12, pictures=4)
    answered(tmp_path / "run", data, "margin:1.5")
    told = scored(tmp_path / "run", data)["gate"]
    assert "not_drawn" in told
    assert "curves" not in told
    assert 0 < told["looks"] < 1
    assert told["cost"]["sent"] > 0


def test_a_full_run_is_told_in_files_terminal_and_report(tmp_path: Path) -> None:
    data = scored_runs.folder(tmp_path / "data", questions=18, pictures=5)
    answered(tmp_path / "all", data, "all")
    results = scored(tmp_path / "all", data)
    curves = json.loads((tmp_path / "all" / gate_curve.CURVE).read_text())["curves"]
    with (tmp_path / "all" / gate_curve.TABLE).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["gate"] for row in rows] == [point["gate"] for curve in curves.values() for point in curve["points"]]
    assert [float(row["flops"]) for row in rows] == [p["flops"] for curve in curves.values() for p in curve["points"]]
    assert {kind: {**curve, "points": None} for kind, curve in curves.items()} == {
        kind: {**curve, "points": None} for kind, curve in results["gate"]["curves"].items()
    }
    shown = "\n".join(gate_table.lines(results["gate"]))
    gates = [row["gate"] for row in results["gate"]["curves"]["margin"]["rows"]]
    assert all(gate in shown for gate in ("one pass", "two passes", *gates[1:-1]))
    gate_section.draw(tmp_path / "all")
    with Image.open(tmp_path / "all" / gate_curve.PLOT) as plot:
        assert min(plot.size) > 300
    out = tmp_path / "report.html"
    report.run(ReportConfig(runs=(tmp_path / "all",), out=out, cards=1), QUIET)
    page = out.read_text()
    assert 'id="gate"' in page
    assert all(row["gate"] in page for curve in results["gate"]["curves"].values() for row in curve["rows"])
    (tmp_path / "all" / gate_curve.CURVE).write_text('{"curves": {"margin": {}}}')
    report.run(ReportConfig(runs=(tmp_path / "all",), out=out, cards=1), QUIET)
    assert gate_curve.CURVE in out.read_text()


def test_a_run_about_one_picture_has_no_intervals_and_is_told_all_the_same(tmp_path: Path) -> None:
    data = scored_runs.folder(tmp_path / "data", questions=9, pictures=1)
    answered(tmp_path / "all", data, "all")
    told = scored(tmp_path / "all", data)["gate"]
    knows = told["curves"]["margin"]["knows"]
    assert knows["value"] is not None
    assert knows["low"] is None
    assert gate_table.lines(told)
    out = tmp_path / "report.html"
    report.run(ReportConfig(runs=(tmp_path / "all",), out=out, cards=1), QUIET)
    assert gate_curve.CURVE not in out.read_text(), "nothing is wrong with it"


def test_a_new_score_takes_the_files_of_a_former_gate_away(tmp_path: Path) -> None:
    data = scored_runs.folder(tmp_path / "data", questions=6, pictures=3)
    answered(tmp_path / "all", data, "all")
    scored(tmp_path / "all", data)
    gate_section.draw(tmp_path / "all")
    scored_runs.scored(tmp_path / "other", data, [True] * 6)
    evaluate.run(EvalConfig("scenes", data, tmp_path / "other" / "predictions.jsonl", tmp_path / "all", replicates=50))
    assert not any((tmp_path / "all" / name).exists() for name in gate_curve.FILES)


def test_questions_without_a_plain_answer_are_counted(tmp_path: Path) -> None:
    """A question whose plain answer failed: what an area gate would have answered is not known, and is counted."""
    rows = [
        Prediction("s0#q0", "0", Box(0, 0, 0.5, 0.5), "x", "ok", plain="0", margin=1.0, gate="open", tokens={"plain_in": 5}),
        Prediction("s1#q0", None, error="plain answer: lost", tokens={"plain_in": 5}),
    ]
    data = scored_runs.folder(tmp_path / "data", questions=2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "predictions.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    told = scored(tmp_path / "run", data)["gate"]
    assert told["plain_failed"] == 1
    assert told["flops_unknown"]
    assert told["always"]["looks"] == 0.5


# --- by hand ---------------------------------------------------------------------------------------------------------


class Means(Benchmark):
    """A benchmark whose headline is the mean, or (`pairs`) the share of pictures whose questions are all right."""

    name = "means"

    def __init__(self, pairs: bool = False) -> None:
        self.pairs = pairs
        self.headline = "all" if pairs else "accuracy"

    def load(self, root: Path) -> BenchmarkData:
        raise AssertionError("the curve is made of scores that are given")

    def score(self, data: BenchmarkData, predictions: Any) -> list[Score]:
        raise AssertionError("the curve is made of scores that are given")

    def metrics(self, data: BenchmarkData, scores: Any) -> dict[str, Any]:
        rows = list(scores)
        return {"accuracy": metrics.mean(rows), "all": self.estimates(data, rows)[0].value()}

    def estimates(self, data: BenchmarkData, scores: Sequence[Score]) -> list[Estimate]:
        if not self.pairs:
            return [metrics.mean_estimate("accuracy", scores)]
        groups = metrics.by_group(scores, "image")
        right = {name: float(all(score.value for score in group)) for name, group in groups.items()}
        columns, seen = np.zeros((len(scores), 2)), set()
        for row, score in enumerate(scores):
            if score.groups["image"] not in seen:
                columns[row] = right[score.groups["image"]], 1.0
                seen.add(score.groups["image"])
        return [Estimate("all", columns, units=[score.groups["image"] for score in scores])]


NO_DATA = BenchmarkData("means", "", (), Path())


def scores(values: Sequence[float], per_picture: int = 1) -> Scores:
    return Scores([Score(f"q{i}", value, groups={"image": f"p{i // per_picture}"}) for i, value in enumerate(values)])


def full_run(plain: Sequence[float], two: Sequence[float], margins: Sequence[float], per_picture: int = 1) -> FullRun:
    mixture = Mixture(Means(), NO_DATA, scores(plain, per_picture), scores(two, per_picture))
    table = np.tile(np.array([10, 20, 50, 1, 5, 1, 1, 1], dtype=np.int64), (len(plain), 1))
    return FullRun(mixture, np.array(margins, dtype=float), np.full(len(plain), 0.25), table)


def curve_of(run: FullRun, kind: gate_curve.Kind = "margin") -> tuple[Curve, gate_curve.Ends]:
    ends = gate_curve.ends(run, None)
    found = gate_curve.curve(kind, run, ends, None)
    assert found is not None
    return found, ends


def test_points_controls_and_knowledge_by_hand() -> None:
    """Four questions: the second look repairs the least sure, breaks the surest, and changes neither of the others."""
    found, ends = curve_of(full_run(plain=[0, 1, 0, 1], two=[1, 1, 0, 0], margins=[0.1, 0.5, 0.9, 2.0]))
    assert [point.gate for point in found.points] == [
        *("margin:0", "margin:0.1", "margin:0.5", "margin:0.9", "margin:2", "margin:inf")
    ]
    assert [point.value for point in found.points] == [0.5, 0.5, 0.75, 0.75, 0.75, 0.5]
    assert [point.looks for point in found.points] == [0, 0, 0.25, 0.5, 0.75, 1]
    assert [point.chance for point in found.points] == [0.5] * 6
    assert [point.cost.sent for point in found.points] == [10, 10, 27.5, 45, 62.5, 80]
    assert [point.cost.written for point in found.points] == [1, 1, 2.5, 4, 5.5, 7]
    assert (ends.never.value, ends.always.value, ends.oracle.value) == (0.5, 0.5, 0.75)
    assert (ends.never.cost, ends.always.cost, ends.oracle.cost) == (
        *(cost.Cost(10, 1), cost.Cost(70, 6)),
        cost.Cost(27.5, 2.5),
    )
    assert gate_curve.knowledge(found, ends, Resampling(100))["value"] == pytest.approx(1.0)
    turned, ends = curve_of(full_run(plain=[0, 1, 0, 1], two=[1, 1, 0, 0], margins=[2.0, 0.9, 0.5, 0.1]))
    assert gate_curve.knowledge(turned, ends, Resampling(100))["value"] == pytest.approx(-1.0)
    equal, ends = curve_of(full_run(plain=[0, 1], two=[0, 1], margins=[1.0, 2.0]))
    assert gate_curve.knowledge(equal, ends, Resampling(100)) == {"value": None, "low": None, "high": None}


def test_settings_are_thinned_and_keep_both_ends() -> None:
    drawn = np.random.default_rng(0)
    margins = np.round(drawn.exponential(2.0, 3000), 3)
    run = dataclasses.replace(full_run(np.ones(3000), np.ones(3000), margins), areas=drawn.random(3000) ** 2)
    for kind in gate_curve.KINDS:
        gates = list(gate_curve.settings(kind, run, most=50))
        looks = [run.looked(gate).mean() for gate in gates]
        assert 40 < len(gates) <= 52
        assert looks == sorted(looks)
        assert looks[0] < 0.01
        assert looks[-1] == 1
        assert max(np.diff(looks)) < 0.06
        assert all(read_gate(gate.text) == gate for gate in gates)


@pytest.mark.parametrize("pairs", [False, True])
def test_mixtures_are_scored_as_the_benchmark_scores_them(pairs: bool) -> None:
    """The quick way and the slow one, against the benchmark on the mixed scores themselves."""
    drawn = np.random.default_rng(1)
    both = [scores(drawn.integers(0, 2, 60).astype(float), 3) for _ in range(2)]
    benchmark = Means(pairs)
    mixture = Mixture(benchmark, NO_DATA, *both)
    for share in (0.0, 0.3, 0.5, 1.0):
        takes = drawn.random(60) < share
        mixed = [both[int(second)][row] for row, second in enumerate(takes)]
        found = mixture.at(takes)
        assert found.value == benchmark.metrics(NO_DATA, mixed)[benchmark.headline]
        assert mixture.statistic(found.sums.sum(axis=0)[None])[0] == pytest.approx(found.value)


def planted(seed: int, knows: float, questions: int = 200) -> tuple[Curve, gate_curve.Ends]:
    """A run in which a share `knows` of the questions has a margin that says whether a second look repairs or breaks it."""
    drawn = np.random.default_rng(seed)
    plain, two = drawn.random(questions) < 0.5, drawn.random(questions) < 0.6
    told = np.where(plain == two, 1.0, np.where(two, 0.0, 2.0)) + drawn.random(questions)
    margins = np.where(drawn.random(questions) < knows, told, 3 * drawn.random(questions))
    return curve_of(full_run(plain.astype(float), two.astype(float), np.round(margins, 3), per_picture=2))


def test_what_a_margin_knows_is_found_with_its_interval() -> None:
    """A margin without knowledge: the interval holds 0 about 95 times in a hundred. With some, it lies above."""
    without = [gate_curve.knowledge(*planted(seed, 0.0), Resampling(300, seed)) for seed in range(20)]
    assert sum(each["low"] <= 0 <= each["high"] for each in without) >= 17
    assert abs(np.mean([each["value"] for each in without])) < 0.08
    half = gate_curve.knowledge(*planted(0, 0.5), Resampling(300))
    assert half["low"] > 0.2
    assert half["high"] < 0.8
    assert gate_curve.knowledge(*planted(0, 1.0), Resampling(300))["value"] > 0.95


def test_a_setting_is_measured_on_the_pictures_that_did_not_choose_it() -> None:
    found, ends = planted(3, 0.3)
    told = gate_curve.chosen(found, ends, Resampling(300))
    assert told is not None
    assert [half["questions"] for half in told["halves"]] == [100, 100]
    for half in told["halves"]:
        assert half["gate"] in {point.gate for point in found.points}
    # Both halves together are every question, each decided by the other half's setting.
    mean = sum(half["value"] for half in told["halves"]) / 2
    assert told["others"]["value"] == pytest.approx(mean)
    assert told["others"]["sent"] == pytest.approx(sum(half["sent"] for half in told["halves"]) / 2)
    cheaper = [point for point in found.points if point.cost.tokens < told["sent"] + told["written"]]
    against = gate_curve.differences(found.run.mixture, found.parts.sums[: len(cheaper)], ends.sums[1], Resampling(300))
    assert all(each.high < 0 for each in against)


@pytest.mark.slow
def test_the_curve_of_the_miniature_is_runs_with_those_gates(tmp_path: Path) -> None:
    """On the engine itself: margins from logits, boxes from the model, FLOPs from its configuration."""
    data = miniature.write_dataset(tmp_path / "data", 8, seed=11, per_image=2).parent
    places = {"data": data / "questions.jsonl", "images": data / "images"}
    config = InferConfig(model="miniature", device="cpu", **places)
    with stage.start(config, QUIET) as workers:

        def run(name: str, gate: str) -> dict[str, Any]:
            file = tmp_path / name / "predictions.jsonl"
            stage.run(dataclasses.replace(config, gate=gate, out=file), QUIET, workers=workers)
            return scored(tmp_path / name, data)

        assert run("all", "all")["gate"]["cost"]["flops"] > 1e6
        curves = json.loads((tmp_path / "all" / gate_curve.CURVE).read_text())["curves"]
        points = {point["gate"]: point for curve in curves.values() for point in curve["points"][1::3]}
        for number, point in enumerate(points.values()):
            found = run(str(number), point["gate"])
            assert found["headline"]["value"] == point["value"]
            assert {"looks": found["gate"]["looks"], **found["gate"]["cost"]} == {
                name: point[name] for name in ("looks", "sent", "written", "flops")
            }
