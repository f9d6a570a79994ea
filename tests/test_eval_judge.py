"""Judged answers, against a small HTTP server that speaks the OpenAI format."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from cos_cli import main
from cos_core import evaluate
from cos_core.errors import MissingError
from cos_core.evaluate import EvalConfig, judge
from cos_core.files import assets, plug
from cos_core.web import client as web

QUESTIONS = {
    "v1_0": {"imagename": "0.jpg", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]},
    "v1_1": {"imagename": "1.jpg", "question": "Which animal?", "answer": "cat<OR>kitten", "capability": ["rec"]},
    "v1_2": {"imagename": "2.jpg", "question": "Read the sign.", "answer": "STOP", "capability": ["ocr"]},
}
SAID = {"v1_0": "x = -1", "v1_1": "a cat", "v1_2": "GO"}


class Judge:
    """Replies from a queue for each question asked about, else a fixed grade; keeps what it was sent."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.queue: dict[str, list[str]] = {}
        self.refuse: list[tuple[int, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if outer.refuse:
                    code, text = outer.refuse.pop(0)
                    self.send_response(code)
                    self.send_header("Retry-After", "0")
                    self.end_headers()
                    self.wfile.write(text.encode())
                    return
                outer.seen.append(body)
                outer.keys.append(self.headers.get("Authorization"))
                asked = body["messages"][0]["content"]
                reply = next((queue.pop(0) for word, queue in outer.queue.items() if word in asked and queue), "0.5")
                data = json.dumps({"model": "judge-2026", "choices": [{"message": {"content": reply}}]}).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Judge]:
    made = Judge()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "mm-vet.json").write_text(json.dumps(QUESTIONS))
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps({"question_id": k, "text": v}) + "\n" for k, v in SAID.items()))
    return tmp_path


def config(data: Path, server: Judge | None, **more: Any) -> EvalConfig:
    url = server.url if server else None
    return EvalConfig("mmvet", data, data / "answers.jsonl", out=data / "out", replicates=100, judge_url=url, **more)


def test_the_official_prompt_is_whole() -> None:
    """Seven examples; the text of mm-vet_evaluator.py (7d717c2), by its length and digest."""
    text = assets.template("judge", "mmvet.txt").read_text(encoding="utf-8")
    lines = text.split("\n")
    assert lines[2:4] == ["Question | Ground truth | Prediction | Correctness", "--- | --- | --- | ---"]
    assert [line.rsplit(" | ", 1)[1] for line in lines[4:11]] == ["0.0", "0.5", "0.5", "0.5", "1.0", "0.4", "1.0"]
    assert lines[11:] == [""]
    assert hashlib.sha256(text.encode()).hexdigest() == DIGEST


