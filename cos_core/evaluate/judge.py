"""Grades from a language model behind an OpenAI-compatible endpoint, for benchmarks whose answers no rule can score.

The benchmark words the request and reads the reply; here it is sent, repeated and kept. Nothing is sent unless a URL is given.
Every reply is appended to grades.jsonl as it comes (judge, prompt's hash, raw replies, when), and an answer with a grade there
from the same judge model, prompt and run is never graded again. One whose replies held no grade is asked for again by the
next run.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_core.errors import InputError, MissingError
from cos_core.files import jsonl
from cos_core.files.durable import utf8
from cos_core.files.durable_writer import DurableWriter
from cos_core.interfaces import BenchmarkData, JudgedBenchmark, Reporter
from cos_core.types import Example, Prediction
from cos_core.web import chat_completions as completions
from cos_core.web.addresses import check_key, judge_address
from cos_core.web.chat_completions import Completion
from cos_core.web.client import Client, RetryPolicy, ServerError, payload

if TYPE_CHECKING:
    from cos_core.evaluate.config import EvalConfig

FILE = "grades.jsonl"
KEYS = ("COS_JUDGE_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the endpoint's key; it is sent and never recorded."""

AGAIN = "\nPredict the correctness of the answer (digit): "
TEMPERATURES = (0.0, 0.0, 0.5, 1.0, 1.5)
"""Of the first request and of those after a reply without a grade, as in mm-vet_evaluator.py, whose grade after the last is 0.
(That script sends one more and does not read its reply.)"""

MAX_TOKENS = 3
PATIENCE = RetryPolicy(attempts=8, pause=1.0)
"""How an endpoint that is busy or out of reach is asked before the run gives up; what was graded stays."""

REFUSALS = 3
"""So many requests refused one after the other, with no grade read before, are the endpoint's affair and not the answers'."""

Key = tuple[str, str, int]
"""(example id, hash of the answer, run from 0)."""


def protocol(config: EvalConfig, benchmark: JudgedBenchmark) -> dict[str, Any]:
    """What two judged scores must share."""
    made = {"model": config.judge_model, "prompt_sha256": _digest(benchmark.judge_prompt()), "runs": config.judge_runs}
    return {**made, "reading": benchmark.reading}


def grades(
    config: EvalConfig,
    benchmark: JudgedBenchmark,
    data: BenchmarkData,
    predictions: Mapping[str, Prediction],
    reporter: Reporter,
) -> dict[str, list[float]] | None:
    """Each answered question's grades, one a run (nan for one not read); None where nobody has graded and none is asked to.

    Raises InputError when answers were never graded and no endpoint is given, when it refuses, or when its replies are no chat
    completions; MissingError when it cannot be reached.
    """
    file = config.out / FILE if config.out is not None else None
    if config.judge_url is None and (file is None or not file.exists()):
        return None
    if file is None:
        raise InputError("a judge's grades are kept; give a folder for them (--out)")
    work = _GradingJob(benchmark, benchmark.judge_prompt(), config.judge_model)
    answered = [(e, p.answer) for e in data.examples if (p := predictions.get(e.id)) is not None and p.answer is not None]
    asked = [Asked(e, a, run) for run in range(config.judge_runs) for e, a in answered]
    known = _kept(file, work)
    if config.judge_url is None:
        lacking = sum(each.key not in known for each in asked)
        if lacking:
            raise InputError(f"{file} lacks {lacking} grades by {config.judge_model}; give the judge's endpoint (--judge-url)")
    elif wanted := [each for each in asked if known.get(each.key) is None]:
        endpoint = Endpoint(config.judge_url, config.judge_model, timeout=config.timeout)
        with DurableWriter(file, batch=1) as writer:
            graded = _graded(endpoint, work, wanted, any(grade is not None for grade in known.values()))
            for number, (each, record) in enumerate(graded, 1):
                writer.append(record)
                known[each.key] = record["grade"] if record["read"] else work.unread(record["replies"])
                reporter.progress("judge", number, len(wanted))
    given = {each.key: math.nan if (grade := known[each.key]) is None else grade for each in asked}
    return {e.id: [given[Asked(e, a, run).key] for run in range(config.judge_runs)] for e, a in answered}


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer to be graded; `run` from 0."""

    example: Example
    answer: str
    run: int

    @property
    def key(self) -> Key:
        return self.example.id, _digest(self.answer), self.run


@dataclass(frozen=True, slots=True)
class _GradingJob:
    """What grades depend on beside the answer: the benchmark, which words requests and reads replies, and the judge's name."""

    benchmark: JudgedBenchmark
    prompt: str
    model: str

    def grade(self, replies: Sequence[str], cut: bool) -> float | None:
        """The first grade in replies; `cut`: they were cut off at their longest."""
        read = (self.benchmark.judge_grade(reply, cut) for reply in replies)
        return next((grade for grade in read if grade is not None), None)

    def unread(self, replies: Sequence[str]) -> float | None:
        """The grade of replies that hold none: 0 by a rule that says so after the last try, else none."""
        return self.benchmark.unread_grade if len(replies) >= len(TEMPERATURES) else None


