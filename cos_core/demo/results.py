"""The demo's results: the table of arms, paired differences, labels against gold, and the page that shows them.

Everything is computed from the files that the steps wrote, so it can be written again without a model.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cos_core.data.datasets import read_examples
from cos_core.demo import story
from cos_core.demo.config import ARMS, BASE, CENTRE, CONTENT, LABELS, MAIN, UNTRAINED, Arm, DemoConfig, arm, settings
from cos_core.dialogue.prompts import checkpoint_profile
from cos_core.errors import InputError
from cos_core.files import durable, manifest
from cos_core.interfaces import SilentReporter
from cos_core.miniature.scenes import KINDS
from cos_core.models.checkpoint_info import fill_of
from cos_core.scoring import comparison, metrics
from cos_core.scoring.comparison import Comparison, ScoredRun
from cos_core.store.annotations import Store
from cos_core.types import Annotation, Example
from cos_core.visualize import runs
from cos_core.visualize.crop_section import crop_story
from cos_core.visualize.draw import EncoderView
from cos_core.visualize.gallery import publishing, write_page
from cos_core.visualize.report_cards import CardMaker, CardSources
from cos_core.visualize.run_report import Report, report_page
from cos_core.visualize.run_sections import signed
from cos_core.visualize.runs import FinishedRun, RunSources

GOALS = {BASE: 0.40, CENTRE: 0.35}
"""Arm -> the difference that was set as the target before the first run."""

CARDS = 30
"""Questions shown: drawn at random, the same share of each kind, so that none is picked by hand."""

POINTED = tuple(kind for kind in KINDS if kind != "scene")
"""Kinds of questions about an object; region hits are counted over these."""

CAVEAT = "The scenes are built so that 7 of 10 questions need a zoom; published gains on real benchmarks are one or two points."
"""The caveat beside the headline, on the page and in the terminal, which are read without the documents."""


def write(config: DemoConfig) -> dict[str, Any]:
    """Writes results.json, table.md and index.html into `config.out`; returns the results."""
    test = list(read_examples(config.out / "scenes" / "test" / "questions.jsonl"))
    train = list(read_examples(config.out / "scenes" / "train" / "questions.jsonl"))
    finished = _finished_runs(config)
    compared = _comparisons({name: _scored(run) for name, run in finished.items()})
    differences = [_difference_row(*each) for each in compared]
    headline, effects = claims(differences)
    results = {
        "quick": config.quick,
        "settings": dict(settings(config)),
        "questions": len(test),
        "headline": headline,
        "effects": effects,
        "caveat": CAVEAT,
        "arms": [_arm_row(each, finished[each.name]) for each in ARMS],
        "differences": differences,
        "labels": [row for policy in LABELS for row in _label_rows(config, policy, train)],
        "versions": manifest.versions(),
        "hardware": manifest.hardware(),
    }
    durable.atomic_write(config.out / "results.json", json.dumps(results, indent=2) + "\n")
    durable.atomic_write(config.out / "table.md", "\n".join(markdown(results)) + "\n")
    _write_page(config, results, finished, [pair for _, _, pair in compared], test)
    return results


# --- figures ---


def _finished_runs(config: DemoConfig) -> dict[str, FinishedRun]:
    """Every arm's scored run by the arm's name, with the arm's title and its explanation."""
    sources = RunSources(data=config.out / "scenes" / "test")
    loaded = runs.load([config.scores(each) for each in ARMS], sources, SilentReporter(), [each.title for each in ARMS])
    for each, run in zip(ARMS, loaded, strict=True):
        run.about = each.about
    return {each.name: run for each, run in zip(ARMS, loaded, strict=True)}


