"""The stage: joining predictions, counting what does not fit, results, files, and comparing two runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from reporters import Told

from cos_core.evaluate import EvalConfig
from cos_core.evaluate import stage as evaluate
from cos_core.files import manifest
from cos_core.geometry import Box
from cos_core.interfaces import BenchmarkData, SilentReporter
from cos_core.scoring import metrics, statistics
from cos_core.types import Example, Prediction, RunManifest, Score

ROOT = Path(__file__).resolve().parent.parent
POPE = Path(__file__).parent / "golden" / "pope"


QUESTIONS = [
    Example("a", "s", "1.png", "What digit?", ("7",), meta={"kind": "reading", "gold": [0.1, 0.1, 0.3, 0.3]}),
    Example("b", "s", "1.png", "What colour?", ("red", "dark red"), meta={"kind": "hue", "targets": [[0.5, 0.5], [0.9, 0.9]]}),
    Example("c", "s", "2.png", "How many?", ("three",), meta={"kind": "whole"}),
    Example("d", "s", "3.png", "What letter?", ("K",), meta={"kind": "reading", "gold": [0.6, 0.6, 0.8, 0.8]}),
]


def scenes(folder: Path, examples: list[Example] = QUESTIONS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "questions.jsonl").write_text("".join(json.dumps(e.to_json()) + "\n" for e in examples))
    return folder


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def said(example_id: str, answer: str | None, **more: Any) -> dict[str, Any]:
    return Prediction(example_id, answer, policy="from_single_question", **more).to_json()


def score(folder: Path, rows: list[Any], reporter: SilentReporter | None = None, **more: Any) -> RunManifest:
    predictions = lines(folder / "answers.jsonl", rows)
    config = EvalConfig("scenes", scenes(folder / "data"), predictions, replicates=200, **more)
    return evaluate.run(config, reporter)


def test_scenes_by_hand(tmp_path: Path) -> None:
    rows = [
        said("a", " 7. ", box=Box(0.1, 0.1, 0.3, 0.2), box_status="ok"),
        said("b", "Dark  Red", box=Box(0.4, 0.4, 0.6, 0.6), box_status="clamped"),
        said("c", "four", box_status="unparsable"),
        said("d", "K", box=Box(0.0, 0.0, 0.5, 0.5), box_status="ok"),
    ]
    done = score(tmp_path, rows, out=tmp_path / "out")
    assert done.status == "complete"
    assert done.counts["ok"] == done.counts["total"] == 4
    results = done.results
    assert results["metrics"]["accuracy"] == 0.75
    assert results["metrics"]["kinds"] == {
        "hue": {"accuracy": 1.0, "n": 1},
        "reading": {"accuracy": 1.0, "n": 2},
        "whole": {"accuracy": 0.0, "n": 1},
    }
    assert results["box_status"] == {"ok": 0.5, "clamped": 0.25, "unparsable": 0.25}
    regions = results["regions"]
    assert (regions["n"], regions["hit"], regions["hit_any"], regions["hit_all"]) == (3, 2 / 3, 2 / 3, 1 / 3)
    assert regions["iou"] == pytest.approx((0.5 + 0.0) / 2)
    assert regions["area"] == pytest.approx((0.02 + 0.04 + 0.25) / 3)
    assert regions["kinds"]["hue"]["hit_all"] == 0.0
    assert results["headline"]["value"] == 0.75
    assert (results["headline"]["low"], results["headline"]["high"]) == tuple(results["intervals"]["accuracy"])
    assert results["protocol"] == {
        "benchmark": "scenes",
        "split": "questions",
        "profile": "paper",
        "policy": "from_single_question",
    }
    assert results["problems"] == {}
    assert json.loads(json.dumps(done.to_json(), allow_nan=False))["stage"] == "eval"


def test_files_hold_everything_the_aggregates_need(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = score(tmp_path, [said("a", "7"), said("b", "blue"), said("c", None, error="broken picture"), "torn {"], out=out)
    kept = evaluate.read_scores(out)
    assert [s.example_id for s in kept] == ["a", "b", "c", "d"]
    assert [s.note for s in kept] == [None, None, "failed: broken picture", "missing"]
    assert kept[1] == Score("b", 0.0, "blue", "red", {"image": "1.png", "kind": "hue", "box_status": "skipped"})
    benchmark, data = evaluate.load("scenes", tmp_path / "data")
    again = evaluate.summarise(benchmark, data, kept, replicates=200)
    assert {key: done.results[key] for key in again} == again
    problems = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
    assert [(p["kind"], p["id"]) for p in problems[:2]] == [("failed", "c"), ("missing", "d")]
    assert problems[2]["kind"] == "unreadable"
    assert problems[2]["line"] == 4
    assert manifest.read(out).results["metrics"] == done.results["metrics"]
    assert not (out / "regions.jsonl").exists()


def test_a_second_run_into_the_same_folder_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    out = tmp_path / "out"
    score(tmp_path, [said("a", "7", box=Box(0.0, 0.0, 0.5, 0.5), box_status="ok")], out=out)
    assert (out / "regions.jsonl").exists()
    assert (out / "problems.jsonl").exists()
    score(tmp_path, [said(i, "7") for i in "abcd"], out=out)
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "scores.jsonl"]


def test_every_misfit_is_named_and_counted(tmp_path: Path) -> None:
    notes = Told()
    rows = [
        said("b", "red"),
        said("a", "7"),  # before b in the data: re-ordered
        said("zzz", "7"),  # unknown
        said("b", "blue"),  # doubled; the last one counts
        said("c", None, error="time-out"),
        said("c", "three"),  # a repair, not a double
        said("d", "K", question="What was the weather?"),  # another question: unknown
        '{"answer": "no id"}',
        "not json",
    ]
    done = score(tmp_path, rows, notes)
    assert done.status == "partial"
    assert done.counts == {
        "ok": 3,
        "failed": 0,
        "skipped": 0,
        "total": 4,
        "missing": 1,
        "doubled": 1,
        "reordered": 1,
        "unknown": 2,
        "unreadable": 2,
    }
    assert done.results["problems"]["unknown"] == ["zzz", "d"]
    assert done.results["problems"]["missing"] == ["d"]
    assert "answers.jsonl:8" in done.results["problems"]["unreadable"][0]
    assert done.results["metrics"]["accuracy"] == 0.5
    assert "2 unknown: zzz, d" in notes.warnings


def test_a_failure_never_replaces_an_answer(tmp_path: Path) -> None:
    done = score(tmp_path, [said("a", "7"), said("a", None, error="later"), said("b", "red"), said("c", "x"), said("d", "x")])
    assert done.results["metrics"]["accuracy"] == 0.5
    assert done.counts["doubled"] == 1


def test_a_run_of_two_policies_says_so(tmp_path: Path) -> None:
    rows = [said("a", "7"), Prediction("b", "red", policy="none").to_json()]
    assert score(tmp_path, rows).results["protocol"]["policy"] == ["from_single_question", "none"]


def test_llava_answers_and_ours_give_the_same_score(tmp_path: Path) -> None:
    ours = [said("a", "7"), said("b", "red"), said("c", "x"), said("d", "K")]
    llava = [
        {"question_id": e.id, "prompt": f"<image>\n{e.question}", "text": row["answer"]}
        for e, row in zip(QUESTIONS, ours, strict=True)
    ]
    first, second = score(tmp_path / "o", ours), score(tmp_path / "l", llava)
    assert first.results["metrics"] == second.results["metrics"]
    assert second.results["protocol"]["policy"] == "unknown"
    assert second.results["box_status"] == {}  # nothing is known of boxes, so nothing is said


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path) -> None:
    for name in ("o", "l"):
        (tmp_path / name).mkdir()


def test_unusable_inputs_are_one_sentence(tmp_path: Path) -> None:
    with refused(tmp_path, "scenes", "zzz"):
        score(tmp_path, [said("zzz", "7")])
    with refused("answers.jsonl"):
        score(tmp_path, [])
    with refused("answers.jsonl:1:", "example_id", "question_id"):
        score(tmp_path, ['{"text": "x"}'])
    with refused(tmp_path / "absent.jsonl"):
        evaluate.run(EvalConfig("scenes", scenes(tmp_path / "d"), tmp_path / "absent.jsonl"))
    with refused("scens", "'scenes'"):
        evaluate.run(EvalConfig("scens", tmp_path / "d", tmp_path / "answers.jsonl"))
    with refused(tmp_path / "nowhere"):
        evaluate.run(EvalConfig("scenes", tmp_path / "nowhere", lines(tmp_path / "p.jsonl", [said("a", "7")])))


def test_malformed_regions_name_their_question() -> None:
    for meta in ({"gold": [0.3, 0.1, 0.2, 0.4]}, {"targets": [1, 2]}, {"targets": [[1]]}):
        with refused("'a'"):
            Example("a", "s", None, "?", meta=meta)


def test_an_outsiders_benchmark_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        """
from cos_core.scoring import metrics
from cos_core.interfaces import BenchmarkData
from cos_core.types import Example

