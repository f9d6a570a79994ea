"""What is not a number is neither better nor worse; and the report shows what `cos eval compare` computes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from official_files import GOLDEN, mmbench_layout, mme_layout
from scored_runs import folder, scored

from cos_cli import main
from cos_core.errors import FailuresError
from cos_core.evaluate import EvalConfig, paper
from cos_core.evaluate import stage as evaluate
from cos_core.files import manifest
from cos_core.interfaces import SilentReporter
from cos_core.scoring import comparison
from cos_core.scoring.comparison import Comparison, ScoredRun
from cos_core.scoring.statistics import AggregateDifference
from cos_core.suite.gates import below
from cos_core.suite.scored import Scored
from cos_core.types import RunManifest
from cos_core.visualize.run_report import ReportConfig
from cos_core.visualize.run_report import run as report

NUMBERS = AggregateDifference(a=0.5, b=0.7, difference=0.2, low=0.1, high=0.3, error=0.05, p=0.01, detectable=0.1, clusters=9)

BENCHMARK = """
import numpy as np
from cos_core.scoring import metrics
from cos_core.interfaces import BenchmarkData
from cos_core.scoring.metrics import Estimate
from cos_core.types import Example, Score

class Odd:
    name, summary, headline = "odd", "A statistic that may not be defined", "own"
    def load(self, root):
        return BenchmarkData("odd", "all", [Example(str(i), "odd", f"{i}.png", "q", ("yes",)) for i in range(8)], root)
    def score(self, data, predictions):
        return metrics.judge(data.examples, predictions, lambda e, text: metrics.Verdict(float(text == "yes"), text, "yes"))
    def metrics(self, data, scores):
        return {"own": self.estimates(data, scores)[0].value(), "n": len(scores)}
    def estimates(self, data, scores):
        right = [s.value for s in scores]
        STATISTIC

def build():
    return Odd()
