"""Grades from a language model behind an OpenAI-compatible endpoint, for benchmarks whose answers no rule can score.

The benchmark formats the request and parses the reply; this module sends, repeats and records. It sends nothing without a URL.
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
"""The retries for an endpoint that is busy or out of reach; grades recorded before the run ends are kept."""

REFUSALS = 3
"""After this many refused requests in a row, without a grade before them, the run ends with InputError."""

Key = tuple[str, str, int]
"""(example id, hash of the answer, run from 0)."""


def protocol(config: EvalConfig, benchmark: JudgedBenchmark) -> dict[str, Any]:
    """The judge's settings that two scores must share to be comparable."""
    settings = {"model": config.judge_model, "prompt_sha256": _digest(benchmark.judge_prompt()), "runs": config.judge_runs}
    return {**settings, "reading": benchmark.reading}


def grades(
    config: EvalConfig,
    benchmark: JudgedBenchmark,
    data: BenchmarkData,
    predictions: Mapping[str, Prediction],
    reporter: Reporter,
) -> dict[str, list[float]] | None:
    """Each answered question's grades, one a run (nan for one not read); None without recorded grades and without an endpoint.

    Raises InputError when answers were never graded and no endpoint is given, when it refuses, or when its replies are no chat
    completions; MissingError when it cannot be reached.
    """
    file = config.out / FILE if config.out is not None else None
    if config.judge_url is None and (file is None or not file.exists()):
        return None
    if file is None:
        raise InputError("a judge's grades are kept; give a folder for them (--out)")
    job = _GradingJob(benchmark, benchmark.judge_prompt(), config.judge_model)
    answered = [(e, p.answer) for e in data.examples if (p := predictions.get(e.id)) is not None and p.answer is not None]
    requests = [GradingRequest(e, a, run) for run in range(config.judge_runs) for e, a in answered]
    recorded = _recorded_grades(file, job)
    if config.judge_url is None:
        missing = sum(request.key not in recorded for request in requests)
        if missing:
            raise InputError(f"{file} lacks {missing} grades by {config.judge_model}; give the judge's endpoint (--judge-url)")
    elif open_requests := [request for request in requests if recorded.get(request.key) is None]:
        endpoint = Endpoint(config.judge_url, config.judge_model, timeout=config.timeout)
        with DurableWriter(file, batch=1) as writer:
            graded = _graded_requests(endpoint, job, open_requests, any(grade is not None for grade in recorded.values()))
            for number, (request, record) in enumerate(graded, 1):
                writer.append(record)
                recorded[request.key] = record["grade"] if record["read"] else job.unread(record["replies"])
                reporter.progress("judge", number, len(open_requests))
    by_key = {request.key: math.nan if (grade := recorded[request.key]) is None else grade for request in requests}
    return {e.id: [by_key[GradingRequest(e, a, run).key] for run in range(config.judge_runs)] for e, a in answered}


@dataclass(frozen=True, slots=True)
class GradingRequest:
    """One answer to be graded; `run` from 0."""

    example: Example
    answer: str
    run: int

    @property
    def key(self) -> Key:
        return self.example.id, _digest(self.answer), self.run


@dataclass(frozen=True, slots=True)
class _GradingJob:
    """What grades depend on beside the answer: the benchmark (formats requests, parses replies), its prompt, the judge."""

    benchmark: JudgedBenchmark
    prompt: str
    model: str

    def grade(self, replies: Sequence[str], cut: bool) -> float | None:
        """The first grade in replies; `cut`: they were cut off at their longest."""
        readings = (self.benchmark.judge_grade(reply, cut) for reply in replies)
        return next((grade for grade in readings if grade is not None), None)

    def unread(self, replies: Sequence[str]) -> float | None:
        """The grade of an answer whose replies hold none: the benchmark's `unread_grade` after the last try, else None."""
        return self.benchmark.unread_grade if len(replies) >= len(TEMPERATURES) else None


