"""`cos eval`: scores of recorded predictions, or of a model that is run first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from cos_cli import options, settings
from cos_cli.console import Session, emit, emit_json, reporting
from cos_core.errors import FailuresError, InputError, RegressionError, UndefinedError
from cos_core.files import plug
from cos_core.system import bounds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cos_cli.evaluate.suite import Scored, Suite
    from cos_core.interfaces import Reporter

_TIME = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


def evaluate(
    ctx: typer.Context,
    benchmarks: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of benchmarks (see --list), or files that define one: ./mine.py",
            parser=options.plugin_name,
            metavar="BENCHMARK...",
            autocompletion=options.complete("benchmarks"),
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with a benchmark's official files, or with one such folder a benchmark.", show_default=False),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Recorded answers to score (no model, no torch): ours, or LLaVA's answer files; for several benchmarks, a "
            "folder with <benchmark>.jsonl."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint to run instead: a folder, a hub id, or 'miniature'.",
            show_default=False,
            autocompletion=options.complete("model"),
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for scores (and predictions, with --model).", show_default="print only")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the benchmark.", show_default="the benchmark's usual one")] = None,
    scorer: Annotated[
        str | None, typer.Option(help="Another scoring rule than the benchmark's own.", show_default="the benchmark's own")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, max=bounds.COUNT, help="Ask and score only the first so many questions, as a trial.", show_default="all"
        ),
    ] = None,
    partial_join: Annotated[
        bool,
        typer.Option(
            "--partial-join",
            help="Score although a large part of the answers belongs to no question and as many questions have none.",
        ),
    ] = False,
    roi: Annotated[
        str,
        typer.Option(
            help="Where the region comes from: 'model' (two passes), 'none' (one pass), 'center', 'full', 'gold', ...; "
            "several with commas run one after the other.",
            metavar="NAME[,NAME...]",
            autocompletion=options.complete("roi"),
        ),
    ] = "model",
    on_bad_box: options.OnBadBox = "full",
    profile: options.Profile = None,
    batch_size: options.BatchSize = 16,
    max_new_tokens: options.MaxNewTokens = 128,
    box_tokens: Annotated[int, typer.Option(min=1, max=bounds.TOKENS, help="Longest first-pass text, in tokens.")] = 48,
    box_decode: Annotated[
        Literal["free", "grammar"], typer.Option(help="Let the first pass write anything, or nothing but a box.")
    ] = "free",
    reuse: Annotated[
        bool, typer.Option("--reuse/--no-reuse", help="Continue the first pass's keys and values; share those of a picture.")
    ] = True,
    kv_budget: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=bounds.GIB,
            callback=options.finite,
            help="GiB for keys and values; a quarter of the free memory (GPU: 70 %) when not given.",
        ),
    ] = None,
    engine: options.Engine = "hf",
    server: Annotated[str | None, typer.Option(help="With --engine openai: the server's address, up to /v1.")] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=bounds.PROCESSES, help="With --engine openai: requests under way at once.")
    ] = 8,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1, max=86_400.0, callback=options.finite, help="Seconds that one request to a server or judge may take."
        ),
    ] = 120.0,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --model: ask again what is recorded as failed, whatever the reason.")
    ] = False,
    max_failures: options.MaxFailures = None,
    seed: options.Seed = 0,
    runner: options.Runner = "auto",
    workers: options.Workers = None,
    ray_address: options.RayAddress = None,
    ship_images: options.ShipImages = False,
    follow_links: options.FollowLinks = False,
    device: options.Devices = "auto",
    dtype: options.Dtype = "auto",
    submissions: Annotated[
        bool, typer.Option("--submissions", help="Write the files that benchmark servers take, into --out.")
    ] = False,
    max_runtime: Annotated[
        str | None, typer.Option(help="Stop cleanly after this time (90, 30m, 2h) with code 130.", show_default="none")
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            min=1, max=bounds.BATCH, help="Parts of the work; without --shard: score all of them.", show_default="one"
        ),
    ] = None,
    shard: Annotated[
        int | None, typer.Option(min=1, max=bounds.BATCH, help="Answer only this part, from 1.", show_default="all")
    ] = None,
    fail_under: Annotated[
        list[str] | None, typer.Option(metavar="METRIC=VALUE", help="End with code 6 when a metric is lower.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="End with code 6 when a benchmark is significantly worse than in this run.",
            autocompletion=options.complete("run"),
        ),
    ] = None,
    latest: Annotated[
        Path | None, typer.Option(help="Link to put on --out, in one step, once everything is scored.", show_default="none")
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible endpoint that grades; its key is in COS_JUDGE_KEY.", show_default="none"),
    ] = None,
    judge_model: Annotated[str, typer.Option(help="The judge's name there.")] = "gpt-4-0613",
    judge_runs: Annotated[int, typer.Option(min=1, max=100, help="Grades an answer; several give mean and spread.")] = 1,
    list_benchmarks: Annotated[
        bool, typer.Option("--list", help="List the benchmarks, what they need and, with --data, what is missing.")
    ] = False,
    config_file: settings.Config = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Score predictions on benchmarks, or run a model on them.

    Also: 'cos eval compare' (finished runs, with tests), 'cos eval report' (the paper's tables).

    \b
    Examples:
      cos eval pope --data pope --predictions answers.jsonl
      cos eval pope mme gqa --data benchmarks --model miniature --roi none,model --out run
    """
    if list_benchmarks:
        from cos_cli.evaluate import listing

        listing.show(benchmarks or plug.available("benchmarks"), data, json)
        return
    _check_usage(benchmarks, data, predictions, model, out)
    if submissions and (out is None or limit is not None):
        raise typer.BadParameter("--submissions writes whole files into --out: give --out, and no --limit")
    from cos_cli.evaluate import suite as suites
    from cos_core.evaluate import EvalConfig

    names, root = benchmarks or [], data or Path()
    settings: Any = None
    if model is not None:
        from cos_core.infer import InferConfig
        from cos_core.runners import RunnerConfig

        settings = InferConfig(
            model=model,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            box_tokens=box_tokens,
            box_decode=box_decode,
            reuse=reuse,
            kv_budget=kv_budget,
            on_bad_box=on_bad_box,
            profile=profile,
            seed=seed,
            device=device,
            scale=RunnerConfig(runner, workers, ray_address, ship_images),
            dtype=dtype,
            engine=engine,
            server=server,
            concurrency=concurrency,
            timeout=timeout,
            max_failures=max_failures,
            follow_links=follow_links,
            retry_failed=retry_failed,
        )
    suite = suites.Suite(
        benchmarks=names,
        data=root,
        score=EvalConfig(
            names[0],
            root,
            predictions or root,
            split=split,
            scorer=scorer,
            limit=limit,
            partial_join=partial_join,
            seed=seed,
            judge_url=judge_url,
            judge_model=judge_model,
            judge_runs=judge_runs,
            timeout=timeout,
        ),
        model=settings,
        predictions=predictions,
        arms=[options.plugin_name(arm.strip()) for arm in roi.split(",")] if model or "," in roi else ["model"],
        out=out,
        part=suites.Part(shards, shard) if shards else None,
        max_seconds=None if max_runtime is None else seconds(max_runtime),
        submissions=submissions,
    )
    wanted = suites.limits(fail_under or [])
    with reporting(ctx.ensure_object(Session)) as reporter:
        runs = suites.run(suite, reporter)
        below, unknown = suites.below(runs, wanted)
        against = _against(runs, baseline, reporter) if baseline and runs else _Fallen([], [])
        fallen = _Fallen([*below, *against.worse], [*unknown, *against.undefined])
        dead = [each for each in runs if not each.manifest.counts.get("ok")]
        if runs and not dead and not suite.failed and latest is not None and out is not None:
            suites.link(latest, out)
    _show(suite, runs, fallen, json)
    if dead and dead[0].manifest.results.get("beside", {}).get("ungraded"):
        raise FailuresError(f"no grade of {dead[0].benchmark} could be read from what the judge replied; there is no score")
    if dead:
        first = f"{dead[0].benchmark}{f' ({dead[0].arm})' if dead[0].arm else ''}"
        raise FailuresError(
            f"not one question of {first} was answered: all {dead[0].manifest.counts.get('total')} failed"
            + (f"; {suite.failed[0]}" if suite.failed else "")
        )
    if suite.failed:
        raise FailuresError(suite.failed[0])
    unclear = f"undefined: {'; '.join(fallen.undefined)}" if fallen.undefined else ""
    if fallen.worse:
        raise RegressionError(f"worse than allowed: {'; '.join(fallen.worse)}{f'; {unclear}' if unclear else ''}")
    if unclear:
        raise UndefinedError(unclear)


