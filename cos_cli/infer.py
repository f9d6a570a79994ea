"""`cos infer`: where to look, then the answer."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from cos_cli import options, settings
from cos_cli.console import Session, emit, emit_json, reporting, summary
from cos_core.files.text import Lines, escaped_lines
from cos_core.system import bounds
from cos_core.system.streams import behind
from cos_core.types import Prediction

if TYPE_CHECKING:
    from cos_core.infer import InferConfig


USES = Lines(
    [
        "give one of",
        "  --image PICTURE --question TEXT               one answer, printed",
        "  --data FILE --images FOLDER --out FILE        a file of questions",
        "  --question TEXT --images FOLDER --out FILE    one question about every picture of a folder",
    ]
)


def infer(
    ctx: typer.Context,
    model: options.Model,
    image: Annotated[Path | None, typer.Option(help="One picture.", show_default=False)] = None,
    question: Annotated[str | None, typer.Option(help="The question on --image.", show_default=False)] = None,
    data: Annotated[list[Path] | None, typer.Option(help=f"Many questions: {options.DATA_HELP}")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that the image paths in --data start from.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSONL file of predictions to write or to continue.")] = None,
    roi: options.Roi = "model",
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
    verify_reuse: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=bounds.COUNT,
            metavar="N",
            help="Answer the first N of --data with and without reuse, and list what differs.",
        ),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="With --question: print the answer as it comes.")] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="With --image: read questions from the terminal, one a line, until an empty one.")
    ] = False,
    show: Annotated[
        bool,
        typer.Option("--show", help="With --question: draw picture, region and answer in the terminal, elsewhere into a file."),
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="With --question: save that picture (.png, .webp or .pdf).", show_default=False)
    ] = None,
    engine: options.Engine = "hf",
    server: Annotated[str | None, typer.Option(help="With --engine openai: the server's address, up to /v1.")] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=bounds.PROCESSES, help="With --engine openai: requests under way at once.")
    ] = 8,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, max=86_400.0, callback=options.finite, help="Seconds that one request to a server may take."),
    ] = 120.0,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what --out records as failed.")] = False,
    limit: options.Limit = None,
    max_failures: options.MaxFailures = None,
    seed: options.Seed = 0,
    runner: options.Runner = "auto",
    workers: options.Workers = None,
    ray_address: options.RayAddress = None,
    ship_images: options.ShipImages = False,
    follow_links: options.FollowLinks = False,
    device: options.Devices = "auto",
    dtype: options.Dtype = "auto",
    config_file: settings.Config = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Ask a model where to look, then let it answer.

    The answer is given with the whole picture and the zoomed region.
    With --image and --question: prints box, status and answer. With --data, --images and --out: answers a file of
    questions; killed and started again, it answers only what is missing. With --images, --question and --out: the same
    question about every picture of a folder.

    \b
    Examples:
      cos infer --model miniature --image photo.jpg --question "What colour is the car?"
      cos infer --model miniature --data questions.json --images pictures --out answers.jsonl
    """
    from cos_core.files.jsonl import DurableWriter
    from cos_core.infer import InferConfig, run
    from cos_core.infer.chat import answer_one
    from cos_core.infer.stage import check_out
    from cos_core.runners import RunnerConfig

    data = data or None
    if verify_reuse is not None and (data is None or images is None):
        raise typer.BadParameter("--verify-reuse needs --data and --images")
    if chat and (image is None or question is not None or data is not None or out is not None or json):
        raise typer.BadParameter("--chat takes --image alone")
    single = chat or (verify_reuse is None and _is_single(image, question, data, images, out))
    if (show or save is not None) and (not single or chat):
        raise typer.BadParameter("--show and --save are for --image with --question")
    if stream and (not single or json):
        raise typer.BadParameter("--stream is for --image with --question, without --json")
    config = InferConfig(
        model=model,
        out=out,
        data=options.one_data_set(data) if data else None,
        images=images,
        follow_links=follow_links,
        image=image,
        question=question,
        roi=roi,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        box_tokens=box_tokens,
        on_bad_box=on_bad_box,
        profile=profile,
        limit=limit,
        seed=seed,
        device=device,
        dtype=dtype,
        engine=engine,
        max_failures=max_failures,
        retry_failed=retry_failed,
        box_decode=box_decode,
        reuse=reuse,
        kv_budget=kv_budget,
        server=server,
        concurrency=concurrency,
        timeout=timeout,
        scale=RunnerConfig(runner, workers, ray_address, ship_images),
    )
    session = ctx.ensure_object(Session)
    if verify_reuse is not None:
        from cos_core.infer.verify import verify

        with reporting(session) as reporter:
            verdict = verify(config, verify_reuse, reporter)
        emit_json(verdict) if json else emit(differences(verdict))
        return
    if chat:
        converse(config, session)
        return
    if not single:
        with reporting(session) as reporter:
            manifest = run(config, reporter)
            reporter.note(summary(manifest, out))
        if json:
            emit_json(manifest.to_json())
        return
    stdout = sys.stdout
    if out is not None:
        check_out(out, config)
    with reporting(session) as reporter:
        # Inside, sys.stdout is stderr: libraries may print.
        prediction = answer_one(config, reporter, listen=(lambda text: _write(stdout, text)) if stream else None)
    if stream:
        emit("")
    if show or save is not None:
        picture(prediction, config, session, show=show, save=save)
    if out is not None:
        with DurableWriter(out, check=Prediction.from_json) as writer:
            writer.append(prediction.to_json())
    if json:
        emit_json(prediction.to_json())
    else:
        emit(describe(prediction))