class Mine:
    name = "mine"
    summary = "one question"
    def load(self, root):
        return BenchmarkData("mine", "all", [Example("q", "mine", "x.png", "Yes?", ("yes",))], root)
    def score(self, data, predictions):
        return metrics.judge(data.examples, predictions, lambda e, said: metrics.Verdict(float(said == "yes"), said, "yes"))
    def metrics(self, data, scores):
        return {"accuracy": metrics.mean(list(scores))}

def build():
    return Mine()
"""
    )
    predictions = lines(tmp_path / "p.jsonl", [said("q", "yes")])
    config = EvalConfig(str(tmp_path / "mine.py"), tmp_path, predictions)
    results = evaluate.run(config).results
    assert results["headline"] == {
        "metric": "accuracy",
        "value": 1.0,
        "unit": "fraction",
        "low": statistics.wilson(1, 1).low,
        "high": 1.0,
    }
    with refused("mine.py", "'split'"):
        evaluate.load(str(tmp_path / "mine.py"), tmp_path, "test")


def test_questions_written_for_a_model_to_answer(tmp_path: Path) -> None:
    _, data = evaluate.load("pope", POPE)
    evaluate.write_questions(data, tmp_path / "q.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert [Example.from_json(row) for row in rows] == list(data.examples)


def test_no_torch_and_a_quick_start(tmp_path: Path) -> None:
    """Scoring and comparing, as programs, where nothing of the model stack can be imported: right, and within 2 CPU seconds.
    (Measured 0.4 s, of which half is numpy.)"""
    code = (
        "import sys, time\n"
        "for name in ('torch', 'transformers', 'tokenizers', 'safetensors', 'accelerate'): sys.modules[name] = None\n"
        "from cos_cli import main\n"
        "ended = main.run(sys.argv[1:])\n"
        "print(ended, time.process_time(), file=sys.stderr)\n"
    )
    runs = [str(tmp_path / name) for name in "ab"]
    answers = str(POPE / "predictions.jsonl")
    score = ["eval", "pope", "--data", str(POPE), "--predictions", answers, "--json", "--quiet", "--out"]
    printed = []
    for words in ([*score, runs[0]], [*score, runs[1]], ["eval", "compare", *runs, "--json", "--quiet"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=ROOT)
        ended, cpu_seconds = done.stderr.split()
        assert ended == "0"
        assert float(cpu_seconds) <= 2.0
        printed.append(json.loads(done.stdout))
    assert printed[0]["metrics"]["mean_f1"] == pytest.approx(0.7396724705675047, abs=1e-12)
    assert printed[2]["comparisons"][0]["verdict"] == "unclear"


def test_the_digest_knows_what_is_asked() -> None:
    """Another instruction after the question (`meta["suffix"]`) is another question; other meta are not asked."""

    def digest(**meta: object) -> str:
        example = Example("1", "mini", "a.png", "Which?", ("A",), meta=meta)
        return evaluate.data_digest(BenchmarkData("mini", "test", (example,), Path()))

    assert len({digest(), digest(suffix="\nA or B."), digest(suffix="\nSay A or B."), digest(suffix="")}) == 4
    assert digest() == digest(subject="any")


def test_a_box_that_was_not_usable_is_no_hit(tmp_path: Path) -> None:
    """Whatever was looked at in its place: the whole picture holds every target."""
    whole = Box(0.0, 0.0, 1.0, 1.0)
    statuses = ["unparsable", "degenerate", "ok", "clamped"]
    rows = [said(key, "x", box=whole, box_status=status) for key, status in zip("abcd", statuses, strict=True)]
    regions = score(tmp_path, rows).results["regions"]
    assert (regions["n"], regions["usable"]) == (3, 1)
    assert regions["hit"] == pytest.approx(1 / 3)
    everywhere = Example("w", "s", "w.png", "?", ("x",), meta={"gold": [0.0, 0.0, 1.0, 1.0]})
    assert metrics.region_score(everywhere, whole) is None, "a question about the whole picture asks for no region"
