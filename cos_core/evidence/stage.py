"""`cos evidence` once its options are read: the arms are answered and scored by the suite, then compared and written down.

Answers and scores lie in `out/<arm>/<benchmark>`, as `cos eval` leaves them; what is written here is made of them, so that the
same call goes on where a former one was stopped, and only counts where all is answered.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cos_core.benchmarks import _files
from cos_core.errors import InputError
from cos_core.evaluate import compare_runs, protocol
from cos_core.evaluate import stage as evaluate
from cos_core.evidence import page, results
from cos_core.evidence.arms import NEEDED, TITLES, arms
from cos_core.evidence.config import EvidenceConfig
from cos_core.evidence.results import Costs, Examined
from cos_core.files import outputs, plug
from cos_core.interfaces import Reporter
from cos_core.scoring import cost
from cos_core.suite import gates
from cos_core.suite import stage as suite
from cos_core.suite.scored import Scored


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a call found. `results`: as in results.json; None where only a part of several was answered."""

    results: dict[str, Any] | None
    scored: suite.SuiteResult

    def conclude(self) -> None:
        """Raises FailuresError where an arm has no answer, or more failures than allowed (SuiteResult.conclude)."""
        if self.results is not None or self.scored.failed:
            self.scored.conclude()


def run(config: EvidenceConfig, reporter: Reporter) -> Evidence:
    """Answers with every arm, scores, compares, and writes results.json, table.md and index.html into `config.out`.

    Raises InputError for unusable files or options, TimeUpError when `max_runtime` is over, and what the suite raises.
    """
    _check_out(config)
    begun = time.monotonic()
    regionless = {name: _regionless(config, name) for name in config.names}
    runs: list[Scored] = []
    failed: list[str] = []
    for gold in (True, False):
        names = tuple(name for name, words in regionless.items() if gold == (not words))
        if not names:
            continue
        left = None if config.max_runtime is None else max(0.0, config.max_runtime - (time.monotonic() - begun))
        wanted = arms(blur=config.blur, fast=config.fast, gold=gold)
        done = suite.run(config.suite(names, left), reporter, arms=wanted)
        runs += done.runs
        failed += done.failed
    scored = suite.SuiteResult(runs, gates.Missed([], []), failed)
    if config.part is not None and config.part.number is not None:
        return Evidence(None, scored)
    examined = [_examined(name, runs, _gone(config, words)) for name, words in regionless.items()]
    found = results.collected(config, examined)
    results.write(config.out, found)
    page.write(config.out, found, reporter)
    return Evidence(found, scored)


def _check_out(config: EvidenceConfig) -> None:
    """Raises InputError for a folder whose files are not this command's."""
    files = {
        results.FIGURES: outputs.beginning(b'{\n  "model": '),
        results.TABLE: outputs.beginning(results.HEAD.encode()),
        results.PAGE: lambda _: False,
    }
    outputs.check_folder(config.out, "evidence", (config.data,), files)


def _regionless(config: EvidenceConfig, name: str) -> str:
    """Why the arm with the data set's own regions cannot be run; empty where every question names one."""
    benchmark = plug.load("benchmarks", name)
    root = _files.home(config.data, plug.short(name), benchmark)
    _, data = evaluate.load(name, root, config.scoring.split, config.scoring.scorer)
    examples = evaluate.first(data, config.scoring.limit).examples
    without = sum(example.gold is None for example in examples)
    return f"{without:,} of {len(examples):,} questions name no region" if without else ""


def _gone(config: EvidenceConfig, regionless: str) -> dict[str, str]:
    """Why arms were not run, by their names."""
    if config.fast:
        return {name: "--fast leaves such arms out" for name in TITLES if name not in NEEDED}
    return {"gold": regionless} if regionless else {}


def _examined(name: str, runs: Sequence[Scored], gone: Mapping[str, str]) -> Examined:
    mine = {str(run.arm): run for run in runs if run.folder is not None and run.folder.name == plug.short(name)}
    scored, costs = {}, {}
    for arm, run in mine.items():
        if run.folder is None:
            raise InputError(f"the scores of {name} under {arm} were not written")
        (scored[arm],) = compare_runs.runs_below(run.folder).values()
        costs[arm] = Costs(model=cost.recorded_flops(protocol.answered(run.folder / suite.ANSWERS)))
        for _, prediction in evaluate.read_predictions(run.folder / suite.ANSWERS).walk():
            costs[arm].add(prediction)
    return Examined(plug.short(name), mine, scored, costs, gone)