def seconds(text: str) -> float:
    """`90`, `90s`, `30m`, `2h` or `1h30m` in seconds. Raises InputError."""
    found = _TIME.fullmatch(text.strip())
    if not text.strip() or found is None:
        raise InputError(f"a time is written 90, 30m, 2h or 1h30m, not {text!r}")
    hours, minutes, rest = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + rest


def _check_usage(
    benchmarks: Sequence[str] | None, data: Path | None, predictions: Path | None, model: str | None, out: Path | None
) -> None:
    """Raises typer.BadParameter (exit code 2) for a call that cannot be meant, InputError for a benchmark that is none."""
    if not benchmarks:
        raise typer.BadParameter("name a benchmark; cos eval --list shows them")
    for name in benchmarks:
        plug.load("benchmarks", name)  # a name that is none is said before anything else
    if data is None:
        raise typer.BadParameter("--data names the folder with the benchmark's files")
    if (predictions is not None and model is not None) or (predictions is None and model is None and out is None):
        raise typer.BadParameter("give either --predictions or --model")
    if model is not None and out is None:
        raise typer.BadParameter("with --model, --out names the folder for predictions and scores")


class _Fallen(NamedTuple):
    """What ends a run with a code of its own, in words: figures that are worse than allowed, and such as are not defined."""

    worse: list[str]
    undefined: list[str]


