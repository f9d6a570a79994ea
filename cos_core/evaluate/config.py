"""Settings of a scoring run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cos_core import options
from cos_core.options import INPUT, SCORING, SERVER, option
from cos_core.scoring import REPLICATES
from cos_core.web.addresses import MAX_TIMEOUT, MIN_TIMEOUT, judge_address


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringOptions:
    """How answers are scored, whatever the benchmark; each field says what it is.

    Answers that a language model grades (MM-Vet): `judge_url` is asked only when it is given; grades are kept in the run's
    folder and read from there without it. `timeout` is in seconds. Raises InputError for values out of their bounds.
    """

    split: str | None = option(None, "Split of the benchmark.", INPUT, shown_default="the benchmark's usual one")
    scorer: str | None = option(
        None, "Another scoring rule than the benchmark's own.", SCORING, shown_default="the benchmark's own"
    )
    limit: int | None = option(
        None,
        "Ask and score only the first so many questions, as a trial; the run is marked as partial.",
        INPUT,
        low=1,
        high=options.COUNT,
        shown_default="all",
    )
    partial_join: bool = option(
        False, "Score although a large part of the answers belongs to no question and as many questions have none.", SCORING
    )
    seed: int = options.seed_option()
    judge_url: str | None = option(
        None, "OpenAI-compatible endpoint that grades; its key is in COS_JUDGE_KEY.", SERVER, shown_default="none"
    )
    judge_model: str = option("gpt-4-0613", "The judge's name there.", SERVER)
    judge_runs: int = option(1, "Grades an answer; several give mean and spread.", SERVER, low=1, high=100)
    timeout: float = option(
        120.0, "Seconds that one request to a server or judge may take.", SERVER, low=MIN_TIMEOUT, high=MAX_TIMEOUT
    )

    def __post_init__(self) -> None:
        options.check(self)
        if self.judge_url is not None:
            judge_address(self.judge_url)


@dataclass(frozen=True, slots=True)
class EvalConfig(ScoringOptions):
    """One benchmark's score.

    benchmark     a name or a plug-in file
    data          the folder with its official files
    predictions   a JSONL file, or a folder with predictions.jsonl
    out           folder for scores and manifest; None writes nothing
    replicates    bootstrap samples
    """

    benchmark: str
    data: Path
    predictions: Path
    out: Path | None = None
    replicates: int = option(REPLICATES, "Bootstrap samples.", SCORING, low=1, high=options.REPLICATES)
