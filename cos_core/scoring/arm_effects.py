"""What several arms of one model say together: what writing a box does, what its picture adds, and whether arms cost alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cos_core.scoring import comparison, metrics, statistics
from cos_core.scoring.columns import IdColumn, Scores
from cos_core.scoring.comparison import ScoredRun
from cos_core.scoring.effects import Paired, Share, finite, mean, mean_of, paired, signed_ends
from cos_core.scoring.facts import Facts

MODEL = "from_single_question"
EQUAL_POLICIES = ("full", "center_crop", "random")
EQUAL_CROPS = ("black", "noise", "swap")
"""Arms that are made to cost as many tokens as the model's own region."""

SCHEMA = "what writing a box and reading it back does, without a second picture"
CALL = "what the picture of the region adds to its box"


@dataclass(frozen=True, slots=True)
class Step:
    """The effect of one arm over another. `gain`, `harm`: the mean of what rose and of what fell, both at least 0, with their
    intervals (`Share.n`: of how many questions); `net` = gain - harm, pictures resampled. `words`: what the step is."""

    name: str
    of: str
    over: str
    words: str
    gain: Share
    harm: Share
    net: float
    low: float
    high: float
    p: float

    def sides(self) -> dict[str, tuple[float, tuple[float, float] | None]]:
        """ "gain" and "harm", the harm below 0, each with its interval."""
        harm = -self.harm.share + 0.0, signed_ends(-1, self.harm.low, self.harm.high)
        return {"gain": (self.gain.share, signed_ends(1, self.gain.low, self.gain.high)), "harm": harm}

    def to_json(self) -> dict[str, Any]:
        return finite({**asdict(self), "gain": self.gain.to_json(), "harm": self.harm.to_json()})


@dataclass(frozen=True, slots=True)
class Split:
    """The way from one pass to two in two steps, over the `n` questions that all three arms scored: the box without its picture
    (`schema`), and then the picture (`call`). Both nets add up to the difference of the arms with and without Chain-of-Spot."""

    benchmark: str
    n: int
    schema: Step
    call: Step

    def to_json(self) -> dict[str, Any]:
        return {"benchmark": self.benchmark, "n": self.n, "schema": self.schema.to_json(), "call": self.call.to_json()}


@dataclass(frozen=True, slots=True)
class TokenGap:
    """The second pass's prompt in two arms that are to cost alike: of `n` questions that both asked twice, `differ` have
    another number of tokens, pictures included; `mean`, `mean_model`: means over the `n`."""

    benchmark: str
    arm: str
    model: str
    n: int
    differ: int
    mean: float
    mean_model: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def words(self) -> str:
        """A sentence."""
        if not self.differ:
            return f"{self.arm} and {self.model}: the second pass has as many tokens in all {self.n:,} questions"
        return (
            f"{self.arm} and {self.model} do not cost alike: the second pass has another number of tokens in "
            f"{self.differ:,} of {self.n:,} questions, {self.mean:,.1f} against {self.mean_model:,.1f} on average"
        )


def arm_of(run: ScoredRun) -> tuple[str, str]:
    """(policy, crop) of a run; the policy of one that has a gate, or shows its second pass otherwise than in full, is ''."""
    protocol = run.protocol
    if any(protocol.get(key) is not None for key in ("box_text", "global_scale", "gate")):
        return "", ""
    policy, crop = protocol.get("policy"), protocol.get("crop", "region")
    return (policy, crop) if isinstance(policy, str) and isinstance(crop, str) else ("", "")


def splits(runs: Mapping[str, ScoredRun], replicates: int = statistics.REPLICATES, seed: int = 0) -> Iterator[Split]:
    """A split for each run without a second picture (crop "absent") among `runs` of one benchmark, by name, with the run of one
    pass and that of the same policy with its crops; none where one of the three is missing."""
    arms = {name: arm_of(run) for name, run in runs.items()}
    plain = next((name for name, (policy, _) in arms.items() if policy == "none"), None)
    for absent, (policy, crop) in arms.items():
        model = next((name for name, arm in arms.items() if arm == (policy, "region")), None)
        if crop == "absent" and plain is not None and model is not None:
            yield split((plain, absent, model), runs, replicates, seed)


def split(
    names: tuple[str, str, str], runs: Mapping[str, ScoredRun], replicates: int = statistics.REPLICATES, seed: int = 0
) -> Split:
    """The split of the runs `names`: one pass, no second picture, both. Raises KeyError for an unknown name."""
    none, absent, model = _of_all([runs[name] for name in names])
    steps = (
        _step("schema", SCHEMA, (names[1], names[0]), paired(none, absent), replicates, seed),
        _step("call", CALL, (names[2], names[1]), paired(absent, model), replicates, seed),
    )
    return Split(none.benchmark, len(none.scores), *steps)


def _of_all(runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """The runs with the scores of the questions that all of them scored."""
    tables = [Scores.of(run.scores) for run in runs]
    kept = [name for name in tables[0].ids.names if all(name in table.ids for table in tables[1:])]
    return [
        replace(run, scores=table.take([table.ids.places()[name] for name in kept]))
        for run, table in zip(runs, tables, strict=True)
    ]


def _step(name: str, words: str, of_over: tuple[str, str], values: Paired, replicates: int, seed: int) -> Step:
    rose, fell = np.maximum(values.gap, 0), np.maximum(-values.gap, 0)
    estimates = [mean_of("gain", rose), mean_of("harm", fell)]
    measured = metrics.measured(estimates, values.clusters, replicates=replicates, seed=seed)
    gain, harm = (
        Share(int(np.count_nonzero(moved)), mean(moved), *(measured[side][:2] if side in measured else ()))
        for side, moved in (("gain", rose), ("harm", fell))
    )
    found = comparison.tested(values.estimate("a"), values.estimate("b"), values.scores, replicates, seed)
    return Step(name, *of_over, words, gain, harm, found.found.difference, found.found.low, found.found.high, found.p)


def token_gaps(runs: Mapping[str, ScoredRun], facts: Mapping[str, Facts]) -> Iterator[TokenGap]:
    """Each arm of one benchmark that is to cost as many tokens as the model's own region, against the run that shows it.

    `facts`: of the same runs by name. An arm whose second passes are not recorded, or share no question with the other's, gives
    none.
    """
    arms = {name: arm_of(run) for name, run in runs.items()}
    model = next((name for name, arm in arms.items() if arm == (MODEL, "region")), None)
    if model is None:
        return
    for name, (policy, crop) in arms.items():
        if (policy == MODEL and crop in EQUAL_CROPS) or (policy in EQUAL_POLICIES and crop == "region"):
            gap = token_gap(runs[name].benchmark, (name, facts[name]), (model, facts[model]))
            if gap.n:
                yield gap


def token_gap(benchmark: str, arm: tuple[str, Facts], model: tuple[str, Facts]) -> TokenGap:
    """The prompts of the second pass of two runs, (name, facts) each, over the questions that both asked twice."""
    kept = [name for name in arm[1].ids.names if name in model[1].ids]
    one, other = (facts.take(IdColumn(kept)).prompt for facts in (arm[1], model[1]))
    both = (one >= 0) & (other >= 0)
    one, other = one[both], other[both]
    differ = int(np.count_nonzero(one != other))
    return TokenGap(benchmark, arm[0], model[0], len(one), differ, mean(one), mean(other))
