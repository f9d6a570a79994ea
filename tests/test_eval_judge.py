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

from cos_cli import main
from cos_core import assets, evaluate, plug
from cos_core.errors import InputError, MissingError
from cos_core.evaluate import EvalConfig, judge

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


def test_replies_without_a_grade(data: Path, server: Judge) -> None:
    server.queue = {"What is x? | ": ["I think", "2.0", "0.4"], "GO | ": ["no"] * 5}
    done = evaluate.run(config(data, server))
    about_x = [body for body in server.seen if "What is x? | " in body["messages"][0]["content"]]
    assert [body["temperature"] for body in about_x] == [0.0, 0.0, 0.5]
    assert about_x[1]["messages"][0]["content"].endswith("x = -1 | \nPredict the correctness of the answer (digit): ")
    kept = {row["example_id"]: row for row in map(json.loads, (data / "out" / "grades.jsonl").read_text().splitlines())}
    assert (kept["v1_0"]["grade"], kept["v1_2"]["grade"], kept["v1_2"]["read"]) == (0.4, 0.0, False)
    assert len(kept["v1_2"]["replies"]) == 5
    assert done.results["metrics"]["total"] == 30.0


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
    with pytest.raises(InputError, match=r"lacks 3 grades by other-model"):
        evaluate.run(config(data, None, judge_model="other-model"))


def test_refusals(data: Path, server: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge.time, "sleep", lambda _: None)
    server.refuse = [(401, "no such key")]
    with pytest.raises(InputError, match=r"refuses \(HTTP 401\): no such key"):
        evaluate.run(config(data, server))
    server.refuse = [(503, "")] * judge.PATIENCE
    with pytest.raises(MissingError, match="did not answer 8 times"):
        evaluate.run(config(data, server))
    with pytest.raises(MissingError):
        judge.Endpoint("http://127.0.0.1:9", "m").ask("?", 0.0)
    with pytest.raises(InputError, match="begins with http"):
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