def _recorded_grades(file: Path, job: _GradingJob) -> dict[Key, float | None]:
    """Recorded grades of this judge model and prompt, parsed by the benchmark's present rule; None for replies without a grade.

    A later line replaces an earlier one, unless only the earlier one has a grade.
    """
    by_key: dict[Key, float | None] = {}
    if not file.exists():
        return by_key
    problems: list[jsonl.Problem] = []
    digest = _digest(job.prompt)
    for line, row in jsonl.read_lines(file, problems.append):
        try:
            if (row["asked"], row["prompt_sha256"]) != (job.model, digest):
                continue
            key = str(row["example_id"]), str(row["answer_sha256"]), int(row["run"])
            replies = [str(reply) for reply in row["replies"]]
            grade = job.grade(replies, bool(row.get("cut", True)))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(f"{file}:{line}: not a judge's grade") from None
        grade = job.unread(replies) if grade is None else grade
        if grade is not None or key not in by_key:
            by_key[key] = grade
    return by_key


def _digest(text: str) -> str:
    return hashlib.sha256(utf8(text)).hexdigest()


def _graded_requests(
    endpoint: Endpoint, job: _GradingJob, requests: Sequence[GradingRequest], has_graded: bool
) -> Iterator[tuple[GradingRequest, dict[str, Any]]]:
    """Each answer with its record. `has_graded`: this endpoint has given grades before.

    A single refused answer (a content filter) is recorded without a grade. Raises InputError when the endpoint refuses the
    first answers altogether.
    """
    refused: list[tuple[GradingRequest, dict[str, Any]]] = []
    for request in requests:
        record = _ask_for_grade(endpoint, job, request)
        has_graded = has_graded or record["refused"] is None
        if has_graded:
            yield from refused
            refused = []
            yield request, record
            continue
        refused.append((request, record))
        if len(refused) >= REFUSALS or request is requests[-1]:
            raise InputError(f"the judge at {endpoint.url} refuses ({record['refused']})")


def _ask_for_grade(endpoint: Endpoint, job: _GradingJob, request: GradingRequest) -> dict[str, Any]:
    question = f"{job.prompt}\n{job.benchmark.judge_sample(request.example, request.answer)}"
    replies: list[str] = []
    judge, grade, cut, refused = job.model, None, False, None
    for temperature in TEMPERATURES:
        try:
            completion = endpoint.ask(question + (AGAIN if replies else ""), temperature)
        except Refusal as refusal:
            refused = str(refusal)
            break
        judge, cut = completion.model or job.model, cut or not completion.finished
        replies.append(completion.text)
        grade = job.benchmark.judge_grade(completion.text, not completion.finished)
        if grade is not None:
            break
    return {
        "grade": 0.0 if grade is None else grade,
        "read": grade is not None,
        "refused": refused,
        "asked": job.model,
        "judge": judge,
        "prompt_sha256": _digest(job.prompt),
        "replies": replies,
        "cut": cut,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "example_id": request.example.id,
        "answer_sha256": _digest(request.answer),
        "run": request.run,
    }


class Refusal(InputError):
    """The endpoint refused this one request."""


class Endpoint:
    """`POST <url>/chat/completions`, one user message a request; repeats it while the endpoint is busy or out of reach."""

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
        """The request's field for the reply's length limit; OpenAI's later models take another name."""

    def ask(self, text: str, temperature: float) -> Completion:
        """The endpoint's reply; its text is empty where there is none.

        Raises Refusal for an error about this request, InputError for one about all requests, MissingError without a reply.
        """
        try:
            return self._completion(text, temperature)
        except ServerError as error:
            if error.status == 400 and self._longest == "max_tokens" and "max_completion_tokens" in str(error):
                self._longest = "max_completion_tokens"
                return self.ask(text, temperature)
            if error.status is not None and not error.transient:
                raise Refusal(str(error)) from None
            if not error.transient:
                return Completion("")
            if error.again:
                message = f"the judge at {self.url} did not answer ({error}); grades so far are kept, run again"
                raise MissingError(message) from None
            raise InputError(f"the judge at {self.url} refuses ({error})") from None

    def _completion(self, text: str, temperature: float) -> Completion:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            self._longest: MAX_TOKENS,
            "temperature": temperature,
        }
        return self._client.ask("/chat/completions", payload(body), completions.read, self._patience)


__all__: Sequence[str] = ("Endpoint", "grades", "protocol")