def _against(runs: Sequence[Scored], baseline: Path, reporter: Reporter) -> _Fallen:
    """Benchmarks that stand significantly below `baseline` (5 %, Holm over all of them), and those without a verdict.

    Raises InputError when a run was made otherwise than the baseline, or the baseline lacks its benchmark.
    """
    from cos_core.evaluate.compare_runs import runs_below
    from cos_core.scoring import comparison

    found = []
    for each in runs:
        if each.folder is None:
            raise InputError("--baseline needs --out: a comparison is of finished runs")
        arm = baseline / each.arm if each.arm and (baseline / each.arm).is_dir() else baseline
        theirs, ours = runs_below(arm), runs_below(each.folder)
        if each.benchmark not in theirs:
            raise InputError(f"the baseline {arm} has no run of {each.benchmark}")
        a, b = theirs[each.benchmark], ours[each.benchmark]
        comparison.fair(a, b)
        if a.scores and b.scores:
            found.append(comparison.pair(a, b, names=(str(arm), str(each.folder))))
    fallen = _Fallen([], [])
    for result in comparison.adjusted(found):
        if result.undefined:
            fallen.undefined.append(f"{result.metric} of {result.benchmark} against the baseline: {result.undefined}")
            continue
        gap = f"{result.metric} of {result.benchmark}: {result.found.a:.4g} -> {result.found.b:.4g}"
        reporter.note(f"baseline: {gap}, p {result.p_holm:.3g} (Holm), {result.verdict}")
        if result.verdict == "worse":
            fallen.worse.append(f"{gap} (p {result.p_holm:.3g}, {len(result.lost)} questions lost, {len(result.won)} won)")
    return fallen


def _show(suite: Suite, runs: Sequence[Scored], fallen: _Fallen, json: bool) -> None:
    from cos_cli.evaluate.tables import overview, table

    if json:
        one = runs[0].to_json() if len(runs) == 1 else {"runs": [each.to_json() for each in runs]}
        part = {"part": suite.part.number, "of": suite.part.of} if suite.part and suite.part.number else {}
        named = {"fallen": fallen.worse, "undefined": fallen.undefined}
        emit_json({**one, **part, **{name: words for name, words in named.items() if words}})
    elif len(runs) == 1:
        emit(table(runs[0].manifest))
    elif runs:
        emit(overview(runs))
