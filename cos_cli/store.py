"""`cos store`: look into annotation stores, check and merge them, and exchange their regions with other formats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cos_cli import options
from cos_cli.console import Session, columns, emit, emit_json, reporting, summary
from cos_core.files.text import Lines, escaped
from cos_core.system import bounds

if TYPE_CHECKING:
    from cos_core.store.annotations import Store
    from cos_core.types import Annotation

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Folder = Annotated[
    Path,
    typer.Argument(
        help="Store of `cos annotate`.", metavar="STORE", show_default=False, autocompletion=options.complete("store")
    ),
]
FormatOption = Annotated[
    Literal["jsonl", "chain-of-spot", "coco", "visual-cot"],
    typer.Option(help="jsonl loses nothing; chain-of-spot is the authors' released file of squares."),
]
Images = Annotated[
    Path | None, typer.Option(help="Folder that the image paths start from: pixels need picture sizes.", show_default=False)
]
_REASONS = 5


@app.callback()
def store() -> None:
    """Look into annotation stores, check, merge, export and import them.

    \b
    Examples:
      cos store info rois
      cos store export rois --format coco --images pictures --out rois.json
    """


@app.command()
def info(
    ctx: typer.Context,
    store: Folder,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Say what a store is: schema, settings, counts, bytes.

    \b
    Example:
      cos store info rois
    """
    from cos_core.files.filesystems import network_type
    from cos_core.store.annotations import Store

    with reporting(ctx.ensure_object(Session)), Store.read(store) as opened:
        found = {"path": str(store), **opened.info()}
    if (kind := network_type(store)) is not None:
        found["network_file_system"] = kind
    if json:
        emit_json(found)
        return
    settings = found.pop("provenance")
    rows = [(name.replace("_", " "), _plain(value)) for name, value in found.items()]
    emit(columns([*rows, *((f"  {name}", _plain(value)) for name, value in settings.items())]))