"""


def odd(folder: Path, statistic: str, *right: int) -> list[Path]:
    """A finished run for each number of right answers of 8, under a benchmark whose `estimates` ends as told."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "odd.py").write_text(BENCHMARK.replace("STATISTIC", statistic))
    runs = []
    for count in right:
        file = folder / f"{count}.jsonl"
        rows = [{"question_id": str(i), "text": "yes" if i < count else "no"} for i in range(8)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        evaluate.run(EvalConfig(str(folder / "odd.py"), folder, file, out=folder / f"run-{count}", replicates=100))
        runs.append(folder / f"run-{count}")
    return runs


UNDEFINED = {
    "a mean of nothing": "return [Estimate('own', np.zeros((len(scores), 2)))]",
    "a division by zero in one run": (
        "return [Estimate('own', np.array([[1.0, 0.0 if sum(right) > 4 else 1.0]] * len(scores)))]"
    ),
    "a metric that one run lacks": "return [metrics.mean_estimate('own' if sum(right) > 4 else 'other', scores)]",
    "a metric of other parts": "return [Estimate('own', np.ones((len(scores), 2 if sum(right) > 4 else 3)))]",
}


@pytest.mark.parametrize("statistic", UNDEFINED.values(), ids=UNDEFINED)
def test_a_headline_that_is_not_defined_is_no_regression(
    tmp_path: Path, statistic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = odd(tmp_path / "odd", statistic, 2, 8)
    for order in (runs, runs[::-1]):
        assert main.run(["eval", "compare", *map(str, order), "--json", "-q"]) == 7
        (row,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["comparisons"]
        assert row["verdict"] == "undefined"
        assert row["undefined"]
        assert main.run(["eval", "compare", *map(str, order), "-q"]) == 7
        assert "undefined" in capsys.readouterr().out
    call = scoring(tmp_path)
    assert main.run([*call, "--out", str(tmp_path / "again"), "--baseline", str(runs[1]), "-q"]) == 7


def scoring(folder: Path) -> list[str]:
    """The command that scores the second of the odd runs again."""
    odd_one = folder / "odd"
    return ["eval", str(odd_one / "odd.py"), "--data", str(folder), "--predictions", str(odd_one / "2.jsonl")]


def test_a_metric_that_is_not_defined_is_null_and_no_limit_holds_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = odd(tmp_path / "odd", UNDEFINED["a mean of nothing"], 2)
    results = manifest.read(run).results
    assert (results["metrics"]["own"], results["headline"]["value"]) == (None, None)
    call = scoring(tmp_path)
    assert main.run([*call, "--fail-under", "own=0.5", "--json", "-q"]) == 7
    assert len(json.loads(capsys.readouterr().out)["undefined"]) == 1
    assert main.run([*call, "--fail-under", "n=8", "-q"]) == 0
    assert main.run([*call, "--fail-under", "n=9", "--fail-under", "own=0.5", "-q"]) == 6
    assert main.run([*call, "--fail-under", "other=0.5", "-q"]) == 3


def test_a_limit_and_nan() -> None:
    run = RunManifest("eval", "complete", {}, "", {}, results={"metrics": {"f1": math.nan, "acc": 0.5}})
    fallen, undefined = below([Scored("pope", None, run, None)], {"f1": 0.1, "acc": 0.4, "pope.acc": 0.6})
    assert len(fallen) == len(undefined) == 1


TABLE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {}, "better"),
    ({"difference": -0.2}, {}, "worse"),
    ({}, {"p_holm": 0.05}, "unclear"),
    ({"difference": 0.0}, {}, "unclear"),
    ({"low": -math.inf, "high": math.inf}, {}, "better"),  # one picture: no interval, but a test
    ({"difference": math.nan}, {}, "undefined"),
    ({"difference": -math.nan}, {}, "undefined"),
    ({"difference": math.inf}, {}, "undefined"),
    ({"difference": -math.inf}, {}, "undefined"),
    ({"a": math.nan}, {}, "undefined"),
    ({"b": math.inf}, {}, "undefined"),
    ({}, {"p": math.nan}, "undefined"),
    ({}, {"p_holm": math.nan}, "undefined"),
    ({}, {"missing": "the runs have no question in common"}, "undefined"),
]


@pytest.mark.parametrize(("figures", "more", "verdict"), TABLE)
def test_verdicts(figures: dict[str, Any], more: dict[str, Any], verdict: str) -> None:
    made = Comparison("b", "A", "B", "f1", "fraction", replace(NUMBERS, **figures), 0.01, "t", 9, (), (), p_holm=0.01)
    made = replace(made, **more)
    assert made.verdict == verdict
    assert bool(made.undefined) == (verdict == "undefined")
    json.dumps(made.to_json(), allow_nan=False)


def test_one_undefined_comparison_counts_as_a_test_for_the_others() -> None:
    made = Comparison("b", "A", "B", "f1", "fraction", NUMBERS, 0.03, "t", 9, (), ())
    first, second = comparison.adjusted([replace(made, missing="no number"), made])
    assert (first.verdict, second.verdict, second.p_holm) == ("undefined", "unclear", 0.06)


def test_runs_without_a_common_question_have_no_verdict(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", 6)
    run = scored(tmp_path / "run", data, [True] * 6)
    whole = ScoredRun(run, manifest.read(run), evaluate.read_scores(run))
    found = comparison.pair(
        replace(whole, scores=whole.scores[:3]), replace(whole, scores=whole.scores[3:]), names=("A", "B"), replicates=100
    )
    assert (found.verdict, found.n, found.only_a, found.only_b) == ("undefined", 0, 3, 3)


def test_a_plug_in_that_has_moved_leaves_no_verdict_under_its_metrics_name(tmp_path: Path) -> None:
    runs = odd(tmp_path / "odd", "return [metrics.mean_estimate('own', scores)]", 2, 8)
    assert main.run(["eval", "compare", *map(str, runs), "-q"]) == 0
    (tmp_path / "odd" / "odd.py").unlink()
    assert main.run(["eval", "compare", *map(str, runs), "-q"]) == 7


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        ((64.0, 65.5, 64.8, 1.5), paper.REPRODUCED),
        ((math.nan, 65.5, 64.8, 1.5), paper.UNDEFINED),
        ((64.0, math.nan, 64.8, 1.5), paper.UNDEFINED),
        ((64.0, 65.5, math.nan, 1.5), paper.UNDEFINED),
        ((64.0, 65.5, 64.8, math.nan), paper.UNDEFINED),
        ((-math.inf, math.inf, 64.8, 1.5), paper.UNDERPOWERED),
    ],
)
def test_the_papers_table_and_figures_that_are_none(figures: tuple[float, ...], verdict: str) -> None:
    assert paper.weigh(*figures) == verdict


