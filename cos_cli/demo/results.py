"""The demo's results: the table of arms, paired differences, labels against gold, and the page that shows them.

Everything here is computed from what the stages left on disk, so it can be written again without a model.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cos_cli.demo.arms import ARMS, BASE, CENTRE, LABELS, MAIN, Arm, DemoConfig, arm, settings
from cos_core.data.datasets import read_examples
from cos_core.dialogue.prompts import checkpoint_profile
from cos_core.evaluate import stage as evaluate
from cos_core.evaluate.compare_runs import runs_below
from cos_core.files import jsonl, manifest
from cos_core.geometry import Box
from cos_core.miniature.scenes import KINDS
from cos_core.models.checkpoint_info import fill_of
from cos_core.scoring import comparison, metrics
from cos_core.scoring.comparison import ScoredRun
from cos_core.store.annotations import Store
from cos_core.types import Annotation, Example, Prediction, Score
from cos_core.visualize import demo_page as page
from cos_core.visualize.demo_records import ArmRole

GOALS = {BASE: 0.40, CENTRE: 0.35}
"""The differences that were asked for before the first run."""

CARDS = 30
"""Scenes shown: drawn at random, the same share of each kind of question, so that none is picked by hand."""

POINTED = tuple(kind for kind in KINDS if kind != "scene")
"""Kinds that ask about a thing; a region can only hit the right thing in these."""


def write(config: DemoConfig) -> dict[str, Any]:
    """Writes results.json, table.md and index.html into `config.out`; returns the results."""
    test = list(read_examples(config.out / "scenes" / "test" / "questions.jsonl"))
    train = list(read_examples(config.out / "scenes" / "train" / "questions.jsonl"))
    scores = {arm.name: evaluate.read_scores(config.scores(arm)) for arm in ARMS}
    predictions = {arm.name: _predictions(config.predictions(arm)) for arm in ARMS}
    results = {
        "quick": config.quick,
        "settings": dict(settings(config)),
        "questions": len(test),
        "arms": [_arm_row(config, arm, scores[arm.name], predictions[arm.name], test) for arm in ARMS],
        "differences": _differences(config),
        "labels": [row for policy in LABELS for row in _label_rows(config, policy, train)],
        "versions": manifest.versions(),
        "hardware": manifest.hardware(),
    }
    manifest.atomic_write(config.out / "results.json", json.dumps(results, indent=2) + "\n")
    manifest.atomic_write(config.out / "table.md", "\n".join(markdown(results)) + "\n")
    page.write_demo_report(config.out / "index.html", _page(config, results, test, scores, predictions))
    return results


# --- figures ---


def _arm_row(
    config: DemoConfig, arm: Arm, scores: Sequence[Score], predictions: Mapping[str, Prediction], test: Sequence[Example]
) -> dict[str, Any]:
    found = manifest.read(config.scores(arm) / manifest.FILE)
    low, high = found.results["intervals"]["accuracy"]
    kinds = metrics.by_group(scores, "kind")
    pointed = [e for e in test if e.meta["kind"] in POINTED]
    fits = metrics.region_scores(pointed, _read(predictions), {}) if arm.name != BASE else []
    return {
        "name": arm.name,
        "title": arm.title,
        "total": len(scores),
        "correct": round(sum(s.value for s in scores)),
        "accuracy": metrics.mean(scores),
        "low": low,
        "high": high,
        "failed": sum(metrics.unanswered(s) for s in scores),
        "kinds": {k: {"correct": round(sum(s.value for s in kinds[k])), "total": len(kinds[k])} for k in KINDS if k in kinds},
        "hit": metrics.region_metrics(fits).get("hit"),
        "iou": metrics.region_metrics(fits).get("iou"),
        "area": metrics.region_metrics(fits).get("area"),
        "status": dict(Counter(p.box_status for p in predictions.values())) if arm.name != BASE else {},
    }


def _differences(config: DemoConfig) -> list[dict[str, Any]]:
    """Chain-of-Spot minus every other arm over all questions, and minus no Chain-of-Spot for each kind."""
    runs = {each.name: next(iter(runs_below(config.scores(each)).values())) for each in ARMS}
    rows = [_difference(runs, other.name, None) for other in ARMS if other.name != MAIN]
    rows += [_difference(runs, BASE, kind) for kind in KINDS]
    return [row for row in rows if row]


def _difference(runs: Mapping[str, ScoredRun], against: str, kind: str | None) -> dict[str, Any]:
    theirs, ours = (
        replace(runs[name], scores=[s for s in runs[name].scores if kind in (None, s.groups["kind"])])
        for name in (against, MAIN)
    )
    if not ours.scores:
        return {}
    pair = comparison.pair(theirs, ours, names=(against, MAIN))
    counts = {"n": pair.n, "wins": len(pair.won), "losses": len(pair.lost), "clusters": pair.found.clusters}
    # Plain floats: the ends of an interval over one picture are infinite.
    figures = {"mean": pair.found.difference, "low": pair.found.low, "high": pair.found.high, "p": pair.p, "test": pair.test}
    goal = None if kind else GOALS.get(against)
    return {"arm": MAIN, "against": against, "kind": kind, **figures, **counts, "verdict": pair.verdict, "goal": goal}


def _label_rows(config: DemoConfig, policy: str, train: Sequence[Example]) -> list[dict[str, Any]]:
    """How the labels of one policy lie to the gold regions: all questions about a thing, then kind by kind."""
    with Store.read(config.labels(policy)) as store:
        labels: dict[str, Annotation] = {a.example_id: a for a in store.annotations()}
    fits: dict[str, list[metrics.RegionScore]] = {}
    for example in train:
        label = labels.get(example.id)
        fit = metrics.region_score(example, label.box if label else None)
        if fit is not None:
            fits.setdefault(str(example.meta["kind"]), []).append(fit)
    pointed = [fit for kind in POINTED for fit in fits.get(kind, [])]
    rows = [("all", pointed), *((kind, fits.get(kind, [])) for kind in POINTED)]
    found = []
    for kind, group in rows:
        if group:
            means = metrics.region_metrics(group)
            count = sum(fit.area is not None for fit in group)
            found.append({"policy": policy, "kind": kind, "questions": len(group), "labelled": count, **means})
    return found


def _read(predictions: Mapping[str, Prediction]) -> dict[str, Prediction]:
    """The predictions without boxes that stand in for one that could not be read: the whole picture would always hit."""
    unread = ("unparsable", "degenerate")
    return {k: replace(p, box=None) if p.box_status in unread else p for k, p in predictions.items()}


def _predictions(path: Path) -> dict[str, Prediction]:
    return {p.example_id: p for p in (Prediction.from_json(row) for _, row in jsonl.read_lines(path))}


# --- words ---


def markdown(results: Mapping[str, Any]) -> list[str]:
    """The results as Markdown tables, also for docs/miniature.md."""
    lines = [
        f"Held-out questions: {results['questions']}. Intervals are 95 %, scenes resampled. "
        "Hit: the region holds the centre of the right object, over questions about an object; area: its share of the picture.",
        "",
        "| arm | accuracy | 95 % | " + " | ".join(KINDS) + " | hit | area | box status |",
        "|---|---|---|" + "---|" * len(KINDS) + "---|---|---|",
    ]
    for row in results["arms"]:
        kinds = " | ".join(_share(row["kinds"].get(k)) for k in KINDS)
        hit, area = ("" if row[k] is None else f"{row[k]:.3f}" for k in ("hit", "area"))
        status = ", ".join(f"{name} {count}" for name, count in sorted(row["status"].items()))
        interval = f"{row['low']:.3f}-{row['high']:.3f}"
        lines.append(f"| {row['title']} | {row['accuracy']:.3f} | {interval} | {kinds} | {hit} | {area} | {status} |")
    lines += ["", "| Chain-of-Spot minus | kind | difference | 95 %, paired | questions |", "|---|---|---|---|---|"]
    for row in results["differences"]:
        title = next(a.title for a in ARMS if a.name == row["against"])
        interval = f"{row['low']:+.3f} to {row['high']:+.3f}"
        lines.append(f"| {title} | {row['kind'] or 'all'} | {row['mean']:+.3f} | {interval} | {row['n']} |")
    lines += ["", "| labels | kind | hit | IoU with gold | questions |", "|---|---|---|---|---|"]
    for row in results["labels"]:
        lines.append(f"| {row['policy']} | {row['kind']} | {row['hit']:.3f} | {row['iou']:.3f} | {row['questions']} |")
    return lines


def _share(tally: Mapping[str, int] | None) -> str:
    return f"{tally['correct'] / tally['total']:.3f}" if tally and tally["total"] else ""


def next_steps(config: DemoConfig) -> tuple[tuple[str, str], ...]:
    """What to try on one's own picture, as (what it does, command)."""
    model = config.out / "models" / MAIN
    ask = 'cos infer --model {} --image photo.jpg --question "What colour is the car?"'
    return (
        ("Ask the model just trained about a picture of yours (it knows only shapes, colours and digits)", ask.format(model)),
        ("Ask a real LLaVA-1.5 the same way, on a GPU", ask.format("llava-hf/llava-1.5-7b-hf")),
        ("Region statistics of the labels", f"cos visualize stats {config.labels(MAIN)} --out boxes"),
    )