def _kept(file: Path, work: _GradingJob) -> dict[Key, float | None]:
    """What this judge model said under this prompt, read by the benchmark's rule of now; None for replies without a grade.

    Later lines win, but not one without a grade over one with.
    """
    found: dict[Key, float | None] = {}
    if not file.exists():
        return found
    problems: list[jsonl.Problem] = []
    digest = _digest(work.prompt)
    for line, row in jsonl.read_lines(file, problems.append):
        try:
            if (row["asked"], row["prompt_sha256"]) != (work.model, digest):
                continue
            key = str(row["example_id"]), str(row["answer_sha256"]), int(row["run"])
            replies = [str(reply) for reply in row["replies"]]
            grade = work.grade(replies, bool(row.get("cut", True)))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(f"{file}:{line}: not a judge's grade") from None
        grade = work.unread(replies) if grade is None else grade
        if grade is not None or key not in found:
            found[key] = grade
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(utf8(text)).hexdigest()


def _graded(
    endpoint: Endpoint, work: _GradingJob, wanted: Sequence[Asked], worked: bool
) -> Iterator[tuple[Asked, dict[str, Any]]]:
    """Each answer with its record. `worked`: this endpoint has given grades before.

    What it refuses is one answer's affair (a filter of its contents), and is recorded without a grade; when it refuses the
    first answers altogether, InputError.
    """
    refused: list[tuple[Asked, dict[str, Any]]] = []
    for each in wanted:
        record = _grade(endpoint, work, each)
        worked = worked or record["refused"] is None
        if worked:
            yield from refused
            refused = []
            yield each, record
            continue
        refused.append((each, record))
        if len(refused) >= REFUSALS or each is wanted[-1]:
            raise InputError(f"the judge at {endpoint.url} refuses ({record['refused']})")


def _grade(endpoint: Endpoint, work: _GradingJob, each: Asked) -> dict[str, Any]:
    question = f"{work.prompt}\n{work.benchmark.judge_sample(each.example, each.answer)}"
    replies: list[str] = []
    judge, grade, cut, refused = work.model, None, False, None
    for temperature in TEMPERATURES:
        try:
            said = endpoint.ask(question + (AGAIN if replies else ""), temperature)
        except Refusal as refusal:
            refused = str(refusal)
            break
        judge, cut = said.model or work.model, cut or not said.finished
        replies.append(said.text)
        grade = work.benchmark.judge_grade(said.text, not said.finished)
        if grade is not None:
            break
    return {
        "grade": 0.0 if grade is None else grade,
        "read": grade is not None,
        "refused": refused,
        "asked": work.model,
        "judge": judge,
        "prompt_sha256": _digest(work.prompt),
        "replies": replies,
        "cut": cut,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "example_id": each.example.id,
        "answer_sha256": _digest(each.answer),
        "run": each.run,
    }


class Refusal(InputError):
    """The endpoint does not take this one request."""


class Endpoint:
    """`POST <url>/chat/completions`, one user's message at a time. Waits and asks again when it is busy or out of reach."""

    def __init__(
        self, url: str, model: str, key: str | None = None, timeout: float = 120.0, patience: RetryPolicy = PATIENCE
    ) -> None:
        name = next((name for name in KEYS if os.environ.get(name)), KEYS[0])
        key = key or os.environ.get(name) or None
        check_key(key, f"the key in {name}")
        self._client = Client(judge_address(url), key, timeout)
        self.url = self._client.url
        self.model = model
        self._patience = patience
        self._longest = "max_tokens"
        """How the endpoint calls the longest reply; OpenAI's later models take another name."""

    def ask(self, text: str, temperature: float) -> Completion:
        """Its reply, with an empty text where it has none.

        Raises Refusal for what it says to this request, InputError when it refuses any, MissingError when it stays away.
        """
        try:
            return self._said(text, temperature)
        except ServerError as error:
            if error.status == 400 and self._longest == "max_tokens" and "max_completion_tokens" in str(error):
                self._longest = "max_completion_tokens"
                return self.ask(text, temperature)
            if error.status is not None and not error.transient:
                raise Refusal(str(error)) from None
            if not error.transient:
                return Completion("")
            if error.again:
                said = f"the judge at {self.url} did not answer ({error}); grades so far are kept, run again"
                raise MissingError(said) from None
            raise InputError(f"the judge at {self.url} refuses ({error})") from None

    def _said(self, text: str, temperature: float) -> Completion:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            self._longest: MAX_TOKENS,
            "temperature": temperature,
        }
        return self._client.ask("/chat/completions", payload(body), completions.read, self._patience)


__all__: Sequence[str] = ("Endpoint", "grades", "protocol")
