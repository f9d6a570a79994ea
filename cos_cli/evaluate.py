"""`cos eval`: scores of recorded predictions, or of a model that is run first.

This is where stages are composed: `infer` writes predictions, `evaluate` scores the file; neither knows the other.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cos_cli import options
from cos_cli.console import Session, clean, emit, emit_json, reporting, summary
from cos_core import plug

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
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
    scorer: Annotated[
        str | None, typer.Option(help="Another scoring rule than the benchmark's own.", show_default="the benchmark's own")
    ] = None,
    roi: options.Roi = "model",
    on_bad_box: options.OnBadBox = "full",
    profile: options.Profile = None,
    batch_size: options.BatchSize = 16,
    max_new_tokens: options.MaxNewTokens = 128,
    box_tokens: Annotated[int, typer.Option(min=1, help="Longest first-pass text, in tokens.")] = 48,
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
    if model is not None and out is None:
        raise typer.BadParameter("with --model, --out names the folder for predictions and scores")
    with reporting(ctx.ensure_object(Session)) as reporter:
        if predictions is None:
            from cos_core.infer import InferConfig

            settings = InferConfig(
                model=model or "",
                out=(out or Path()) / "predictions.jsonl",
                roi=roi,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                box_tokens=box_tokens,
                on_bad_box=on_bad_box,
                profile=profile,
                seed=seed,
                device=device,
                dtype=dtype,
                engine=engine,
                max_failures=max_failures,
            )
            predictions = answer_benchmark(benchmark, data, split, settings, reporter)
        config = EvalConfig(
            benchmark=benchmark, data=data, predictions=predictions, out=out, split=split, scorer=scorer, seed=seed
        )
        manifest = run(config, reporter)
        if out is not None:
            reporter.note(summary(manifest, out))
    if json:
        emit_json(
            {**manifest.results, "status": manifest.status, "counts": manifest.counts, "fingerprint": manifest.fingerprint}
        )
    else:
        emit(table(manifest))


def answer_benchmark(name: str, data: Path, split: str | None, settings: InferConfig, reporter: Reporter) -> Path:
    """Runs `infer` over a benchmark's questions into `settings.out`, which it returns; the questions stand beside it."""
    from cos_core import evaluate as scoring
    from cos_core import infer

    _, loaded = scoring.load(name, data, split)
    out = settings.out or Path("predictions.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    questions = out.with_name("questions.jsonl")
    scoring.write_questions(loaded, questions)
    manifest = infer.run(replace(settings, data=questions, images=loaded.image_root), reporter)
    reporter.note(summary(manifest, out))
    return out


def table(manifest: RunManifest) -> str:
    """The results for a person, one number a line, with its 95 % interval where there is one; the headline comes first."""
    results = manifest.results
    intervals: Mapping[str, Any] = results.get("intervals", {})
    metrics = dict(_flat(results.get("metrics", {})))
    headline = results.get("headline", {}).get("metric")
    rows = [(name, _number(metrics[name], intervals.get(name))) for name in sorted(metrics, key=lambda name: name != headline)]
    rows += [(name, _number(value, intervals.get(name))) for name, value in _flat({"regions": results.get("regions", {})})]
    shares = [f"{name} {share:.1%}" for name, share in results.get("box_status", {}).items() if share]
    rows += [("box status", ", ".join(shares))] if shares else []
    rows.append(("questions", ", ".join(f"{n} {name}" for name, n in manifest.counts.items() if n)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(clean(f"{name:{width}}  {value}") for name, value in rows)


def _number(value: object, interval: Sequence[float] | None) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return f"{text}  [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else text


def _flat(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """`{"a": {"b": 1}}` as ("a.b", 1)."""
    for key, value in results.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