# --- the page ---


_ROLES: dict[str, ArmRole] = {
    MAIN: "method",
    BASE: "baseline",
    "random_labels": "control",
    "gold_labels": "reference",
    "gold_regions": "reference",
}
_EXPLAIN = {
    BASE: "one pass, the whole picture only",
    CENTRE: "the middle of the picture, always",
    "from_image": "a region chosen without knowing the question",
    "from_questions": "one region for all questions on the picture",
    MAIN: "a region for this question; labels made by cos annotate",
    "random_labels": "trained on windows drawn at random",
    "gold_labels": "trained on the exact regions",
    "gold_regions": "the same weights, shown the exact region",
}


CAVEAT = (
    "The scenes are built so that 7 of 10 questions cannot be answered without zooming: the size of this gain is the task's. "
    "On real benchmarks the paper reports gains of one to two points."
)
"""Stands where the number is, as the page travels alone."""


def _page(
    config: DemoConfig,
    results: Mapping[str, Any],
    test: Sequence[Example],
    scores: Mapping[str, Sequence[Score]],
    predictions: Mapping[str, Mapping[str, Prediction]],
) -> page.DemoReport:
    return page.DemoReport(
        title="Chain-of-Spot in small",
        arms=tuple(_page_arm(row) for row in results["arms"]),
        comparisons=tuple(
            page.ArmComparison(
                MAIN_TITLE,
                _title(row["against"]),
                row["mean"],
                row["low"],
                row["high"],
                row["kind"],
                row["wins"],
                row["losses"],
                row["goal"],
            )
            for row in _headline_first(results["differences"])
        ),
        kinds=KINDS,
        labels=tuple(_page_labels(results["labels"])),
        cards=tuple(_cards(config, test, scores, predictions)),
        encoder=_encoder(config),
        images=(config.out / "scenes" / "test" / "images").resolve(),
        quick=config.quick,
        caveat="" if config.quick else CAVEAT,
        next_steps=next_steps(config),
        settings=results["settings"],
        provenance={**results["versions"], **{k: str(v) for k, v in results["hardware"].items()}},
    )


