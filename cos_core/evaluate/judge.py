"""Grades from a language model behind an OpenAI-compatible endpoint, for benchmarks whose answers no rule can score.

The benchmark words the request and reads the reply; here it is sent, repeated and kept. Nothing is sent unless a URL is given.
Every grade is appended to grades.jsonl as it comes (judge, prompt's hash, raw replies, when), and one that is there for the
same answer, judge model, prompt and run is never asked for again.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_core import jsonl
from cos_core.errors import InputError, MissingError
from cos_core.interfaces import BenchmarkData, Reporter
from cos_core.types import Example, Prediction

if TYPE_CHECKING:
    from cos_core.evaluate import EvalConfig

FILE = "grades.jsonl"
KEYS = ("COS_JUDGE_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the endpoint's key; it is sent and never recorded."""

AGAIN = "\nPredict the correctness of the answer (digit): "
TEMPERATURES = (0.0, 0.0, 0.5, 1.0, 1.5)
"""Of the first request and of those after a reply without a grade, as in mm-vet_evaluator.py; after the last the grade is 0.
(That script sends one more and does not read its reply.)"""

MAX_TOKENS = 3
TIMEOUT_SECONDS = 120.0
PATIENCE = 8
"""How often an endpoint that is busy or out of reach is asked before the run gives up; what was graded stays."""

Key = tuple[str, str, int]
"""(example id, hash of the answer, run from 0)."""


def protocol(config: EvalConfig, benchmark: Any) -> dict[str, Any]:
    """What two judged scores must share."""
    return {"model": config.judge_model, "prompt_sha256": _digest(benchmark.judge_prompt()), "runs": config.judge_runs}


def grades(
    config: EvalConfig, benchmark: Any, data: BenchmarkData, predictions: Mapping[str, Prediction], reporter: Reporter
) -> dict[str, list[float]] | None:
    """Each answered question's grades, one a run (nan for one that could not be read); None where nobody has graded and none is
    asked to.

    Raises InputError when grades are missing and no endpoint is given, when it refuses, or when replies cannot be understood;
    MissingError when it cannot be reached.
    """
    file = config.out / FILE if config.out is not None else None
    if config.judge_url is None and (file is None or not file.exists()):
        return None
    if file is None:
        raise InputError("a judge's grades are kept; give a folder for them (--out)")
    if config.judge_runs < 1:
        raise InputError(f"a judge grades at least once, got {config.judge_runs} runs")
    prompt = benchmark.judge_prompt()
    answered = [(e, p.answer) for e in data.examples if (p := predictions.get(e.id)) is not None and p.answer is not None]
    known = _kept(file, config.judge_model, _digest(prompt))
    runs = range(config.judge_runs)
    lacking = [(e, a, run) for run in runs for e, a in answered if _key(e, a, run) not in known]
    # A reply without a grade is asked for again, by whoever has a judge.
    unread = [(e, a, run) for run in runs for e, a in answered if math.isnan(known.get(_key(e, a, run), 0.0))]
    wanted = lacking if config.judge_url is None else [*lacking, *unread]
    if wanted and config.judge_url is None:
        raise InputError(f"{file} lacks {len(wanted)} grades by {config.judge_model}; give the judge's endpoint (--judge-url)")
    if wanted:
        endpoint = Endpoint(config.judge_url or "", config.judge_model)
        with jsonl.DurableWriter(file, batch=1) as writer:
            for number, (example, answer, run) in enumerate(wanted, 1):
                record = _grade(endpoint, benchmark, prompt, example, answer)
                record |= {"example_id": example.id, "answer_sha256": _digest(answer), "run": run}
                writer.append(record)
                known[_key(example, answer, run)] = record["grade"] if record["read"] else math.nan
                reporter.progress("judge", number, len(wanted))
    return {e.id: [known[_key(e, a, run)] for run in range(config.judge_runs)] for e, a in answered}


def _kept(file: Path, model: str, prompt: str) -> dict[Key, float]:
    """Grades of this judge model under this prompt; later lines win."""
    found: dict[Key, float] = {}
    if not file.exists():
        return found
    problems: list[jsonl.Problem] = []
    for line, row in jsonl.read_lines(file, problems.append):
        try:
            if (row["asked"], row["prompt_sha256"]) == (model, prompt):
                found[str(row["example_id"]), str(row["answer_sha256"]), int(row["run"])] = (
                    float(row["grade"]) if row.get("read", True) else math.nan
                )
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{file}:{line}: not a judge's grade") from None
    return found


def _key(example: Example, answer: str, run: int) -> Key:
    return example.id, _digest(answer), run


def _digest(text: str) -> str:
    return hashlib.sha256(jsonl.utf8(text)).hexdigest()


def _grade(endpoint: Endpoint, benchmark: Any, prompt: str, example: Example, answer: str) -> dict[str, Any]:
    question = f"{prompt}\n{benchmark.judge_sample(example, answer)}"
    replies: list[str] = []
    judge, grade = endpoint.model, None
    for temperature in TEMPERATURES:
        judge, reply = endpoint.ask(question + (AGAIN if replies else ""), temperature)
        replies.append(reply)
        grade = benchmark.judge_grade(reply)
        if grade is not None:
            break
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "grade": 0.0 if grade is None else grade,
        "read": grade is not None,
        "asked": endpoint.model,
        "judge": judge,
        "prompt_sha256": _digest(prompt),
        "replies": replies,
        "at": now,
    }


class Endpoint:
    """`POST <url>/chat/completions`, one user's message at a time. Waits and asks again when it is busy or out of reach."""

    def __init__(self, url: str, model: str, key: str | None = None, wait_seconds: float = 1.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"a judge's address begins with http:// or https://, not {url!r}")
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.model = model
        self._key = key or next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        self._wait = wait_seconds

    def ask(self, text: str, temperature: float) -> tuple[str, str]:
        """(model that answered, its reply). Raises InputError when the endpoint refuses, MissingError when it stays away."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": MAX_TOKENS,
            "temperature": temperature,
        }
        why = ""
        for attempt in range(PATIENCE):
            try:
                return self._read(self._send(json.dumps(body).encode()))
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code}"
                pause = _retry_after(error.headers.get("Retry-After"))
                if error.code != 429 and error.code < 500:
                    detail = error.read(400).decode("utf-8", "replace").strip()
                    raise InputError(f"the judge at {self.url} refuses ({why}): {detail}") from None
            except (OSError, http.client.HTTPException) as error:
                why, pause = str(getattr(error, "reason", error) or type(error).__name__), None
            if attempt + 1 < PATIENCE:
                time.sleep(self._wait * 2**attempt if pause is None else pause)
        raise MissingError(
            f"the judge at {self.url} did not answer {PATIENCE} times ({why}); grades so far are kept, run again"
        )

    def _send(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        request = urllib.request.Request(self.url, body, headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            data: bytes = answer.read()
        return data

    def _read(self, data: bytes) -> tuple[str, str]:
        try:
            reply = json.loads(data)
            return str(reply.get("model") or self.model), str(reply["choices"][0]["message"]["content"] or "")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise InputError(f"the judge at {self.url} answers in another format: {data[:120]!r}") from None


def _retry_after(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None


__all__: Sequence[str] = ("Endpoint", "grades", "protocol")