def test_graded_by_hand(data: Path, server: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COS_JUDGE_KEY", "secret")
    server.queue = {"What is x? | ": ["0.5", "0.7"], "a cat | ": ["1.0 (right)", "1.0"], "GO | ": ["0.0", "0.0"]}
    done = evaluate.run(config(data, server, judge_runs=2))
    table = done.results["metrics"]
    # Runs: (0.5 + 1 + 0) / 3 and (0.7 + 1 + 0) / 3.
    assert (table["total"], table["runs"], table["std"]) == (53.3, [50.0, 56.7], 3.3)
    assert table["capabilities"] == {"math": 60.0, "ocr": 30.0, "rec": 100.0}
    assert table["integrations"] == {"math_ocr": 60.0, "ocr": 0.0, "rec": 100.0}
    assert done.results["headline"]["value"] == 53.3
    assert done.results["protocol"]["judge"]["model"] == "gpt-4-0613"
    first = server.seen[0]
    assert (first["max_tokens"], first["temperature"], first["model"]) == (3, 0.0, "gpt-4-0613")
    assert first["messages"][0]["content"].endswith("| 1.0\n\nWhat is x? | -1 <AND> -5 | x = -1 | ")
    assert set(server.keys) == {"Bearer secret"}
    kept = (data / "out" / "grades.jsonl").read_text()
    assert "secret" not in kept
    assert json.loads(kept.splitlines()[1])["replies"] == ["1.0 (right)"]
    assert json.loads(kept.splitlines()[1])["judge"] == "judge-2026"
    # Scored again: nobody is asked, and no endpoint is needed.
    asked = len(server.seen)
    again = evaluate.run(config(data, None, judge_runs=2))
    assert again.results["metrics"] == table
    assert len(server.seen) == asked == 6


TWELVE = [  # capabilities, grade
    ("rec", 1.0), ("rec", 0.5), ("ocr", 0.0), ("ocr math", 0.4), ("math ocr", 0.6), ("rec know", 0.9),
    ("rec know gen", 0.3), ("gen", 0.7), ("spat", 1.0), ("spat ocr", 0.2), ("rec", None), ("know", 0.1),
]  # fmt: skip


def test_twelve_questions_by_hand(data: Path, server: Judge) -> None:
    """Capabilities count in each question they are named in, sets whatever their order; the one without an answer has 0."""
    rows = {
        f"v1_{i}": {"imagename": f"{i}.jpg", "question": f"Question {i}?", "answer": "yes", "capability": names.split()}
        for i, (names, _) in enumerate(TWELVE)
    }
    (data / "mm-vet.json").write_text(json.dumps(rows))
    graded = [(i, grade) for i, (_, grade) in enumerate(TWELVE) if grade is not None]
    # As LLaVA's answer file has them: the bare number.
    said = [{"question_id": i, "prompt": f"Question {i}?", "text": "it is"} for i, _ in graded]
    (data / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    server.queue = {f"Question {i}? | ": [str(grade)] for i, grade in graded}
    done = evaluate.run(config(data, server))
    table = done.results["metrics"]
    assert (table["total"], done.counts["missing"]) == (47.5, 1)  # 5.7 of 12
    assert table["capabilities"] == {
        "gen": 50.0,  # 0.3, 0.7
        "know": 43.3,  # 0.9, 0.3, 0.1
        "math": 50.0,  # 0.4, 0.6
        "ocr": 30.0,  # 0, 0.4, 0.6, 0.2
        "rec": 54.0,  # 1, 0.5, 0.9, 0.3, none
        "spat": 60.0,  # 1, 0.2
    }
    assert table["integrations"]["math_ocr"] == 50.0
    assert table["integrations"]["rec"] == 50.0
    assert table["integrations"]["gen_know_rec"] == 30.0


def kept(data: Path) -> dict[str, dict[str, Any]]:
    """The last record of each answer."""
    return {row["example_id"]: row for row in map(json.loads, (data / "out" / "grades.jsonl").read_text().splitlines())}


def test_replies_without_a_grade(data: Path, server: Judge) -> None:
    """They are asked for four more times as the official script does, counted beside the score, and asked for next time."""
    server.queue = {"What is x? | ": ["I think", "2.0", "0.4"], "GO | ": ["no"] * 5}
    done = evaluate.run(config(data, server))
    about_x = [body for body in server.seen if "What is x? | " in body["messages"][0]["content"]]
    assert [body["temperature"] for body in about_x] == [0.0, 0.0, 0.5]
    assert about_x[1]["messages"][0]["content"].endswith("x = -1 | \nPredict the correctness of the answer (digit): ")
    assert (kept(data)["v1_0"]["grade"], kept(data)["v1_2"]["read"], len(kept(data)["v1_2"]["replies"])) == (0.4, False, 5)
    assert (done.results["metrics"]["total"], done.results["beside"]) == (30.0, {"ungraded": 1})
    # Scored again without the judge: the same score, with the same count.
    again = evaluate.run(config(data, None))
    assert again.results["metrics"] == done.results["metrics"]
    server.seen.clear()
    mended = evaluate.run(config(data, server))
    assert [body["messages"][0]["content"].endswith("GO | ") for body in server.seen] == [True]
    assert (mended.results["metrics"]["total"], mended.results["beside"]) == (46.7, {})


def test_the_official_reading_keeps_0_after_the_last_reply(data: Path, server: Judge) -> None:
    server.queue = {"GO | ": ["Score: 1.0"] * 5}
    official = evaluate.run(config(data, server, scorer="official"))
    assert (official.results["metrics"]["total"], official.results["beside"]) == (33.3, {})
    assert official.results["protocol"]["judge"]["reading"] == "official"
    server.seen.clear()
    assert evaluate.run(config(data, server, scorer="official")).results["metrics"] == official.results["metrics"]
    # The same replies, read by the other rule: nobody is asked.
    assert evaluate.run(config(data, server)).results["metrics"]["total"] == 66.7
    assert server.seen == []


def test_a_record_of_before_that_held_no_grade_is_asked_for_again(data: Path, server: Judge) -> None:
    evaluate.run(config(data, server))
    file = data / "out" / "grades.jsonl"
    rows = [{k: v for k, v in row.items() if k not in ("cut", "refused")} for row in kept(data).values()]
    rows[0] |= {"grade": 0.0, "read": False, "replies": ["", "?"]}
    rows[1] |= {"grade": 0.0, "read": False, "replies": ["Score: 0.9"]}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    server.seen.clear()
    done = evaluate.run(config(data, server))
    assert (len(server.seen), done.results["metrics"]["runs"]) == (1, [63.3])  # 0.5, 0.9 as it can be read now, 0.5


def test_no_score_when_nothing_was_read(data: Path, server: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    server.queue = {"": ["The"] * 15}
    call = ["eval", "mmvet", "--data", str(data), "--predictions", str(data / "answers.jsonl"), "--out", str(data / "out")]
    assert main.run([*call, "--judge-url", server.url, "--json"]) == 5
    told = capsys.readouterr()
    assert (json.loads(told.out)["metrics"]["total"], json.loads(told.out)["beside"]) == (None, {"ungraded": 3})
    assert "grades not read: 3" in told.err
    assert "no grade" in told.err.splitlines()[-1]


READ = [
    ("0.8", 0.8), ("0.8.", 0.8), (" 1 ", 1.0), ("0.5\n", 0.5), ("1", 1.0), ("1.0", 1.0), (".5", 0.5), ("0", 0.0), ("0.0", 0.0),
    ("0.8/1.0", 0.8), ("0.8 / 1", 0.8), ("0.8/1", 0.8), ("0.8 out of 1", 0.8), ("0.8 out of 1.0.", 0.8), ("Score: 0.8", 0.8),
    ("score = 0.8", 0.8), ("Grade: 0.5", 0.5), ("Correctness: 1.0", 1.0), ("The score is 0.7", 0.7), ("**0.8**", 0.8),
    ("**Score:** 0.8", 0.8), ("`0.4`", 0.4), ('"0.3"', 0.3), ("1.0 (right)", 1.0), ("0.5, since half is right", 0.5),
    ("0.9\nThe answer is nearly right.", 0.9), ("0.50", 0.5),
]  # fmt: skip
UNREAD = [
    "", " ", "\n", "The", "null", "None", "nan", "inf", "-0.5", "1.5", "2", "10", "100%", "80%", "80 percent",
    "0.8/10", "8/10", "0.8/5", "0.8/1.5", "0.5 or 0.7", "0.5-0.7", "0.5 to 0.7", "0.5, 0.7", "0.8 out of 10", "1e-1", "0x1",
    "0.5x", "1/2", "1 of 2",
    "Score:", "Score: The", "Q1: 0.8", "I give 0.8", "0,8", "\u0660.8", "\ud800", "0.8\u00b2",
    "1" * 400, "0.8 / 1.0 / 2", "1.2.3",
]  # fmt: skip


def test_the_forms_of_a_grade() -> None:
    read = plug.load("benchmarks", "mmvet").judge_grade
    assert [(reply, read(reply)) for reply, _ in READ] == READ
    assert [reply for reply in UNREAD if read(reply) is not None] == []
    # Cut off at three tokens, a reply may have been going to say more.
    assert [read(reply, cut=True) for reply in ("0.", "Score: 0", "Score: 0.", "0.8", "1", "Score: 0.8", " 1 ")] == [
        None, None, None, 0.8, 1.0, 0.8, 1.0,
    ]  # fmt: skip


def test_stopped_and_resumed(data: Path, server: Judge) -> None:
    server.refuse = [(429, "slow down"), (503, "")]
    server.queue = {"a cat | ": ["0.9"]}
    evaluate.run(config(data, server))
    file = data / "out" / "grades.jsonl"
    rows = file.read_text().splitlines(keepends=True)
    file.write_text(rows[0] + rows[1] + rows[2][:20])  # killed while the third was written
    server.seen.clear()
    evaluate.run(config(data, server))
    assert len(server.seen) == 1
    # A changed answer is graded again; the others are not.
    (data / "answers.jsonl").write_text(
        "".join(json.dumps({"question_id": k, "text": "dog" if k == "v1_1" else v}) + "\n" for k, v in SAID.items())
    )
    server.seen.clear()
    evaluate.run(config(data, server))
    assert [("dog | " in body["messages"][0]["content"]) for body in server.seen] == [True]
    with refused("3 ", "other-model", "--judge-url"):
        evaluate.run(config(data, None, judge_model="other-model"))


def test_refusals(data: Path, server: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "PATIENCE", quick := web.RetryPolicy(3, 0.001))
    monkeypatch.setattr(judge.Endpoint.__init__, "__defaults__", (None, 5.0, quick))
    server.refuse = [(401, "no such key")]
    with refused("HTTP 401 no such key"):
        evaluate.run(config(data, server))
    server.refuse = [(503, "")] * 3
    with refused("HTTP 503", kind=MissingError):
        evaluate.run(config(data, server))
    with pytest.raises(MissingError):
        judge.Endpoint("http://127.0.0.1:9", "m").ask("?", 0.0)
    # Every answer is refused: the endpoint does not take what it is sent.
    server.refuse = [(400, "Unsupported parameter: 'top_p'")] * 9
    with refused("HTTP 400 Unsupported parameter: 'top_p'"):
        evaluate.run(config(data, server))
    # One answer is refused after others were graded (a filter of contents): it alone is not read.
    server.refuse = []
    evaluate.run(config(data, server))
    (data / "answers.jsonl").write_text((data / "answers.jsonl").read_text().replace("GO", "rude"))
    server.refuse = [(400, "filtered")]
    assert evaluate.run(config(data, server)).results["beside"] == {"ungraded": 1}
    assert kept(data)["v1_2"]["refused"] == "HTTP 400 filtered"
    with refused("ftp://x", "http"):
        judge.Endpoint("ftp://x", "m")


def test_the_command_asks_nobody_unless_told(data: Path, server: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["eval", "mmvet", "--data", str(data), "--predictions", str(data / "answers.jsonl"), "-q", "--json"]
    assert main.run(call) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == {"server_scored": True}
    assert server.seen == []
    graded = [*call, "--out", str(data / "out"), "--judge-url", server.url, "--judge-runs", "2"]
    assert main.run(graded) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["runs"] == [50.0, 50.0]
    assert main.run([*call, "--judge-url", server.url]) == 3
    assert plug.load("benchmarks", "mmvet").judge_grade("0.5\n") == 0.5


# pragma: allowlist nextline secret
DIGEST = "d1b3e0a5b4e72c888b77164489d705bba4dd149934fff564dfba6443d81afe3f"


def test_a_grade_that_was_not_read_stands_beside_the_score(data: Path, server: Judge) -> None:
    """It counts 0, as in the official script; it is asked again next time, and without any grade read there is no total."""
    settings = EvalConfig("mmvet", data, data / "answers.jsonl", out=data / "out", judge_url=server.url, replicates=100)
    server.queue = {"x = -1": ["none"] * 5, "a cat": ["?"] * 5, "GO": ["bad"] * 5}
    nothing = evaluate.run(settings).results
    assert nothing["beside"] == {"ungraded": 3}
    assert nothing["metrics"]["total"] is None
    assert "total" not in nothing["intervals"]
    server.queue = {"a cat": ["?"] * 5}
    some = evaluate.run(settings).results
    assert some["beside"] == {"ungraded": 1}
    assert some["metrics"]["total"] == pytest.approx(33.3)
    again = evaluate.run(settings)
    assert (again.results["beside"], again.results["metrics"]["total"]) == ({}, 50.0)
    server.seen.clear()
    assert evaluate.run(settings).results["metrics"]["total"] == 50.0
    assert not server.seen, "grades that were read are never asked for again"
