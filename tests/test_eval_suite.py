"""One call, many benchmarks and arms: folders, resuming, parts, limits, exit codes. The model is a table of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from refusals import refused

from cos_cli import main
from cos_core.benchmarks import _files
from cos_core.errors import LockedError
from cos_core.files import manifest
from cos_core.files.locks import FileLock
from cos_core.interfaces import Need
from cos_core.suite import gates
from cos_core.suite.config import seconds
from cos_core.types import Example

QUESTIONS = 12


def scenes(folder: Path, name: str, count: int = QUESTIONS) -> Path:
    """A small benchmark: `count` questions on half as many pictures, the answer to all is "red"."""
    own = folder / name
    (own / "images").mkdir(parents=True)
    for i in range(count // 2):
        Image.new("RGB", (16, 12), "red").save(own / "images" / f"{i}.png")
    rows = [
        Example(str(i), name, f"{i // 2}.png", f"What colour is thing {i}?", ("red",), meta={"gold": [0.1, 0.1, 0.6, 0.6]})
        for i in range(count)
    ]
    (own / "questions.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    return own


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A checkpoint folder for its prompt profile, and a table that the scripted engine answers from: always "red"."""
    folder = tmp_path / "model.json"
    folder.write_text("{}")
    return str(folder)


def call(*arguments: str | Path) -> int:
    return main.run(["eval", *map(str, arguments), "--engine", "scripted", "-q"])


