"""`cos evidence` from the command line: planted models get the verdict that is true of them, and any stop is made good."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import chat_server
import pytest
from chat_server import Handler
from PIL import Image
from planted_engine import Planted, write_readings

from cos_cli import main
from cos_core.evidence.arms import NEEDED, TITLES
from cos_core.files import manifest
from cos_core.interfaces import Request
from cos_core.types import Turn

ENGINE = Path(__file__).with_name("planted_engine.py")
PICTURES = 90


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_readings(tmp_path_factory.mktemp("planted") / "data", PICTURES)


def model(folder: Path, kind: str) -> Path:
    """What the planted engine takes for a checkpoint."""
    path = folder / f"{kind}.json"
    path.write_text("{}")
    return path


def call(model: Path, data: Path, out: Path, *more: str) -> int:
    where = ["--benchmarks", "scenes", "--data", str(data), "--out", str(out), "--replicates", "400"]
    return main.run(["evidence", str(model), "--engine", str(ENGINE), "--profile", "paper", *where, *more, "-q"])


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def differences(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(line["b"], line["a"]): line for row in found["benchmarks"][0]["rows"] for line in row["lines"]}


def test_a_model_that_reads_its_crop(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert call(model(tmp_path, "reads"), data, out) == 0
    shown, found = capsys.readouterr().out, results(out)
    (each,) = found["benchmarks"]
    assert each["verdict"] == "reads the crop"
    assert "reads the crop" in shown.splitlines()[0]
    assert max(len(text) for text in shown.splitlines() if str(out) not in text) <= 84
    answers = {row["key"]: row["verdict"] for row in each["rows"]}
    assert answers == {
        "twice": "yes",
        "format": "no sign",
        "unboxed": "yes",
        "content": "yes",
        "place": "yes",
        "gap": "yes",
        "tokens": "yes",
    }
    lines = differences(found)
    assert found["tests"] == len(lines) == 13
    # Every fourth box is on the wrong side: there the model guesses, as it does with one look.
    assert lines["right boxes", "wrong boxes"]["verdict"] == lines["gold", "model"]["verdict"] == "better"
    right, wrong = each["boxes"]
    assert right["n"] + wrong["n"] == PICTURES
    assert right["twice"] == 1.0
    assert wrong["once"] == wrong["twice"]
    arms = {arm["arm"]: arm for arm in each["arms"]}
    assert list(arms) == list(TITLES)
    assert all(arm["n"] == PICTURES and arm["failed"] == 0 for arm in arms.values())
    assert arms["black"]["as_many_tokens"] == [PICTURES, PICTURES]
    assert arms["absent"]["as_many_tokens"] == [0, PICTURES], "a picture less"
    assert arms["model"]["tokens_in"] > 2 * arms["none"]["tokens_in"]
    page = (out / "index.html").read_text(encoding="utf-8")
    for words in ("reads the crop", *(row["question"].replace("'", "&#x27;") for row in each["rows"]), *found["caveats"][1:2]):
        assert words in page
    assert "| Does looking twice help? | model - none |" in (out / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("kind", "verdict"), [("ignores", "does not use the crop"), ("hurt", "hurt by the crop")])
def test_models_that_do_not(kind: str, verdict: str, tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    assert call(model(tmp_path, kind), data, out, "--fast") == 0
    found = results(out)
    assert found["benchmarks"][0]["verdict"] == verdict
    assert [arm["arm"] for arm in found["benchmarks"][0]["arms"]] == [name for name in TITLES if name in NEEDED]
    lines = differences(found)
    twice = lines["model", "none"]
    assert twice["verdict"] == {"ignores": "unclear", "hurt": "worse"}[kind]
    assert (lines["model", "full"]["verdict"], "difference" in lines["model", "full"]) == ("not run", False)
    if kind == "ignores":
        assert twice["fixed"] == twice["broken"] == []
        assert 0 < lines["model", "black"]["high"] < 0.05, "none of 90 pictures is not certainly none of all"


def test_too_few_questions_for_a_verdict(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert call(model(tmp_path, "ignores"), data, out, "--fast", "--limit", "7") == 0
    assert "cannot tell" in capsys.readouterr().out
    (each,) = results(out)["benchmarks"]
    assert (each["verdict"], each["protocol"]["limit"]) == ("cannot tell", 7)
    assert differences(results(out))["model", "black"]["seen"] is None, "seven pictures show nothing"


def test_failures_are_no_evidence(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A third of the noise crops fail, and count as wrong: a difference, but none of what the crop shows."""
    out = tmp_path / "out"
    assert call(model(tmp_path, "stumbles"), data, out, "--fast", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == results(out)
    (each,) = found["benchmarks"]
    failed = {arm["arm"]: arm["failed"] for arm in each["arms"]}
    assert 20 <= failed["noise"] <= 45
    assert failed == dict.fromkeys(NEEDED, 0) | {"noise": failed["noise"]}
    line = differences(found)["model", "noise"]
    assert line["p_holm"] < 0.05
    assert line["verdict"] == "undefined"
    assert str(failed["noise"]) in line["words"]
    assert line["failed"] == {"a": failed["noise"], "b": 0, "both": 0}
    assert each["verdict"] == "cannot tell"


def test_without_answers_there_is_a_page_and_no_verdict(tmp_path: Path, data: Path) -> None:
    broken = tmp_path / "broken"
    (broken / "images").mkdir(parents=True)
    shutil.copy(data / "questions.jsonl", broken)
    shutil.copy(data / "images" / "0.png", broken / "images" / "other.png")
    assert call(model(tmp_path, "ignores"), broken, tmp_path / "out", "--fast") == 5
    (each,) = results(tmp_path / "out")["benchmarks"]
    assert each["verdict"] == "cannot tell"
    assert differences(results(tmp_path / "out"))["model", "black"]["failed"]["both"] == PICTURES
    assert "cannot tell" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_several_benchmarks_on_one_page(tmp_path: Path, data: Path) -> None:
    """One names regions, the other does not: it has no arm with the data's own, and Holm's p-values are over both."""
    both = tmp_path / "both"
    shutil.copytree(data, both / "scenes")
    (both / "plain" / "images").mkdir(parents=True)
    rows = [json.loads(row) for row in (data / "questions.jsonl").read_text(encoding="utf-8").splitlines()[:10]]
    for row in rows:
        row["meta"] = {}
        shutil.copy(data / "images" / row["image"], both / "plain" / "images")
    (both / "plain" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    plugin = tmp_path / "plain.py"
    plugin.write_text("from cos_core.benchmarks import scenes\n\ndef build():\n    return scenes.Scenes(name='plain')\n")
    out = tmp_path / "out"
    assert call(model(tmp_path, "reads"), both, out, "--limit", "10", "--benchmarks", f"{plugin},scenes") == 2, "given twice"
    where = ["--data", str(both), "--out", str(out), "--replicates", "200", "--limit", "10", "-q"]
    planted = [str(model(tmp_path, "reads")), "--engine", str(ENGINE), "--profile", "paper"]
    assert main.run(["evidence", *planted, "--benchmarks", f"{plugin},scenes", *where]) == 0
    plain, scenes = results(out)["benchmarks"]
    assert [each["benchmark"] for each in (plain, scenes)] == ["plain", "scenes"]
    assert "10 of 10" in plain["gone"]["gold"]
    assert [arm["arm"] for arm in plain["arms"]] == [arm["arm"] for arm in scenes["arms"]][:-1]
    counted = [line for each in (plain, scenes) for row in each["rows"] for line in row["lines"] if "difference" in line]
    assert results(out)["tests"] == len(counted)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count('class="kicker"') == 2


class PlantedHandler(Handler):
    """A planted model behind OpenAI's protocol."""

    planted = Planted("reads")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = [part for message in body["messages"] for part in message["content"]]
        texts = [part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text"]
        addresses = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        pictures = [Image.open(io.BytesIO(base64.b64decode(each.partition(",")[2]))) for each in addresses]
        request = Request((Turn("user", tuple(texts)),), dict(zip(("full", "roi"), pictures, strict=False)))
        (reply,) = self.planted.generate([request])
        usage = {"prompt_tokens": reply.tokens_in, "completion_tokens": reply.tokens_out}
        choice = {"message": {"role": "assistant", "content": reply.text}, "finish_reason": "stop"}
        self.answer(200, {"choices": [choice], "usage": usage})


def test_a_served_model(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same verdict and the same scores as with the model in this process."""
    monkeypatch.setattr(chat_server, "Handler", PlantedHandler)
    where = ["--benchmarks", "scenes", "--data", str(data), "--fast", "--limit", "30", "--replicates", "200", "-q"]
    with chat_server.serving(chat_server.Behaviour()) as address:
        served = ["served", "--engine", "openai", "--server", address, "--profile", "paper", "--out", str(tmp_path / "served")]
        assert main.run(["evidence", *served, *where]) == 0
    assert call(model(tmp_path, "reads"), data, tmp_path / "here", "--fast", "--limit", "30") == 0
    (far,), (near,) = (results(tmp_path / name)["benchmarks"] for name in ("served", "here"))
    assert far["verdict"] == near["verdict"] == "reads the crop"
    assert [arm["value"] for arm in far["arms"]] == [arm["value"] for arm in near["arms"]]


def test_stopped_anywhere_the_same_call_goes_on(tmp_path: Path, data: Path) -> None:
    planted, out, whole = model(tmp_path, "hurt"), tmp_path / "out", tmp_path / "whole"
    options = ("--fast", "--limit", "12", "--batch-size", "5")
    assert call(planted, data, out, *options, "--max-runtime", "0") == 130
    assert not (out / "results.json").exists()
    assert call(planted, data, out, *options) == 0
    answers = out / "black" / "scenes" / "predictions.jsonl"
    lines = answers.read_text(encoding="utf-8").splitlines(keepends=True)
    answers.write_text("".join(lines[:5]) + lines[5][:20], encoding="utf-8")  # killed in the middle of a line
    manifest.path_for(answers).unlink()
    shutil.rmtree(out / "swap")
    assert call(planted, data, out, *options) == 0
    assert call(planted, data, whole, *options) == 0
    assert _figures(results(out)) == _figures(results(whole))


def test_parts_are_answered_apart_and_scored_together(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted, out, whole = model(tmp_path, "reads"), tmp_path / "out", tmp_path / "whole"
    options = ("--fast", "--limit", "16")
    for number in ("1", "2"):
        assert call(planted, data, out, *options, "--shards", "2", "--shard", number) == 0
        assert not (out / "results.json").exists()
    assert capsys.readouterr().out == ""
    assert call(planted, data, out, *options, "--shards", "2") == 0
    assert call(planted, data, whole, *options) == 0
    parts, one = results(out), results(whole)
    assert parts["benchmarks"][0]["verdict"] == one["benchmarks"][0]["verdict"]
    # Foreign crops come from the pictures of the same part; all else is the same.
    lines, same = differences(parts), differences(one)
    assert [key for key in same if lines[key] != same[key]] in ([], [("model", "swap")])


def _figures(found: dict[str, Any]) -> Any:
    """What does not depend on where and how fast the run was."""
    for each in found["benchmarks"]:
        for arm in each["arms"]:
            del arm["seconds"], arm["folder"]
    return found["benchmarks"]


def test_misuse_is_refused_before_anything_runs(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted, out = model(tmp_path, "reads"), tmp_path / "out"
    assert call(planted, data, out, "--crop", "black") == 3
    assert "--crop" in capsys.readouterr().err
    out.mkdir()
    (out / "results.json").write_text("my own notes")
    assert call(planted, data, out) == 3
    assert "results.json" in capsys.readouterr().err
    assert list(out.iterdir()) == [out / "results.json"]
    assert call(planted, tmp_path / "nowhere", tmp_path / "other") == 3
    assert not (tmp_path / "other").exists()