def _title(name: str) -> str:
    return next(a.title for a in ARMS if a.name == name)


MAIN_TITLE = _title(MAIN)


def _headline_first(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: (row["kind"] is not None, row["against"] != BASE))


def _page_arm(row: Mapping[str, Any]) -> page.ArmRow:
    return page.ArmRow(
        name=row["title"],
        correct=row["correct"],
        total=row["total"],
        low=row["low"],
        high=row["high"],
        role=_ROLES.get(row["name"], "arm"),
        explain=_EXPLAIN[row["name"]],
        hit=row["hit"],
        area=row["area"],
        status=row["status"],
        kinds={kind: page.ArmScore(**tally) for kind, tally in row["kinds"].items()},
    )


def _page_labels(rows: Sequence[Mapping[str, Any]]) -> Iterable[page.LabelRow]:
    chance = {row["kind"]: row["hit"] for row in rows if row["policy"] == "random"}
    for row in rows:
        if row["policy"] == MAIN:
            yield page.LabelRow(row["kind"], row["questions"], row["hit"], row["iou"], chance.get(row["kind"]))


def _encoder(config: DemoConfig) -> page.EncoderView:
    """The input of the vision encoder, read from the trained checkpoint's own files (no torch)."""
    weights = config.weights(arm(MAIN))
    processor = json.loads((weights / "processor_config.json").read_text(encoding="utf-8"))["image_processor"]
    return page.EncoderView(int(processor["crop_size"]["height"]), fill_of(weights), checkpoint_profile(weights).crop_from)


def _cards(
    config: DemoConfig,
    test: Sequence[Example],
    scores: Mapping[str, Sequence[Score]],
    predictions: Mapping[str, Mapping[str, Prediction]],
) -> Iterable[page.DemoCard]:
    right = {name: {s.example_id: s.value > 0 for s in scores[name]} for name in (BASE, MAIN)}
    for example in _sample(test):
        with_cos, without = predictions[MAIN][example.id], predictions[BASE][example.id]
        yield page.DemoCard(
            example_id=example.id,
            image=Path(example.image or ""),
            kind=str(example.meta["kind"]),
            question=example.question,
            truth=example.answers[0],
            without=page.Answered(without.answer or "", right[BASE][example.id]),
            with_cos=page.Answered(with_cos.answer or "", right[MAIN][example.id]),
            predicted=with_cos.box,
            gold=Box.from_json(example.meta["gold"]),
            box_text=with_cos.box_text or "",
            box_status=with_cos.box_status,
        )


def _sample(test: Sequence[Example]) -> list[Example]:
    """Up to CARDS questions drawn at random: half of them readings, the rest shared by the other kinds."""
    rng = random.Random(0)
    chosen: list[Example] = []
    for kind in KINDS:
        pool = [e for e in test if e.meta["kind"] == kind]
        want = CARDS // 2 if kind == "reading" else CARDS // 2 // (len(KINDS) - 1)
        chosen += rng.sample(pool, min(want, len(pool)))
    return chosen