def _arm_row(each: Arm, run: FinishedRun) -> dict[str, Any]:
    scores, predictions = list(run.scores.values()), run.predictions
    low, high = run.results["intervals"]["accuracy"]
    kinds = metrics.by_group(scores, "kind")
    regions = run.results.get("regions", {})
    return {
        "name": each.name,
        "title": each.title,
        "total": len(scores),
        "correct": round(sum(s.value for s in scores)),
        "accuracy": metrics.mean(scores),
        "low": low,
        "high": high,
        "failed": sum(metrics.unanswered(s) for s in scores),
        "kinds": {k: {"correct": round(sum(s.value for s in kinds[k])), "total": len(kinds[k])} for k in KINDS if k in kinds},
        "hit": regions.get("hit"),
        "iou": regions.get("iou"),
        "area": regions.get("area"),
        "status": dict(Counter(p.box_status for p in predictions.values())) if each.name != BASE else {},
    }


def _scored(run: FinishedRun) -> ScoredRun:
    scored = run.scored()
    if scored is None:
        raise InputError(f"{run.path} holds no finished scores; remove it and start the demo again")
    return scored


def _comparisons(scored: Mapping[str, ScoredRun]) -> list[tuple[str, str | None, Comparison]]:
    """(other arm, kind of question, comparison): Chain-of-Spot minus every other arm, then minus one pass for each kind."""
    pairs = [(other.name, None) for other in ARMS if other.name != MAIN]
    rows = [(*pair, _compare(scored, *pair)) for pair in [*pairs, *((BASE, kind) for kind in KINDS)]]
    rows = [row for row in rows if row[2].n]
    adjusted = comparison.adjusted([pair for _, _, pair in rows])
    return [(against, kind, pair) for (against, kind, _), pair in zip(rows, adjusted, strict=True)]


def _compare(scored: Mapping[str, ScoredRun], against: str, kind: str | None) -> Comparison:
    before, after = (
        replace(scored[name], scores=[s for s in scored[name].scores if kind in (None, s.groups["kind"])])
        for name in (against, MAIN)
    )
    title = arm(MAIN).title + (f", {kind} questions" if kind else "")
    return comparison.pair(before, after, names=(arm(against).title, title))


def _difference_row(against: str, kind: str | None, pair: Comparison) -> dict[str, Any]:
    counts = {"n": pair.n, "wins": len(pair.won), "losses": len(pair.lost), "clusters": pair.found.clusters}
    # Plain floats: the ends of an interval over one picture are infinite.
    figures = {"mean": pair.found.difference, "low": pair.found.low, "high": pair.found.high, "p": pair.p, "test": pair.test}
    goal = None if kind else GOALS.get(against)
    row = {"arm": MAIN, "against": against, "kind": kind, **figures, **counts, "p_holm": pair.p_holm}
    return {**row, "verdict": pair.verdict, "goal": goal}


def claims(differences: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[str, str]]]:
    """The headline, and (figure, what it compares) for each effect; the headline claims only what the intervals support."""
    looking, training, grammar, black, swapped, absent = (
        next(row for row in differences if row["kind"] is None and row["against"] == name)
        for name in (BASE, *UNTRAINED, *CONTENT)
    )
    headline = f"Looking first {_verb(looking, 's')}; annotating and training {_verb(training, '')}"
    effects = [
        (f"Looking first: {signed(looking['mean'])} points", f"{_interval(looking)}, against one pass with the same training."),
        (
            f"Annotating and training: {signed(training['mean'])} points",
            f"{_interval(training)}, against the untrained model in two passes; {signed(grammar['mean'])} "
            f"{_interval(grammar)} when that model can write only boxes.",
        ),
        (
            f"What the region shows: {signed(black['mean'])} points",
            f"{_interval(black)}, against the same model and box with black in the region's place; {signed(swapped['mean'])} "
            f"{_interval(swapped)} with the same box of another scene; {signed(absent['mean'])} {_interval(absent)} with the "
            f"box in words alone.",
        ),
    ]
    return headline, effects


def _verb(row: Mapping[str, Any], ending: str) -> str:
    amount = f"{abs(100 * row['mean']):.1f} points"
    if row["low"] > 0:
        return f"add{ending} {amount}"
    return f"cost{ending} {amount}" if row["high"] < 0 else f"make{ending} no clear difference"


def _interval(row: Mapping[str, Any]) -> str:
    return f"({signed(row['low'])} to {signed(row['high'])})"