@app.command()
def ls(
    ctx: typer.Context,
    store: Folder,
    failures: Annotated[bool, typer.Option("--failures", help="The examples that failed, with the reasons.")] = False,
    no_region: Annotated[bool, typer.Option("--no-region", help="Only annotations without a box, with the reasons.")] = False,
    prefix: Annotated[str, typer.Option(help="Only ids that begin so.", autocompletion=options.complete("example"))] = "",
    limit: Annotated[int | None, typer.Option(min=1, max=bounds.COUNT, help="At most so many.", show_default="all")] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """List example ids, sorted, one a line; reasons behind a tab.

    \b
    Examples:
      cos store ls rois --prefix 00000 --limit 10
      cos store ls rois --failures
    """
    from itertools import islice

    from cos_core.store.annotations import Store

    if failures and no_region:
        raise typer.BadParameter("--failures and --no-region exclude each other")
    with Store.read(store) as opened:
        rows = opened.failures(prefix) if failures else _listed(opened, prefix, no_region)
        shown = islice(rows, limit)
        if not json:
            sys.stdout.writelines(escaped(name) + (f"\t{escaped(reason)}" if reason else "") + "\n" for name, reason in shown)
            return
        found = [{"example_id": name, "reason": reason} if reason else {"example_id": name} for name, reason in shown]
    emit_json({"examples": found})


def _listed(opened: Store, prefix: str, no_region: bool) -> Any:
    for annotation in opened.annotations(prefix):
        if not no_region:
            yield annotation.example_id, None
        elif annotation.box is None:
            yield annotation.example_id, annotation.reason


@app.command()
def get(
    ctx: typer.Context,
    store: Folder,
    example: Annotated[
        str,
        typer.Argument(help="The example's id.", metavar="ID", show_default=False, autocompletion=options.complete("example")),
    ],
    heat: Annotated[
        Path | None,
        typer.Option(help="Also write the relevance map, .json or .npy, as `cos visualize overlay --heat` reads it."),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Show one example's region, score and relevance map, or why it failed.

    \b
    Examples:
      cos store get rois 000000123#q0
      cos store get rois 000000123#q0 --heat map.npy
    """
    from cos_core.errors import InputError
    from cos_core.store.annotations import Store

    with reporting(ctx.ensure_object(Session)) as reporter, Store.read(store) as opened:
        annotation, failure = opened.get(example), opened.failure(example)
        cells = opened.heat(example)
        if annotation is None and failure is None:
            raise InputError(f"the store {store} has neither an annotation nor a failure of {example!r}")
        if heat is not None:
            if cells is None:
                raise InputError(f"the store {store} has no relevance map of {example!r}")
            _write_heat(heat, cells)
            reporter.note(f"relevance map -> {heat}")
    if json:
        record = {"example_id": example, "failure": failure} if annotation is None else annotation.to_json()
        emit_json(record | ({"heat": cells} if cells is not None else {}))
        return
    rows = [("id", example), ("failed", failure or "")] if annotation is None else _described(annotation)
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


def _write_heat(path: Path, cells: tuple[tuple[float, ...], ...]) -> None:
    from cos_core.visualize.relevance_maps import write_heat

    write_heat(path, cells)


def _drawn(cells: tuple[tuple[float, ...], ...]) -> Lines:
    """The map in letters, two a cell since letters are twice as high as wide."""
    from cos_cli.preview import RAMP

    top = max(map(max, cells)) or 1.0
    rows = ("".join(2 * RAMP[round(v / top * (len(RAMP) - 1))] for v in row).rstrip() for row in cells)
    return Lines([f"relevance over the padded square, {len(cells)} x {len(cells[0])} cells, highest {top:.4g}:", *rows])


@app.command()
def stats(
    ctx: typer.Context,
    store: Folder,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Count and measure regions: policies, failures, sizes, shapes, scores.

    `cos visualize stats` draws them, tells data sets apart and measures against a reference.

    \b
    Example:
      cos store stats rois
    """
    from cos_core.store.statistics import statistics

    with reporting(ctx.ensure_object(Session)) as reporter:
        found = statistics(store, reporter)
    if json:
        emit_json(found)
        return
    rows = [("examples", f"{found['examples']:,}")]
    rows += [(f"  {name}", f"{part['count']:,} ({part['share']:.1%})") for name, part in found["status"].items()]
    rows += [(f"policy {name}", f"{count:,}") for name, count in found["policies"].items()]
    for status, reasons in found["reasons"].items():
        rows += [(status, f"{count:,}: {reason}") for reason, count in list(reasons.items())[:_REASONS]]
        rows += [(status, f"... {len(reasons) - _REASONS} more reasons")] if len(reasons) > _REASONS else []
    for name, words in (("area", "share of the picture"), ("aspect", "width / height, fractions"), ("centre_offset", "")):
        rows.append((name.replace("_", " "), _measured(found[name]) + (f"  ({words})" if words else "")))
    if found["boxes"]:
        rows.append(("hold the centre", f"{found['covers_picture_centre']:.1%}"))
        rows.append(("score", "  ".join(f"{name} {value:.4g}" for name, value in found["score"].items())))
    emit(columns([*rows, ("relevance maps", f"{found['heats']:,}"), ("bytes", f"{found['bytes']:,}")]))


def _measured(part: dict[str, Any]) -> str:
    if not part["n"]:
        return "(no boxes)"
    return "  ".join(f"{name} {part[name]:.4g}" for name in ("mean", "sd", "q25", "median", "q75"))


@app.command()
def verify(
    ctx: typer.Context,
    store: Folder,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Read every record and say what is damaged; exit code 3 if anything is.

    \b
    Example:
      cos store verify rois
    """
    from cos_core.errors import InputError
    from cos_core.store.check import check

    with reporting(ctx.ensure_object(Session)) as reporter:
        found = check(store, reporter)
        for words in found.first:
            reporter.warn(words)
    if json:
        emit_json(found.to_json())
    if found.faults:
        more = f" (the first {len(found.first)} are named)" if found.faults > len(found.first) else ""
        raise InputError(f"the store {store} has {found.faults} faults{more}; annotate these examples again into a new store")
    if not json:
        emit(f"{store} is sound: " + ", ".join(f"{count:,} {table}" for table, count in found.counts.items()))


@app.command()
def merge(
    ctx: typer.Context,
    parts: Annotated[
        list[Path],
        typer.Argument(
            help="Stores of one job.",
            metavar="PART [PART...]",
            show_default=False,
            autocompletion=options.complete("store"),
        ),
    ],
    out: Annotated[Path, typer.Option(help="Store to write or to continue.", show_default=False)],
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Join the parts of one job into one store, whatever their order.

    Killed and started again, it ends the same.

    \b
    Example:
      cos store merge part0 part1 --out rois
    """
    from cos_core.store.merge import MergeConfig, run

    with reporting(ctx.ensure_object(Session)) as reporter:
        manifest = run(MergeConfig(tuple(parts), out), reporter)
        reporter.note(summary(manifest, out))
    if json:
        emit_json(manifest.to_json())


@app.command()
def export(
    ctx: typer.Context,
    store: Folder,
    out: Annotated[Path, typer.Option(help="File to write.", show_default=False)],
    format: FormatOption = "jsonl",
    data: Annotated[
        Path | None,
        typer.Option(help="The questions' file; needed by chain-of-spot and visual-cot.", show_default=False),
    ] = None,
    images: Images = None,
    follow_links: options.FollowLinks = False,
    failures: Annotated[bool, typer.Option("--failures", help="With the failures (jsonl).")] = False,
    heats: Annotated[bool, typer.Option("--heats", help="With the relevance maps (jsonl).")] = False,
    max_failures: options.MaxFailures = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Write a store's regions as JSON Lines or in another format.

    \b
    Examples:
      cos store export rois --out rois.jsonl --failures --heats
      cos store export rois --format chain-of-spot --data questions.json --images pictures --out chain-of-spot.json
    """
    from cos_core.data.formats.exchange import StoreExportConfig
    from cos_core.data.formats.exchange import export as run

    with reporting(ctx.ensure_object(Session)) as reporter:
        manifest = run(
            StoreExportConfig(store, out, format, data, images, failures, heats, max_failures, follow_links), reporter
        )
        reporter.note(summary(manifest, out))
    if json:
        emit_json(manifest.to_json())


@app.command("import")
def import_(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(help="File to read.", metavar="FILE", show_default=False)],
    out: Annotated[Path, typer.Option(help="Store to write or to continue.", show_default=False)],
    format: FormatOption = "jsonl",
    data: Annotated[
        Path | None,
        typer.Option(help="The questions' file; needed by chain-of-spot, else other ids are refused.", show_default=False),
    ] = None,
    images: Images = None,
    follow_links: options.FollowLinks = False,
    questions: Annotated[Path | None, typer.Option(help="File for the questions that come along (visual-cot).")] = None,
    max_failures: options.MaxFailures = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Read regions of another format, or exported ones, into a store.

    \b
    Examples:
      cos store import chain-of-spot.json --format chain-of-spot --data questions.json --images pictures --out rois
      cos store import viscot.jsonl --format visual-cot --questions questions.jsonl --out rois
    """
    from cos_core.data.formats.exchange import StoreImportConfig, load

    with reporting(ctx.ensure_object(Session)) as reporter:
        manifest = load(StoreImportConfig(source, out, format, data, images, questions, max_failures, follow_links), reporter)
        reporter.note(summary(manifest, out))
    if json:
        emit_json(manifest.to_json())


def _plain(value: object) -> str:
    import json

    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)
