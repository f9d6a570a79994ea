"""Settings of a scoring run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cos_core.scoring import statistics
from cos_core.system import bounds
from cos_core.web.addresses import check_timeout, judge_address


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """`benchmark`: a name or a plug-in file; `data`: the folder with its official files; `predictions`: a JSONL file, or a
    folder with predictions.jsonl; `out`: a folder for scores and manifest, None to write nothing; `split` as the benchmark
    names it; `scorer`: one of the benchmark's scorers where it has several; `limit`: score the first so many questions only;
    `partial_join`: score although joining.check speaks against it; `replicates` and `seed` of the bootstrap.

    Answers that a language model grades (MM-Vet): `judge_url` is an OpenAI-compatible endpoint, asked only when it is given;
    `judge_runs` grades an answer; `timeout` is what one request to it may take, in seconds. Grades are kept in `out` and read
    from there without a `judge_url`. Raises InputError for values out of their bounds.
    """

    benchmark: str
    data: Path
    predictions: Path
    out: Path | None = None
    split: str | None = None
    scorer: str | None = None
    limit: int | None = None
    partial_join: bool = False
    replicates: int = statistics.REPLICATES
    seed: int = 0
    judge_url: str | None = None
    judge_model: str = "gpt-4-0613"
    judge_runs: int = 1
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if self.judge_url is not None:
            judge_address(self.judge_url)
        check_timeout(self.timeout)
        bounds.check("judge_runs", self.judge_runs, 1, 100)
        bounds.check("replicates", self.replicates, 1, bounds.REPLICATES)
        bounds.check("seed", self.seed, 0, bounds.SEED)