@pytest.fixture(autouse=True)
def _red(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted engine says red to everything, and counts how often it is made."""
    from cos_core.engines import scripted

    BUILT.clear()

    def build(model: Any = None, **_: Any) -> scripted.ScriptedEngine:
        BUILT.append(1)
        return scripted.ScriptedEngine({}, "red")

    monkeypatch.setattr(scripted, "build", build)


BUILT: list[int] = []
SMALL = ["--batch-size", "4"]


def test_benchmarks_and_arms_with_one_model(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = scenes(tmp_path / "data", "scenes").parent, tmp_path / "out"
    (tmp_path / "data" / "other.py").write_text(
        "from cos_core.benchmarks import scenes\n\ndef build():\n    return scenes.Scenes(name='other')\n"
    )
    scenes(tmp_path / "data", "other")
    names = ["scenes", str(tmp_path / "data" / "other.py")]
    assert call(*names, "--data", data, "--model", model, "--out", out, "--roi", "none,center,gold", "--json") == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert [(run["arm"], run["benchmark"]) for run in found] == [
        (arm, name) for arm in ("none", "center", "gold") for name in ("scenes", "other")
    ]
    assert all(run["metrics"]["accuracy"] == 1.0 for run in found)
    assert len(BUILT) == 1, "one load of the model for all"
    assert manifest.read(out / "center" / "scenes").results["protocol"]["policy"] == "center_crop"
    # A second call asks nothing again and needs no model.
    assert call(*names, "--data", data, "--model", model, "--out", out, "--roi", "none,center,gold") == 0
    assert len(BUILT) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[1].split()[:4] == ["scenes", "none", "accuracy", "1.0000"]
    assert main.run(["eval", "compare", str(out / "none"), str(out / "gold")]) == 0


def test_time_is_up_and_the_next_call_goes_on(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = scenes(tmp_path, "scenes"), tmp_path / "out"
    arguments = ["scenes", "--data", data, "--model", model, "--out", out, "--roi", "none", *SMALL]
    assert call(*arguments, "--max-runtime", "0") == 130
    assert "time is up after 0 s with 0 of 12" in capsys.readouterr().err
    assert not (out / "manifest.json").exists()
    assert call(*arguments, "--max-runtime", "1h") == 0
    assert manifest.read(out).counts["ok"] == QUESTIONS
    assert [seconds(text) for text in ("90", "90s", "30m", "2h", "1h30m")] == [90, 90, 1800, 7200, 5400]
    for text in ("", "soon", "-3"):
        with refused(repr(text), "1h30m"):
            seconds(text)


def test_parts_give_one_score_when_all_are_there(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = scenes(tmp_path, "scenes"), tmp_path / "out"
    base = ["scenes", "--data", data, "--out", out, "--shards", "3"]
    for number in ("1", "3"):
        assert call(*base, "--model", model, "--roi", "none", "--shard", number) == 0
    assert capsys.readouterr().out == ""
    assert call(*base) == 3
    assert "lacks finished answers of part 2 of 3" in capsys.readouterr().err
    assert not (out / "manifest.json").exists()
    assert call(*base, "--model", model, "--roi", "none", "--shard", "2") == 0
    assert call(*base, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["counts"]["ok"], found["counts"]["reordered"], found["metrics"]["accuracy"]) == (QUESTIONS, 0, 1.0)
    assert call(*base, "--model", model, "--shard", "4") == 3


def test_a_run_holds_its_folder(tmp_path: Path, model: str) -> None:
    data, out = scenes(tmp_path, "scenes"), tmp_path / "out"
    out.mkdir()
    arguments = ["scenes", "--data", data, "--model", model, "--out", out, "--roi", "none"]
    with FileLock(out / ".run.lock"):
        assert call(*arguments) == LockedError.exit_code
    (out / ".run.lock").write_text("999999\n")  # what a killed process leaves
    assert call(*arguments) == 0


def test_limits_and_baseline(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = scenes(tmp_path, "scenes", 60)
    good = tmp_path / "good"
    assert call("scenes", "--data", data, "--model", model, "--out", good, "--roi", "none") == 0
    rows = [json.loads(line) for line in (good / "predictions.jsonl").read_text().splitlines()]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps({**row, "answer": "blue"}) + "\n" for row in rows[:20]) + "".join(
        json.dumps(row) + "\n" for row in rows[20:]))  # fmt: skip
    scored = ["scenes", "--data", data, "--predictions", tmp_path / "bad.jsonl", "--out", tmp_path / "bad"]
    capsys.readouterr()
    assert call(*scored, "--fail-under", "accuracy=0.5", "--fail-under", "scenes.kinds.any.n=60") == 0
    assert call(*scored, "--fail-under", "accuracy=0.9", "--json", "--baseline", good) == 6
    streams = capsys.readouterr()
    found = json.loads(streams.out[streams.out.rindex("\n{") :])
    assert found["fallen"][0] == "accuracy is 0.666667, below 0.9"
    assert found["fallen"][1].startswith("accuracy of scenes: 1 -> 0.6667 (p ")
    assert "worse than allowed" in streams.err
    assert call(*scored, "--fail-under", "f1=0.9") == 3
    assert call(*scored, "--fail-under", "accuracy") == 3


def test_a_limit_is_a_trial_that_the_whole_run_continues(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = (
        "scenes",
        "--data",
        scenes(tmp_path, "scenes"),
        "--model",
        model,
        "--roi",
        "none",
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert call(*run, "--limit", "4") == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["counts"]["total"], first["protocol"]["limit"]) == (4, 4)
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 4
    assert call(*run) == 0
    whole = json.loads(capsys.readouterr().out)
    assert (whole["counts"]["ok"], "limit" in whole["protocol"]) == (QUESTIONS, False)
    assert call(*run, "--limit", "4") == 0, "more answers than are asked for are no fault"
    assert json.loads(capsys.readouterr().out)["counts"]["total"] == 4


def test_latest_is_a_link_that_moves_in_one_step(tmp_path: Path, model: str) -> None:
    data, latest = scenes(tmp_path, "scenes"), tmp_path / "runs" / "latest"
    for name in ("one", "two"):
        out = tmp_path / "runs" / name
        assert call("scenes", "--data", data, "--model", model, "--roi", "none", "--out", out, "--latest", latest) == 0
        assert latest.readlink() == Path(name)
        assert manifest.read(latest).status == "complete"
    (tmp_path / "file").write_text("")
    with refused(tmp_path / "file", "--latest"):
        gates.link(tmp_path / "file", out)


def test_what_is_missing_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope" / "coco_pope_random.json").write_text("")
    assert main.run(["eval", "pope", "--list", "--data", str(tmp_path), "--json"]) == 0
    needs = json.loads(capsys.readouterr().out)["pope"]["needs"]
    assert {need["file"]: need["found"] for need in needs if not need["optional"]} == {
        "coco/coco_pope_adversarial.json": False,
        "coco/coco_pope_popular.json": False,
        "coco/coco_pope_random.json": True,
    }
    assert main.run(["eval", "--list", "--data", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "+ coco/coco_pope_random.json" in said
    assert "! coco/coco_pope_popular.json\n                 from AoiDragon/POPE" in said
    assert "scorers: official, lmms-eval, vlmevalkit" in said
    assert max(map(len, said.splitlines()[:-1])) <= 80


def test_another_number_of_questions_is_said(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    golden = Path(__file__).parent / "golden" / "pope"
    scored = ["eval", "pope", "--data", str(golden), "--predictions", str(golden / "predictions.jsonl"), "--out", str(tmp_path)]
    assert main.run(scored) == 0
    assert "questions: 178 ok, 178 total; the official split has 8,910" in capsys.readouterr().out
    found = manifest.read(tmp_path)
    assert (found.results["n"], found.results["n_official"]) == (178, 8910)
    assert len(found.inputs["data"]["questions_sha256"]) == 64
    assert call("pope", "--data", golden, "--model", model, "--out", tmp_path / "run", "--latest", tmp_path / "latest") == 5
    said = capsys.readouterr().err
    assert "pope coco has 178 questions here, 8,910 in the official files" in said
    assert "not one question of pope (model) was answered: all 178 failed" in said, "its pictures are not there"
    assert not (tmp_path / "latest").exists()


def test_a_published_digest_is_compared(tmp_path: Path) -> None:
    (tmp_path / "file.tsv").write_bytes(b"abc")
    need = Need(("file.tsv",), "here", md5="900150983cd24fb0d6963f7d28e17f72")  # RFC 1321
    assert _files.other_version(need, tmp_path) is None
    (tmp_path / "file.tsv").write_bytes(b"abd")
    assert "another version" in (_files.other_version(need, tmp_path) or "")
    assert _files.other_version(need, tmp_path / "nowhere") is None


def test_files_are_checked_against_sums(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = scenes(tmp_path, "scenes")
    sums = data / "SHA256SUMS"
    sums.write_text(f"{manifest.file_digest(data / 'questions.jsonl')}  questions.jsonl\n")
    answered = ["eval", "scenes", "--data", data, "--model", model, "--engine", "scripted", "--out", tmp_path / "out"]
    scored = [str(word) for word in [*answered, "--roi", "none"]]
    assert main.run(scored) == 0
    assert "1 files are as" in capsys.readouterr().err
    sums.write_text(f"{'0' * 64}  questions.jsonl\n")
    assert main.run(scored) == 3
    assert "is not the file that" in capsys.readouterr().err


def test_submissions_come_whole_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = Path(__file__).parent / "golden" / "seed"
    scored = ["eval", "seed", "--data", str(golden), "--out", str(tmp_path / "out"), "--submissions", "-q"]
    assert main.run([*scored, "--predictions", str(golden / "predictions.jsonl"), "--json"]) == 0
    upload = Path(json.loads(capsys.readouterr().out)["upload"])
    assert upload.read_text() == (golden / "expected_upload.jsonl").read_text()
    rows = (golden / "predictions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "short.jsonl").write_text("".join(rows[1:]))
    upload.unlink()
    assert main.run([*scored, "--predictions", str(tmp_path / "short.jsonl")]) == 3
    assert not upload.exists()


def test_single_questions_stay_out_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    golden = Path(__file__).parent / "golden" / "scienceqa"
    assert main.run(["eval", "scienceqa", "--data", str(golden), "--predictions", str(golden / "predictions.jsonl"), "-q"]) == 0
    assert "per_question" not in capsys.readouterr().out


def test_pictures_of_another_benchmark_are_not_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder `images` lies in the root; GQA calls its own so, too, but none of its questions are there."""
    (tmp_path / "images").mkdir()

    def listed() -> dict[str, bool]:
        assert main.run(["eval", "gqa", "--list", "--data", str(tmp_path), "--json"]) == 0
        return {need["file"]: need["found"] for need in json.loads(capsys.readouterr().out)["gqa"]["needs"]}

    assert not any(listed().values())
    (tmp_path / "testdev_balanced_questions.json").write_text("{}")
    assert {name for name, found in listed().items() if found} == {"testdev_balanced_questions.json", "images"}