def test_a_figure_of_one_picture_is_not_held_against_the_papers(tmp_path: Path) -> None:
    """It has no interval; taken as exact, it would be called "not reproduced"."""
    data = tmp_path / "data"
    data.mkdir()
    row = {"question": "Which?", "answer": "cat", "imageId": "1", "types": {"structural": "query", "semantic": "attr"}}
    (data / "testdev_balanced_questions.json").write_text(json.dumps({"1": row, "2": row}))
    rows = [{"question_id": "1", "text": "cat"}, {"question_id": "2", "text": "dog"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate.run(EvalConfig("gqa", data, tmp_path / "a.jsonl", out=tmp_path / "out", replicates=100))
    (cell,) = [c for c in paper.report({"cos-13b": tmp_path / "out"}) if c.ours is not None]
    assert (cell.ours, cell.low, cell.verdict) == (50.0, None, paper.UNDEFINED)


# --- the report ------------------------------------------------------------------------------------------------------


def pope(root: Path) -> tuple[Path, list[dict[str, Any]]]:
    return GOLDEN / "pope", [json.loads(line) for line in (GOLDEN / "pope" / "predictions.jsonl").read_text().splitlines()]


def mmbench(root: Path) -> tuple[Path, list[dict[str, Any]]]:
    root.mkdir()
    return root, mmbench_layout(root / "mmbench_dev_20230712.tsv")


def mme(root: Path) -> tuple[Path, list[dict[str, Any]]]:
    return root, mme_layout(root)


@pytest.mark.parametrize(("benchmark", "layout"), [("pope", pope), ("mmbench", mmbench), ("mme", mme)])
def test_a_report_shows_the_figures_of_compare(
    tmp_path: Path, benchmark: str, layout: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data, rows = layout(tmp_path / "data")
    said = {"a": rows, "b": [{**row, "text": "No"} if i % 5 == 0 else row for i, row in enumerate(rows)]}
    said["c"] = [{**row, "text": "Yes"} if i % 3 == 0 else row for i, row in enumerate(rows)]
    runs = []
    for name, answers in said.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
        evaluate.run(EvalConfig(benchmark, data, tmp_path / f"{name}.jsonl", out=tmp_path / name, replicates=100))
        runs.append(tmp_path / name)
    assert main.run(["eval", "compare", *map(str, runs), "--json", "-q"]) == 0
    compared = json.loads(capsys.readouterr().out)["comparisons"]
    made = report(ReportConfig(tuple(runs), tmp_path / "r.html", cards=0), SilentReporter())
    shown = made.results["comparisons"]
    assert [row["b"] for row in shown] == ["b", "c"]
    for ours, theirs in zip(shown, compared, strict=True):
        assert {k: v for k, v in ours.items() if k not in "ab"} == {
            k: v for k, v in theirs.items() if k not in ("a", "b", "won", "lost")
        }
    text = (tmp_path / "r.html").read_text()
    for row in compared:
        for key in ("difference", "low", "high"):
            points = {"pope": f"{100 * row[key]:+.1f}", "mmbench": f"{row[key]:+.1f}", "mme": f"{row[key]:+.3f}"}[benchmark]
            assert points.replace("-", "−") in text
        assert f"{row['p_holm']:.2g}" in text
        assert row["verdict"] in text


def test_a_report_says_what_is_undefined_and_what_was_not_made_alike(tmp_path: Path) -> None:
    runs = odd(tmp_path / "odd", UNDEFINED["a mean of nothing"], 2, 8)
    with pytest.raises(FailuresError, match="pictures"):
        report(ReportConfig(tuple(runs), tmp_path / "r.html"), SilentReporter())
    made = manifest.read(manifest.path_for(tmp_path / "r.html"))
    (row,) = made.results["comparisons"]
    assert (row["verdict"], row["difference"]) == ("undefined", None)
    page = (tmp_path / "r.html").read_text()
    assert "undefined" in page
    assert "nan" not in page.split("<script")[0].lower().replace("nano", "")
    data = folder(tmp_path / "data")
    a, b = (scored(tmp_path / name, data, [True, False, True, right]) for name, right in (("x", True), ("y", False)))
    read = manifest.read(b)
    changed = {**read.to_json(), "results": {**read.results, "protocol": {**read.results["protocol"], "profile": "other"}}}
    (b / manifest.FILE).write_text(json.dumps(changed))
    made = report(ReportConfig((a, b), tmp_path / "s.html"), SilentReporter())
    assert made.results["comparisons"][0]["differs"] == ["profile"]
    (b / manifest.FILE).unlink()
    made = report(ReportConfig((a, b), tmp_path / "t.html"), SilentReporter())
    assert (len(made.results["comparisons"]), len(made.results["not_compared"])) == (0, 1)