def _label_rows(config: DemoConfig, policy: str, train: Sequence[Example]) -> list[dict[str, Any]]:
    """The labels of one policy against the gold regions: a row for all questions about an object, then one for each kind."""
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
    table = []
    for kind, group in rows:
        if group:
            means = metrics.region_metrics(group)
            count = sum(fit.area is not None for fit in group)
            table.append({"policy": policy, "kind": kind, "questions": len(group), "labelled": count, **means})
    return table


# --- words ---


def markdown(results: Mapping[str, Any]) -> list[str]:
    """The results as Markdown tables, also for docs/miniature.md."""
    lines = [
        f"{results['headline']}. {results['caveat']}",
        "",
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
        title = arm(row["against"]).title
        interval = f"{row['low']:+.3f} to {row['high']:+.3f}"
        lines.append(f"| {title} | {row['kind'] or 'all'} | {row['mean']:+.3f} | {interval} | {row['n']} |")
    lines += ["", "| labels | kind | hit | IoU with gold | questions |", "|---|---|---|---|---|"]
    for row in results["labels"]:
        lines.append(f"| {row['policy']} | {row['kind']} | {row['hit']:.3f} | {row['iou']:.3f} | {row['questions']} |")
    return lines


def _share(tally: Mapping[str, int] | None) -> str:
    return f"{tally['correct'] / tally['total']:.3f}" if tally and tally["total"] else ""


def next_steps(config: DemoConfig) -> tuple[tuple[str, str], ...]:
    """Suggestions for own pictures: (description, command)."""
    model = config.out / "models" / MAIN
    ask = 'cos infer --model {} --image photo.jpg --question "What colour is the car?"'
    return (
        ("Ask the model just trained about a picture of yours (it knows only shapes, colours and digits)", ask.format(model)),
        ("Ask a real LLaVA-1.5 the same way, on a GPU", ask.format("llava-hf/llava-1.5-7b-hf")),
        ("Region statistics of the labels", f"cos visualize stats {config.labels(MAIN)} --out boxes"),
    )


# --- the page ---


def _write_page(
    config: DemoConfig,
    results: Mapping[str, Any],
    finished: Mapping[str, FinishedRun],
    compared: Sequence[Comparison],
    test: Sequence[Example],
) -> None:
    """Writes index.html: the report of all arms, whose cards show one pass beside Chain-of-Spot, with the story on top."""
    out, encoder, ids = config.out / "index.html", _encoder(config), _drawn(test)
    with publishing(out) as album:
        maker = CardMaker([finished[BASE], finished[MAIN]], album, CardSources(encoder=encoder))
        cards = [maker.card(example_id) for example_id in ids]
        note = f"{len(cards)} of {len(test):,} questions, drawn at random: half of them readings, the rest of the other kinds."
        crop = crop_story(maker.runs, maker, config.seed)
        report = Report(list(finished.values()), maker.runs, cards, compared, note=note, crop=crop)
        on_top = story.story(results, story.worked_question(maker, ids, encoder), next_steps(config))
        write_page(out, report_page(report, album, on_top), album)


def _encoder(config: DemoConfig) -> EncoderView:
    """The input of the vision encoder, read from the trained checkpoint's own files (no torch)."""
    weights = Path(config.checkpoint(arm(MAIN)))
    processor = json.loads((weights / "processor_config.json").read_text(encoding="utf-8"))["image_processor"]
    return EncoderView(int(processor["crop_size"]["height"]), fill_of(weights), checkpoint_profile(weights).crop_from)


def _drawn(test: Sequence[Example]) -> list[str]:
    """Up to CARDS questions drawn at random: half of them readings, the rest shared by the other kinds."""
    rng = random.Random(0)
    ids: list[str] = []
    for kind in KINDS:
        pool = [e.id for e in test if e.meta["kind"] == kind]
        want = CARDS // 2 if kind == "reading" else CARDS // 2 // (len(KINDS) - 1)
        ids += rng.sample(pool, min(want, len(pool)))
    return ids