def describe(prediction: Prediction) -> Lines:
    """For a person: box (fractions of the picture), status, answer; an answer's further lines stand under its first."""
    box = prediction.box
    corners = "[" + ", ".join(f"{v:.3f}" for v in box.corners) + "]  left, top, right, bottom" if box else "none"
    status: str = prediction.box_status
    if box is None and prediction.box_text:
        status += f" ({prediction.box_text!r})"
    said = (prediction.answer or "").split("\n") if prediction.error is None else [f"none ({prediction.error})"]
    first, *more = said
    return Lines([f"box     {corners}", f"status  {status}", f"answer  {first}", *(f"        {line}" for line in more)])


def converse(config: InferConfig, session: Session) -> None:
    """Questions from stdin, one a line, until an empty one or the end; answers on stdout as they come."""
    from cos_core.infer.chat import Conversation

    stdout, person = sys.stdout, sys.stdin.isatty()
    with reporting(session) as reporter:
        conversation = Conversation(config, reporter, listen=lambda text: _write(stdout, text))
        if person:
            reporter.note("ask away; an empty line ends")
        for line in sys.stdin:
            if not line.strip():
                break
            prediction = conversation.ask(line.strip())
            stdout.write("\n")
            if prediction.error is not None:
                reporter.warn(prediction.error)
            elif prediction.box is not None:
                reporter.note(describe(prediction).splitlines()[0] + f"  ({prediction.box_status})")


def picture(prediction: Prediction, config: InferConfig, session: Session, *, show: bool, save: Path | None) -> None:
    """The overlay, shown on the terminal's stderr and saved to `save`; where no terminal is, saved beside the call instead."""
    if show and not (sys.stderr.isatty() and os.environ.get("TERM") != "dumb"):
        show, save = False, save or Path(f"{config.image.stem if config.image else 'picture'}-overlay.png")
    with tempfile.TemporaryDirectory() as folder:
        path = save or Path(folder) / "overlay.png"
        draw(prediction, config, path, session)
        if show:
            from cos_cli import preview

            preview.show(path, behind(sys.stderr))
    if save is not None:
        with reporting(session) as reporter:
            reporter.note(f"picture -> {save}")


def draw(prediction: Prediction, config: InferConfig, path: Path, session: Session) -> None:
    """The picture with the region that was looked at, saved to `path`."""
    from cos_core.visualize import overlay

    scene = overlay.OverlayConfig(
        out=path,
        image=config.image,
        box=prediction.box.corners if prediction.box else None,
        question=config.question,
        answer=prediction.answer,
        box_status=prediction.box_status,
    )
    with reporting(session) as reporter:
        overlay.run(scene, reporter)


def differences(verdict: Mapping[str, Any]) -> Lines:
    """A line for each reply that reuse changed, and one that counts them."""
    lines = [
        f"token {flip['token']}, margin {flip['margin']}: {flip['plain']!r} became {flip['reused']!r}"
        for flip in verdict["flips"]
    ]
    counted = f"{len(verdict['flips'])} of {verdict['replies']} replies to {verdict['questions']} questions differ with reuse"
    return Lines([*lines, counted])


def _write(stream: TextIO, text: str) -> None:
    # A line of the model's own never begins where ours do.
    stream.write(escaped_lines(text).replace("\n", "\n  "))
    stream.flush()


def _is_single(
    image: Path | None, question: str | None, data: list[Path] | None, images: Path | None, out: Path | None
) -> bool:
    """True for one picture, False for a file of questions. Raises typer.BadParameter for a mixture (exit code 2)."""
    if image is None and (question is None or (images is not None and data is None)):
        if (data is None and question is None) or images is None or out is None:
            raise typer.BadParameter(USES)
        return False
    if image is None or not question:
        raise typer.BadParameter("--image and --question belong together")
    if data is not None or images is not None:
        raise typer.BadParameter("--image and --question exclude --data and --images")
    return True
