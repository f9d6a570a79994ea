"""`cos store`: look into annotation stores, check and merge them, and exchange their regions with other formats."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cos_cli.command import Group, command
from cos_cli.console import Session, columns, emit, emit_json, reporting, run_stage
from cos_core import options
from cos_core.files.text import Lines, escaped
from cos_core.options import INPUT, OUTPUT, REQUIRED, SELECTION, option

if TYPE_CHECKING:
    from cos_core.data.formats.config import StoreExportConfig, StoreImportConfig
    from cos_core.store.annotations import Store
    from cos_core.store.merge import MergeConfig
    from cos_core.types import Annotation

HELP = """\
Look into annotation stores, check, merge, export and import them.

\b
Examples:
  cos store info rois
  cos store export rois --format coco --images pictures --out rois.json
"""
_REASONS = 5


@dataclass(frozen=True, slots=True)
class StorePath:
    """The store that is looked into."""

    store: Path = option(REQUIRED, "Store of `cos annotate`.", INPUT, argument=True, metavar="STORE", completes="store")


@dataclass(frozen=True, slots=True)
class ListingOptions(StorePath):
    """Which examples are listed."""

    failures: bool = option(False, "The examples that failed, with the reasons.", SELECTION)
    no_region: bool = option(False, "Only annotations without a box, with the reasons.", SELECTION)
    prefix: str = option("", "Only ids that begin so.", SELECTION, completes="example")
    limit: int | None = option(None, "At most so many.", SELECTION, low=1, high=options.COUNT, shown_default="all")


@dataclass(frozen=True, slots=True)
class ExampleOptions(StorePath):
    """Which example is shown."""

    example: str = option(REQUIRED, "The example's id.", INPUT, argument=True, metavar="ID", completes="example")
    heat: Path | None = option(
        None, "Also write the relevance map, .json or .npy, as `cos visualize overlay --heat` reads it.", OUTPUT
    )


def _command(name: str, *sources: type | str) -> Any:
    return command(f"store {name}", *sources, leaves_out=("config_file",))


@_command("info", StorePath)
def info(session: Session, at: StorePath) -> None:
    """Say what a store is: schema, settings, counts, bytes.

    \b
    Example:
      cos store info rois
    """
    from cos_core.files.filesystems import network_type
    from cos_core.store.annotations import Store

    with reporting(session), Store.read(at.store) as opened:
        facts = {"path": str(at.store), **opened.info()}
    if (kind := network_type(at.store)) is not None:
        facts["network_file_system"] = kind
    if session.json:
        emit_json(facts)
        return
    settings = facts.pop("provenance")
    rows = [(name.replace("_", " "), _plain(value)) for name, value in facts.items()]
    emit(columns([*rows, *((f"  {name}", _plain(value)) for name, value in settings.items())]))


@_command("ls", ListingOptions)
def ls(session: Session, at: ListingOptions) -> None:
    """List example ids, sorted, one a line; reasons behind a tab.

    \b
    Examples:
      cos store ls rois --prefix 00000 --limit 10
      cos store ls rois --failures
    """
    from itertools import islice

    from cos_core.store.annotations import Store

    if at.failures and at.no_region:
        raise typer.BadParameter("--failures and --no-region exclude each other")
    with Store.read(at.store) as opened:
        rows = opened.failures(at.prefix) if at.failures else _listed(opened, at.prefix, at.no_region)
        shown = islice(rows, at.limit)
        if not session.json:
            sys.stdout.writelines(escaped(name) + (f"\t{escaped(reason)}" if reason else "") + "\n" for name, reason in shown)
            return
        examples = [{"example_id": name, "reason": reason} if reason else {"example_id": name} for name, reason in shown]
    emit_json({"examples": examples})


def _listed(opened: Store, prefix: str, no_region: bool) -> Any:
    for annotation in opened.annotations(prefix):
        if not no_region:
            yield annotation.example_id, None
        elif annotation.box is None:
            yield annotation.example_id, annotation.reason


@_command("get", ExampleOptions)
def get(session: Session, at: ExampleOptions) -> None:
    """Show one example's region, score and relevance map, or why it failed.

    \b
    Examples:
      cos store get rois 000000123#q0
      cos store get rois 000000123#q0 --heat map.npy
    """
    from cos_core.errors import InputError
    from cos_core.store.annotations import Store

    with reporting(session) as reporter, Store.read(at.store) as opened:
        annotation, failure = opened.get(at.example), opened.failure(at.example)
        cells = opened.heat(at.example)
        if annotation is None and failure is None:
            raise InputError(f"the store {at.store} has neither an annotation nor a failure of {at.example!r}")
        if at.heat is not None:
            if cells is None:
                raise InputError(f"the store {at.store} has no relevance map of {at.example!r}")
            from cos_core.visualize.relevance_maps import write_heat

            write_heat(at.heat, cells)
            reporter.note(f"relevance map -> {at.heat}")
    if session.json:
        record = {"example_id": at.example, "failure": failure} if annotation is None else annotation.to_json()
        emit_json(record | ({"heat": cells} if cells is not None else {}))
        return
    rows = [("id", at.example), ("failed", failure or "")] if annotation is None else _described(annotation)
    emit(columns(rows))
    if cells is not None:
        emit(_drawn(cells))


def _described(annotation: Annotation) -> list[tuple[str, str]]:
    box = annotation.box
    rows = [("id", annotation.example_id), ("image", annotation.image or "(not recorded)")]
    if box is None:
        rows.append(("region", f"none: {annotation.reason}"))
    else:
        rows.append(("region", f"[{', '.join(f'{v:.6g}' for v in box.corners)}], {box.area:.1%} of the picture"))
    rows += [("score", f"{annotation.score:.6g}"), ("policy", annotation.policy)]
    used = ", ".join(map(str, annotation.regions_used))
    return [*rows, ("regions used", used), ("fingerprint", annotation.fingerprint)]


def _drawn(cells: tuple[tuple[float, ...], ...]) -> Lines:
    """The map in letters, two a cell since letters are twice as high as wide."""
    from cos_cli.preview import RAMP

    top = max(map(max, cells)) or 1.0
    rows = ("".join(2 * RAMP[round(v / top * (len(RAMP) - 1))] for v in row).rstrip() for row in cells)
    return Lines([f"relevance over the padded square, {len(cells)} x {len(cells[0])} cells, highest {top:.4g}:", *rows])


@_command("stats", StorePath)
def stats(session: Session, at: StorePath) -> None:
    """Count and measure regions: policies, failures, sizes, shapes, scores.

    `cos visualize stats` draws them, tells data sets apart and measures against a reference.

    \b
    Example:
      cos store stats rois
    """
    from cos_core.store.statistics import statistics

    with reporting(session) as reporter:
        measured = statistics(at.store, reporter)
    if session.json:
        emit_json(measured)
        return
    rows = [("examples", f"{measured['examples']:,}")]
    rows += [(f"  {name}", f"{part['count']:,} ({part['share']:.1%})") for name, part in measured["status"].items()]
    rows += [(f"policy {name}", f"{count:,}") for name, count in measured["policies"].items()]
    for status, reasons in measured["reasons"].items():
        rows += [(status, f"{count:,}: {reason}") for reason, count in list(reasons.items())[:_REASONS]]
        rows += [(status, f"... {len(reasons) - _REASONS} more reasons")] if len(reasons) > _REASONS else []
    for name, words in (("area", "share of the picture"), ("aspect", "width / height, fractions"), ("centre_offset", "")):
        rows.append((name.replace("_", " "), _measured(measured[name]) + (f"  ({words})" if words else "")))
    if measured["boxes"]:
        rows.append(("hold the centre", f"{measured['covers_picture_centre']:.1%}"))
        rows.append(("score", "  ".join(f"{name} {value:.4g}" for name, value in measured["score"].items())))
    emit(columns([*rows, ("relevance maps", f"{measured['heats']:,}"), ("bytes", f"{measured['bytes']:,}")]))


def _measured(part: dict[str, Any]) -> str:
    if not part["n"]:
        return "(no boxes)"
    return "  ".join(f"{name} {part[name]:.4g}" for name in ("mean", "sd", "q25", "median", "q75"))


@_command("verify", StorePath)
def verify(session: Session, at: StorePath) -> None:
    """Read every record and say what is damaged; exit code 3 if anything is.

    \b
    Example:
      cos store verify rois
    """
    from cos_core.errors import InputError
    from cos_core.store.check import check

    with reporting(session) as reporter:
        report = check(at.store, reporter)
        for words in report.first:
            reporter.warn(words)
    if session.json:
        emit_json(report.to_json())
    if report.faults:
        more = f" (the first {len(report.first)} are named)" if report.faults > len(report.first) else ""
        raise InputError(
            f"the store {at.store} has {report.faults} faults{more}; annotate these examples again into a new store"
        )
    if not session.json:
        emit(f"{at.store} is sound: " + ", ".join(f"{count:,} {table}" for table, count in report.counts.items()))


@_command("merge", "cos_core.store.merge:MergeConfig")
def merge(session: Session, config: MergeConfig) -> None:
    """Join the parts of one job into one store, whatever their order.

    Killed and started again, it ends the same.

    \b
    Example:
      cos store merge part0 part1 --out rois
    """
    from cos_core.store.merge import run

    run_stage(session, run, config, config.out)


@_command("export", "cos_core.data.formats.config:StoreExportConfig")
def export(session: Session, config: StoreExportConfig) -> None:
    """Write a store's regions as JSON Lines, for the hub, for a trainer or in another format.

    \b
    Examples:
      cos store export rois --out rois.jsonl --failures --heats
      cos store export rois --format parquet --data questions.json --out rois-parquet
      cos store export rois --format ms-swift --data questions.json --images pictures --crops crops --out train.jsonl
    """
    from cos_core.data.formats.exchange import export as run

    run_stage(session, run, config, config.out)


@_command("import", "cos_core.data.formats.config:StoreImportConfig")
def import_(session: Session, config: StoreImportConfig) -> None:
    """Read regions of another format, or exported ones, into a store.

    \b
    Examples:
      cos store import chain-of-spot.json --format chain-of-spot --data questions.json --images pictures --out rois
      cos store import viscot.jsonl --format visual-cot --questions questions.jsonl --out rois
    """
    from cos_core.data.formats.exchange import load

    run_stage(session, load, config, config.out)


def _plain(value: object) -> str:
    import json

    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)


group = Group("store", HELP, (info, ls, get, stats, verify, merge, export, import_))
