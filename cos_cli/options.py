"""Options that several commands share, declared once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cos_cli.console import Session
from cos_core.system import bounds

if TYPE_CHECKING:
    from cos_core.data.datasets import Files

_COMPLETED: dict[Callable[[str], list[str]], str] = {}


def complete(kind: str) -> Callable[[str], list[str]]:
    """For `autocompletion=`: values of `kind`, as `cos_cli.completion.values` knows them."""

    def offered(incomplete: str) -> list[str]:
        from cos_cli.completion.values import values

        return values(kind, incomplete, ()) or []

    _COMPLETED[offered] = kind
    return offered


def completed_by(function: Callable[..., Any] | None) -> str | None:
    """The kind that `complete` was called with when it made `function`."""
    return None if function is None else _COMPLETED.get(function)


def plugin_name(value: str) -> str:
    """A plug-in as its file is called: `center-crop` and `center_crop` are one name and give one fingerprint."""
    return value if value.partition(":")[0].endswith(".py") else value.replace("-", "_")


def number_format(value: str) -> Any:
    """For `callback=` of --dtype: the full name of a number format."""
    return {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(value, value)


def finite(value: Any) -> Any:
    """For `callback=` of options that are numbers: NaN lies between no bounds. Raises typer.BadParameter."""
    given = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(each, float) and not math.isfinite(each) for each in given):
        raise typer.BadParameter("a finite number is needed")
    return value


def one_data_set(files: list[Path]) -> Files:
    """What `--data` was given: one file, or several in order. Raises typer.BadParameter for a file that is there twice."""
    resolved = [os.path.realpath(path) for path in files]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            raise typer.BadParameter(f"--data names {files[place]} twice")
    return files[0] if len(files) == 1 else tuple(files)


def settings_of(given: list[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` texts as a mapping; values are read as JSON where they are JSON, else as text. Raises typer.BadParameter."""
    found: dict[str, Any] = {}
    for text in given or ():
        name, mark, value = text.partition("=")
        if not mark or not name:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _set_quiet(ctx: typer.Context, value: bool) -> bool:
    ctx.ensure_object(Session).quiet |= value
    return value


def _set_traceback(ctx: typer.Context, value: bool) -> bool:
    ctx.ensure_object(Session).traceback |= value
    return value


DATA_HELP = "LLaVA conversation JSON or JSONL, or a LLaVA question file; may be repeated, in order."
Data = Annotated[list[Path], typer.Option(help=f"Questions: {DATA_HELP}")]
Images = Annotated[Path, typer.Option(help="Folder that the image paths in --data start from.")]
Model = Annotated[
    str,
    typer.Option(
        help="LLaVA-1.5 checkpoint: a local folder, a hub id (llava-hf/llava-1.5-7b-hf, @REVISION after it), or 'miniature'.",
        autocompletion=complete("model"),
    ),
]
Policy = Annotated[
    str,
    typer.Option(
        help="Which questions choose the region (Table 3a of the paper).",
        parser=plugin_name,
        metavar="NAME",
        autocompletion=complete("policies"),
    ),
]
Roi = Annotated[
    str,
    typer.Option(
        help="Where the region comes from: 'model' (two passes), 'none' (one), 'relevance' (untrained), 'center', 'full', ...",
        parser=plugin_name,
        metavar="NAME",
        autocompletion=complete("roi"),
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(help="Prompt profile; by default the checkpoint's own, else 'paper'.", autocompletion=complete("profile")),
]
Backbone = Annotated[
    str,
    typer.Option(
        help="How relevance is measured: 'regions', 'patches' or 'lxmert'.",
        parser=plugin_name,
        metavar="NAME",
        autocompletion=complete("backbones"),
    ),
]
Detector = Annotated[
    str | None,
    typer.Option(
        help="What proposes candidate regions.",
        parser=plugin_name,
        metavar="NAME",
        autocompletion=complete("detectors"),
        show_default="grid with regions, none with patches, detectron2 with lxmert",
    ),
]
BackboneOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone-option", help="A setting of the backbone; may be repeated.", metavar="NAME=VALUE", show_default=False
    ),
]
DetectorOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--detector-option", help="A setting of the detector; may be repeated.", metavar="NAME=VALUE", show_default=False
    ),
]
Engine = Annotated[
    str, typer.Option(help="What runs the model.", parser=plugin_name, metavar="NAME", autocompletion=complete("engines"))
]
OnBadBox = Annotated[
    Literal["full", "center", "skip"],
    typer.Option(help="When the box cannot be used: the full picture, the centre crop, or no second pass."),
]
BatchSize = Annotated[int, typer.Option(min=1, max=bounds.BATCH, help="Questions that go through the model together.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, max=bounds.TOKENS, help="Longest answer, in tokens.")]
Limit = Annotated[int | None, typer.Option(min=1, max=bounds.COUNT, help="Stop after this many questions.", show_default="all")]
MaxFailures = Annotated[
    int | None,
    typer.Option(min=0, max=bounds.COUNT, help="Exit with code 5 when more questions than this fail.", show_default="no limit"),
]
Seed = Annotated[int, typer.Option(min=0, max=bounds.SEED, help="Seed of every random choice.")]
Runner = Annotated[
    str,
    typer.Option(
        help="Where the work is done: 'local', 'processes' of this machine, or 'ray'.",
        parser=plugin_name,
        metavar="NAME",
        autocompletion=complete("runners"),
        show_default="ray with an address, processes for several workers, else local",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, max=bounds.PROCESSES, help="How many hold a model.", show_default="one a GPU, else one; on a cluster one a node"
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        help="A running Ray cluster, HOST:PORT or 'auto'.", show_default="with --runner ray: one is started for the run"
    ),
]
ShipImages = Annotated[
    bool, typer.Option("--ship-images", help="Send the pictures along, for workers that do not see their folder.")
]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Follow links out of the picture folder: you made them, not the data's author.")
]
Device = Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'cuda:1', ...")]
Devices = Annotated[
    str, typer.Option(help="'auto' (every GPU, else the CPU), 'cpu', 'cuda:1', or several with commas: a model on each.")
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"],
    typer.Option(help="Number format of the weights.", callback=number_format),
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, warnings only.", callback=_set_quiet)]
Traceback = Annotated[
    bool, typer.Option("--traceback", help="Show where an error arose.", envvar="COS_TRACEBACK", callback=_set_traceback)
]
