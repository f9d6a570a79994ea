"""Two finished runs against each other: values by hand, the refusals, and the statistics behind them."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from cos_cli import main
from cos_core.evaluate import EvalConfig
from cos_core.evaluate import compare_runs as compare
from cos_core.evaluate import stage as evaluate
from cos_core.files import manifest
from cos_core.scoring import comparison, statistics
from cos_core.types import Example, Prediction

GOLDEN = Path(__file__).parent / "golden"


def scored(folder: Path, rows: list[dict[str, Any]], benchmark: str = "scenes", images: int = 100, **more: Any) -> Path:
    """A finished run of 40 yes/no questions on `images` pictures; `rows` are the answers."""
    data = folder.parent / f"data-{benchmark}-{images}"
    data.mkdir(parents=True, exist_ok=True)
    asked = [Example(str(i), "s", f"{i % images}.png", f"Is {i} even?", ("yes" if i % 2 == 0 else "no",)) for i in range(40)]
    (data / "questions.jsonl").write_text("".join(json.dumps(e.to_json()) + "\n" for e in asked))
    file = folder.parent / f"{folder.name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate.run(EvalConfig(benchmark, data, file, out=folder, replicates=100, **more))
    return folder


def answers(wrong: set[int], **more: Any) -> list[dict[str, Any]]:
    truth = {i: "yes" if i % 2 == 0 else "no" for i in range(40)}
    return [Prediction(str(i), "maybe" if i in wrong else truth[i], **more).to_json() for i in range(40)]


def test_by_hand(tmp_path: Path) -> None:
    a = scored(tmp_path / "a", answers(set(range(10)), policy="none"))
    b = scored(tmp_path / "b", answers({0, 1, 30}, policy="from_single_question"))
    (found,) = compare.compare([a, b], replicates=500).comparisons
    assert (found.benchmark, found.metric, found.n, len(found.won), len(found.lost)) == ("scenes", "accuracy", 40, 8, 1)
    assert (found.found.a, found.found.b) == (0.75, 0.925)
    assert found.found.difference == pytest.approx(0.175)
    assert found.found.low < 0.175 < found.found.high
    # Nine questions flipped, one of them the other way: 2 (1 + 9) / 2^9.
    assert (found.test, found.p, found.p_holm) == ("exact McNemar", 20 / 512, 20 / 512)
    assert found.verdict == "better"
    # The standard error of a mean of 40 differences, eight +1 and one -1; 2.8 of them can be seen four times in five.
    error = math.sqrt((9 / 40 - 0.175**2) / 40)
    assert found.found.error == pytest.approx(error, rel=0.15)
    assert found.found.detectable == pytest.approx(2.8016 * found.found.error, rel=1e-4)
    rows = list(comparison.flipped(found, *(evaluate.read_scores(run).by_id() for run in (a, b))))
    assert rows[-1] == {
        "benchmark": "scenes", "run": str(b), "id": "30", "flip": "lost",
        "expected": "yes", "a": "yes", "b": "maybe", "value_a": 1.0, "value_b": 0.0,
    }  # fmt: skip


def test_questions_of_one_picture_stand_or_fall_together(tmp_path: Path) -> None:
    a = scored(tmp_path / "a", answers(set(range(0, 40, 2))), images=4)
    b = scored(tmp_path / "b", answers(set()), images=4)
    (found,) = compare.compare([a, b], replicates=500).comparisons
    assert found.test == "runs swapped image by image"
    # Pictures 0 and 2 hold all twenty questions: of the four ways to swap them, two are as extreme.
    assert found.p == pytest.approx(0.5, abs=0.03)
    assert found.found.clusters == 4
    assert found.verdict == "unclear"


def test_points_and_f1_are_compared_in_their_own_units(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (GOLDEN / "pope" / "predictions.jsonl").read_text().splitlines()]
    other = [{**row, "text": "No"} if i % 7 == 0 else row for i, row in enumerate(rows)]
    values = []
    for name, said in (("a", rows), ("b", other)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
        config = EvalConfig("pope", GOLDEN / "pope", tmp_path / f"{name}.jsonl", out=tmp_path / name, replicates=100)
        values.append(evaluate.run(config).results["metrics"]["mean_f1"])
    (found,) = compare.compare([tmp_path / "a", tmp_path / "b"], replicates=300).comparisons
    assert [found.found.a, found.found.b] == pytest.approx(values, abs=1e-12)
    assert found.found.low < values[1] - values[0] < found.found.high < 0
    assert found.p < 0.01


def test_won_and_lost_are_of_the_headlines_population(tmp_path: Path) -> None:
    """ScienceQA's figure is over questions with a picture: a text question that changes sides is in no count."""
    rows = [json.loads(line) for line in (GOLDEN / "scienceqa" / "predictions.jsonl").read_text().splitlines()]
    shown = [row["question_id"] for row in rows if "<image>" in row["prompt"]]
    texts = [row["question_id"] for row in rows if "<image>" not in row["prompt"]]
    problems = json.loads((GOLDEN / "scienceqa" / "problems.json").read_text())
    truth = {row["question_id"]: "ABCDE"[problems[str(row["question_id"])]["answer"]] for row in rows}
    sides = {"a": {*shown[:2], *texts[:4]}, "b": {shown[2]}}
    for name, wrong in sides.items():
        said = [{**row, "text": "no" if row["question_id"] in wrong else truth[row["question_id"]]} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
        evaluate.run(
            EvalConfig("scienceqa", GOLDEN / "scienceqa", tmp_path / f"{name}.jsonl", out=tmp_path / name, replicates=100)
        )
    (found,) = compare.compare([tmp_path / "a", tmp_path / "b"], replicates=100).comparisons
    assert (found.metric, found.n) == ("image_accuracy", len(shown))
    assert (list(found.won), list(found.lost)) == ([str(key) for key in shown[:2]], [str(shown[2])])


def test_mmbench_wins_whole_questions(tmp_path: Path) -> None:
    """A question counts once, whatever its rotations do, and is named by a rotation that changed sides."""
    table = ["index\tquestion\tA\tB\tanswer"]
    for n in range(1, 5):
        table += [f"{n}\tWhich {n}?\tcat\tdog\tA", f"{n + 10**6}\tWhich {n}?\tdog\tcat\tB"]
    (tmp_path / "mmbench_dev_20230712.tsv").write_text("\n".join(table) + "\n")
    right = {str(n + k * 10**6): "AB"[k] for n in range(1, 5) for k in (0, 1)}
    for name, wrong in {"a": {"1000001", "2", "1000002"}, "b": {"3", "4", "1000002"}}.items():
        rows = [{"question_id": key, "text": "Z" if key in wrong else text} for key, text in right.items()]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        evaluate.run(EvalConfig("mmbench", tmp_path, tmp_path / f"{name}.jsonl", out=tmp_path / name, replicates=100))
    (found,) = compare.compare([tmp_path / "a", tmp_path / "b"], replicates=100).comparisons
    # Question 2 is wrong in both, though one of its rotations became right.
    assert (found.n, list(found.won), list(found.lost)) == (4, ["1000001"], ["3", "4"])
    assert found.found.difference == -25.0


FIELDS = [("profile", "repo-2024"), ("split", "val"), ("ocr_tokens", "no"), ("scorer", "m4c"), ("judge", "gpt-4")]


@pytest.mark.parametrize(("field", "value"), FIELDS)
def test_runs_made_otherwise_are_refused(tmp_path: Path, field: str, value: str) -> None:
    a, b = (scored(tmp_path / name, answers(set())) for name in "ab")
    read = manifest.read(b)
    changed = {**read.to_json(), "results": {**read.results, "protocol": {**read.results["protocol"], field: value}}}
    (b / manifest.FILE).write_text(json.dumps(changed))
    with refused(a, b, f"{field}: ", value, f"--despite {field}"):
        compare.compare([a, b])
    (found,) = compare.compare([a, b], despite=[field]).comparisons
    assert found.differs == [field]
    assert main.run(["eval", "compare", str(a), str(b)]) == 3
    assert main.run(["eval", "compare", str(a), str(b), "--despite", field]) == 0


def test_other_questions_are_refused(tmp_path: Path) -> None:
    a = scored(tmp_path / "a", answers(set()), images=100)
    b = scored(tmp_path / "b", answers(set()), images=4)
    with refused(a, b, "data: ", "--despite data"):
        compare.compare([a, b])


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    a = scored(tmp_path / "a", answers(set()))
    with refused(tmp_path / "nothing", "cos eval"):
        compare.compare([a, tmp_path / "nothing"])
    (tmp_path / "many" / "none").mkdir(parents=True)
    scored(tmp_path / "many" / "none" / "scenes", answers(set()))
    with refused(tmp_path / "many", ": none"):
        compare.compare([a, tmp_path / "many"])
    with refused():
        compare.compare([a])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = scored(tmp_path / "a", answers(set(range(10)))), scored(tmp_path / "b", answers({0, 1, 30}))
    c = scored(tmp_path / "c", answers({1}))
    call = ["eval", "compare", str(a), str(b), str(c), "--replicates", "200"]
    assert main.run([*call, "--json", "--out", str(tmp_path / "flips.jsonl")]) == 0
    found = json.loads(capsys.readouterr().out)["comparisons"]
    assert [row["p"] for row in found] == [20 / 512, 2 / 512]
    assert [row["p_holm"] for row in found] == [20 / 512, 4 / 512]  # the smaller of two counts twice
    assert len((tmp_path / "flips.jsonl").read_text().splitlines()) == 9 + 9
    assert main.run(call) == 0
    said = capsys.readouterr().out
    assert "better" in said
    first, second = said.split(f"A {a}\nB {c}")
    assert first.startswith(f"A {a}\nB {b}\n\nbenchmark  A ")
    assert "lost by B (1):\n  30  expected yes  A yes  B maybe" in first
    assert "won by B (8, the first 5):" in first
    assert "scenes, accuracy (fraction): B won 9 and lost 0 of 40 questions; 40 pictures; p" in second
    assert max(len(line) for line in said.splitlines() if not line.startswith(("A /", "B /"))) <= 80


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []
    some = statistics.holm([math.nan, 0.02])
    assert math.isnan(some[0])
    assert some[1] == 0.04


def test_the_swap_test_is_the_exact_permutation_test() -> None:
    """Six clusters: all 64 ways to swap, computed here, against ten thousand drawn ones."""
    generator = np.random.default_rng(3)
    a, b = generator.random((6, 2)), generator.random((6, 2))

    def statistic(sums: np.ndarray) -> np.ndarray:
        return sums[:, 0] / sums[:, 1]

    observed = abs(float((statistic(b.sum(0)[None]) - statistic(a.sum(0)[None]))[0]))
    extreme = 0
    for swap in product([False, True], repeat=6):
        keep = np.array(swap)[:, None]
        one, two = np.where(keep, b, a).sum(0), np.where(keep, a, b).sum(0)
        extreme += abs(float((statistic(two[None]) - statistic(one[None]))[0])) >= observed - 1e-12
    found = statistics.aggregate_difference(a, b, range(6), statistic, replicates=200)
    assert found.p == pytest.approx(extreme / 64, abs=0.02)
