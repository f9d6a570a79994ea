"""What must be equal for two scores to be comparable, from the answers and from what the run that answered recorded."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cos_core.evaluate import second_pass
from cos_core.evaluate.joining import Answers
from cos_core.files import manifest
from cos_core.interfaces import Benchmark, BenchmarkData
from cos_core.types import Prediction


def answered(file: Path) -> Mapping[str, Any]:
    """The results of the run that answered, from the manifest beside its answers or beside their first part; empty where
    answers do not say (another tool's). Answers in several parts have one setting (suite)."""
    parts = sorted(file.parent.glob(f"{glob.escape(file.stem)}.*-of-*{file.suffix}.{manifest.FILE}"))
    for path in filter(Path.is_file, (manifest.path_for(file), *parts)):
        return manifest.read(path).results
    return {}


def settings(answered: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings among those results, by name; empty where there are none."""
    found = answered.get("settings")
    return found if isinstance(found, Mapping) else {}


def of(
    benchmark: Benchmark,
    data: BenchmarkData,
    predictions: Mapping[str, Prediction],
    settings: Mapping[str, Any],
    samples: int = 1,
) -> dict[str, Any]:
    """Split, profile, policy, what the second pass was shown, pixel budget, how answers were drawn, what the benchmark adds.

    A run of several profiles, policies or second passes lists them all. `settings`: the run's that answered, where known;
    `samples`: answers a question.
    """
    answers = predictions if isinstance(predictions, Answers) else None
    pairs = answers.profiles_and_policies() if answers is not None else [(p.profile, p.policy) for p in predictions.values()]
    passes = answers.second_passes() if answers is not None else [second_pass.of(p) for p in predictions.values()]
    return {
        "benchmark": data.name,
        "split": data.split,
        "profile": _one_or_all(profile for profile, _ in pairs),
        "policy": _one_or_all(policy for _, policy in pairs),
        **second_pass.protocol(settings, passes),
        **data.protocol,
        **benchmark.protocol(predictions),
        **pixel_budget(settings),
        **sampling(settings, samples),
    }


def pixel_budget(settings: Mapping[str, Any]) -> dict[str, str]:
    """How finely the run that answered showed its pictures, by the words of its model's family.

    The same model differs by tens of points over it. Empty for families that have no such setting.
    """
    budget = settings.get("pixel_budget")
    if isinstance(budget, Mapping) and budget:
        return {"pixel_budget": ", ".join(f"{word} {value}" for word, value in budget.items())}
    return {}


def sampling(settings: Mapping[str, Any], count: int) -> dict[str, str]:
    """How answers were drawn: empty where every token was the likeliest. `count`: answers a question."""
    words = [
        *(f"{word} {settings[key]:g}" for key, word in (("temperature", "temperature"), ("top_p", "top-p")) if key in settings),
        *([f"{count} samples"] if count > 1 else []),
    ]
    return {"sampling": ", ".join(words)} if words else {}


def _one_or_all(values: Iterable[str]) -> str | list[str]:
    distinct = sorted(set(values))
    return distinct[0] if len(distinct) == 1 else distinct
