"""`cos eval`: scores of recorded predictions, or of a model that is run first.

This is where stages are composed: `infer` writes predictions, `evaluate` scores the file; neither knows the other.
"""

from __future__ import annotations

import json as jsonlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cos_cli import options
from cos_cli.console import Session, clean, emit, emit_json, reporting, summary
from cos_core import plug

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from cos_core.infer import InferConfig
    from cos_core.interfaces import Reporter
    from cos_core.types import RunManifest


def _list(value: bool) -> None:
    if value:
        for name in plug.available("benchmarks"):
            emit(f"{name:12} {plug.load('benchmarks', name).summary}")
        raise typer.Exit


def evaluate(
    ctx: typer.Context,
    benchmark: Annotated[
        str,
        typer.Argument(
            help="Name of a benchmark (see --list), or a file that defines one: ./mine.py",
            parser=options.plugin_name,
            metavar="BENCHMARK",
            autocompletion=options.complete("benchmarks"),
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder with the benchmark's official files.")],
    predictions: Annotated[
        Path | None, typer.Option(help="Recorded answers to score (no model, no torch): ours, or LLaVA's answer files.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint to run instead: a folder, a hub id, or 'miniature'.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for scores (and predictions, with --model).", show_default="print only")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the benchmark.", show_default="the benchmark's usual one")] = None,
    roi: options.Roi = "model",
    on_bad_box: options.OnBadBox = "full",
    profile: options.Profile = None,
    batch_size: options.BatchSize = 16,
    max_new_tokens: options.MaxNewTokens = 128,
    engine: options.Engine = "hf",
    max_failures: options.MaxFailures = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    list_benchmarks: Annotated[
        bool, typer.Option("--list", help="List the benchmarks and leave.", callback=_list, is_eager=True)
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Score predictions on a benchmark, or run a model on it.

    \b
    Examples:
      cos eval pope --data pope --predictions answers.jsonl
      cos eval pope --data pope --model miniature --roi model --out run
    """
    from cos_core.evaluate import EvalConfig, run

    if (predictions is None) == (model is None):
        raise typer.BadParameter("give either --predictions or --model")
    with reporting(ctx.ensure_object(Session)) as reporter:
        if model is not None:
            if out is None:
                raise typer.BadParameter("with --model, --out names the folder for predictions and scores")
            from cos_core.infer import InferConfig

            settings = InferConfig(
                model=model,
                out=out / "predictions.jsonl",
                roi=roi,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                on_bad_box=on_bad_box,
                profile=profile,
                seed=seed,
                device=device,
                dtype=dtype,
                engine=engine,
                max_failures=max_failures,
            )
            predictions = answer_benchmark(benchmark, data, split, settings, reporter)
        assert predictions is not None
        manifest = run(EvalConfig(benchmark=benchmark, data=data, predictions=predictions, out=out, split=split), reporter)
        if out is not None:
            reporter.note(summary(manifest, out))
    if json:
        emit_json(manifest.to_json())
    else:
        emit(table(manifest))


def answer_benchmark(name: str, data: Path, split: str | None, settings: InferConfig, reporter: Reporter) -> Path:
    """Runs `infer` over a benchmark's questions; returns the predictions file. The questions stand beside it."""
    from cos_core.infer import run
    from cos_core.manifest import atomic_write

    options = {} if split is None else {"split": split}
    loaded = plug.load("benchmarks", name, **options).load(data)
    questions = settings.out.with_name("questions.jsonl")
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    lines = (jsonlib.dumps(e.to_json(), ensure_ascii=False) + "\n" for e in loaded.examples)
    atomic_write(questions, "".join(lines))
    manifest = run(replace(settings, data=questions, images=loaded.image_root), reporter)
    reporter.note(summary(manifest, settings.out))
    return settings.out


def table(manifest: RunManifest) -> str:
    """The metrics for a person, one a line."""
    rows = list(_flat(manifest.results))
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{clean(name):{width}}  {value}" for name, value in rows)


def _flat(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in results.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield prefix + key, f"{value:.4f}"
        else:
            yield prefix + key, clean(str(value))
