"""The command `cos demo`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cos_cli.command import command
from cos_cli.console import Session, emit_json, reporting
from cos_core.files.text import escaped
from cos_core.system.streams import behind

if TYPE_CHECKING:
    from cos_core.demo import DemoConfig

_SHORT = {"reading": "read", "colour": "col.", "relation": "rel."}
"""Column heads that would not fit."""


@command("demo", "cos_core.demo.config:DemoConfig")
def demo(session: Session, config: DemoConfig) -> None:
    """Show Chain-of-Spot at work, from drawn scenes to a results table, on a CPU.

    Makes scenes, annotates them, trains the rows of the paper's Table 3(a) from one small model, and answers held-out questions
    with each. About seven minutes on two cores; killed and started again, it goes on where it was.

    \b
    Examples:
      cos demo
      cos demo --quick --out /tmp/demo
    """
    from cos_core.demo import run

    with reporting(session) as reporter:
        results = run(config, reporter)
    if session.json:
        emit_json(results)
        return
    _show(config, results)


def _show(config: Any, results: Mapping[str, Any]) -> None:
    """The table on stdout, as a person reads it."""
    from rich.console import Console

    from cos_core.demo.results import next_steps

    console = Console(file=behind(sys.stdout), highlight=False, soft_wrap=True)
    if config.quick:
        console.print("Quick run: every stage ran, on too little data to prove anything.\n", style="bold yellow")
    console.print(_arms(results))
    console.print(_differences(results))
    if not config.quick:
        console.print(f"\n{results['headline']}.", style="bold", markup=False)
        for figure, words in results["effects"]:
            console.print(f"  {figure} {words}", markup=False)
        console.print(results["caveat"], markup=False)
    page, figures = (escaped(config.out / name) for name in ("index.html", "results.json"))
    console.print(f"\nThe page: {page}   the figures: {figures}", markup=False)
    console.print("\nWhat to try next:", style="bold")
    for words, line in next_steps(config):
        console.print(f"  {words}:\n    {escaped(line)}", markup=False)


def _arms(results: Mapping[str, Any]) -> Any:
    """Percentages; fits eighty columns."""
    from rich import box
    from rich.table import Table

    from cos_core.demo.config import MAIN

    kinds = list(results["arms"][0]["kinds"])
    table = Table(
        title=f"{results['questions']} held-out questions, percent right",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("arm", no_wrap=True)
    for name in ("all", "95 %", *(_SHORT.get(kind, kind) for kind in kinds), "hit", "area", "box"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in results["arms"]:
        shares = [f"{100 * t['correct'] / t['total']:.0f}" if (t := row["kinds"].get(k)) else "" for k in kinds]
        hit, area = ("" if row[k] is None else f"{100 * row[k]:.0f}" for k in ("hit", "area"))
        read = sum(row["status"].get(s, 0) for s in ("ok", "repaired", "clamped"))
        requested = row["total"] - row["status"].get("skipped", 0)
        boxes = f"{100 * read / requested:.0f}" if row["status"] and requested else ""
        interval = f"{100 * row['low']:.0f}-{100 * row['high']:.0f}"
        style = "bold" if row["name"] == MAIN else None
        table.add_row(row["title"], f"{100 * row['accuracy']:.1f}", interval, *shares, hit, area, boxes, style=style)
    table.caption = (
        "hit: the region holds the right object's centre; area: of the picture; box: could be read\n"
        "black, swapped, box alone: Chain-of-Spot with black, another scene or nothing in the region's place\n"
        "untrained: the start checkpoint in two passes; grammar: its first pass can write only boxes"
    )
    table.caption_justify = "left"
    return table


def _differences(results: Mapping[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    titles = {row["name"]: row["title"] for row in results["arms"]}
    table = Table(
        title="Chain-of-Spot minus the others, in points (paired, scenes resampled)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("arm", "questions", "difference", "95 %"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for row in results["differences"]:
        title = titles[row["against"]] + (f", {row['kind']} only" if row["kind"] else "")
        table.add_row(title, str(row["n"]), f"{100 * row['mean']:+.1f}", f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}")
    return table
