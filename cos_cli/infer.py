"""`cos infer`: where to look, then the answer."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from cos_cli.command import command
from cos_cli.console import Session, emit, emit_json, emit_text, reporting, run_stage
from cos_core import options
from cos_core.files.text import Lines, escaped_json, escaped_lines
from cos_core.options import CHECKS, INPUT, OUTPUT, option
from cos_core.system.streams import behind

if TYPE_CHECKING:
    from cos_core.infer import InferConfig
    from cos_core.types import Prediction


STDOUT = Path("-")
"""The value of --out that means stdout."""
USES = Lines(
    [
        "give one of",
        "  --image PICTURE --question TEXT               one answer, printed",
        "  --data FILE --images FOLDER --out FILE        a file of questions",
        "  --question TEXT --images FOLDER --out FILE    one question about every picture of a folder",
    ]
)


@dataclass(frozen=True, slots=True)
class InferOptions:
    """Options of the terminal that the stage does not have."""

    verify_reuse: int | None = option(
        None,
        "Answer the first N of --data with and without reuse, and list what differs.",
        CHECKS,
        low=1,
        high=options.COUNT,
        metavar="N",
    )
    stream: bool = option(False, "With --question: print the answer as it comes.", OUTPUT)
    chat: bool = option(False, "With --image: read questions from the terminal, one a line, until an empty one.", INPUT)
    show: bool = option(
        False, "With --question: draw picture, region and answer in the terminal, elsewhere into a file.", OUTPUT
    )
    save: Path | None = option(None, "With --question: save that picture (.png, .webp or .pdf).", OUTPUT)


@command("infer", "cos_core.infer:InferConfig", InferOptions)
def infer(session: Session, config: InferConfig, how: InferOptions) -> None:
    """Ask a model where to look, then let it answer.

    The answer is given with the whole picture and the zoomed region.
    With --image and --question: prints box, status and answer. With --data, --images and --out: answers a file of
    questions; killed and started again, it answers only what is missing. With --images, --question and --out: the same
    question about every picture of a folder. With --out - the answers are printed as JSON Lines, and kept nowhere.

    \b
    Examples:
      cos infer --model miniature --image photo.jpg --question "What colour is the car?"
      cos infer --model miniature --data questions.json --images pictures --out answers.jsonl
    """
    single = _is_single(session, config, how)
    if how.verify_reuse is not None:
        from cos_core.infer.verify import verify

        with reporting(session) as reporter:
            verdict = verify(config, how.verify_reuse, reporter)
        emit_json(verdict) if session.json else emit(differences(verdict))
    elif how.chat:
        converse(config, session)
    elif single:
        answer(config, how, session)
    elif config.out == STDOUT:
        print_answers(config, session)
    else:
        from cos_core.infer import run

        run_stage(session, run, config, config.out)


def print_answers(config: InferConfig, session: Session) -> None:
    """Answers a file of questions and prints the predictions as JSON Lines, those of a run that fails, too."""
    from cos_core.files.jsonl import raw_lines
    from cos_core.infer import run

    if session.json:
        raise typer.BadParameter("--json prints the manifest; with --out - stdout is for the answers")
    with tempfile.TemporaryDirectory(prefix="cos-infer-") as folder:
        out = Path(folder) / "answers.jsonl"
        try:
            run_stage(session, run, replace(config, out=out), "stdout")
        finally:
            if out.exists():
                for _, _, _, line in raw_lines(out):
                    emit_text(escaped_json(line.decode("utf-8").rstrip("\n")))


def answer(config: InferConfig, how: InferOptions, session: Session) -> None:
    """One answer about one picture: printed, drawn and written as asked."""
    from cos_core.files.durable_writer import DurableWriter
    from cos_core.infer.chat import answer_one
    from cos_core.infer.stage import check_out
    from cos_core.types import Prediction

    stdout = sys.stdout
    if config.out is not None:
        check_out(config.out, config)
    with reporting(session) as reporter:
        # Inside, sys.stdout is stderr: libraries may print.
        prediction = answer_one(config, reporter, listen=(lambda text: _write(stdout, text)) if how.stream else None)
    if how.stream:
        emit("")
    if how.show or how.save is not None:
        picture(prediction, config, session, show=how.show, save=how.save)
    if config.out is not None:
        with DurableWriter(config.out, check=Prediction.from_json) as writer:
            writer.append(prediction.to_json())
    if session.json:
        emit_json(prediction.to_json())
    else:
        emit(describe(prediction))


def describe(prediction: Prediction) -> Lines:
    """Box (fractions of the picture), status and answer as lines; an answer's further lines are under its first. What a second
    picture held in place of the region, the gate's decision and the sampled answers are lines of their own."""
    box = prediction.box
    corners = "[" + ", ".join(f"{v:.3f}" for v in box.corners) + "]  left, top, right, bottom" if box else "none"
    status: str = prediction.box_status
    if box is None and prediction.box_text:
        status += f" ({prediction.box_text!r})"
    answer = (prediction.answer or "") if prediction.error is None else f"none ({prediction.error})"
    lines = [f"box     {corners}", f"status  {status}", *_second_look(prediction), *_column("answer", answer)]
    return Lines([*lines, *_samples(prediction)])


def _second_look(prediction: Prediction) -> list[str]:
    """Lines on the second picture and the gate; none where the region was shown and there is no gate."""
    from cos_core.visualize.run_questions import gate_words, second_picture_words

    lines = [] if prediction.shown is None else [f"second  {second_picture_words(prediction.shown)}"]
    if prediction.gate is None:
        return lines
    lines += _column("plain", prediction.plain) if prediction.plain is not None and prediction.gate == "open" else []
    return [*lines, f"gate    {gate_words(prediction)}"]


def _samples(prediction: Prediction) -> list[str]:
    from cos_core.visualize.run_questions import sample_words

    return [f"samples {sample_words(prediction.samples)}"] if prediction.samples else []


def _column(name: str, words: str) -> list[str]:
    """A named text; its further lines stand under its first."""
    first, *more = words.split("\n")
    return [f"{name:<8}{first}", *(f"        {line}" for line in more)]


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
                continue
            box = [] if prediction.box is None else [describe(prediction).splitlines()[0] + f"  ({prediction.box_status})"]
            for words in (*box, *_second_look(prediction), *_samples(prediction)):
                reporter.note(words)


def picture(prediction: Prediction, config: InferConfig, session: Session, *, show: bool, save: Path | None) -> None:
    """The overlay, shown on the terminal's stderr and saved to `save`; without a terminal, saved in the current folder."""
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
    """Saves the picture with the prediction's region to `path`."""
    from cos_core.visualize import overlay

    scene = overlay.OverlayConfig(out=path, image=config.image, question=config.question)
    with reporting(session) as reporter:
        settings = {"seed": config.seed, "global_scale": config.global_scale}
        overlay.run(scene, reporter, overlay.Answered(prediction, settings))


def differences(verdict: Mapping[str, Any]) -> Lines:
    """A line for each reply that reuse changed, and one that counts them."""
    lines = [
        f"token {flip['token']}, margin {flip['margin']}: {flip['plain']!r} became {flip['reused']!r}"
        for flip in verdict["flips"]
    ]
    counted = f"{len(verdict['flips'])} of {verdict['replies']} replies to {verdict['questions']} questions differ with reuse"
    return Lines([*lines, counted])


def _write(stream: TextIO, text: str) -> None:
    # The answer's further lines are indented, so that they differ from messages.
    stream.write(escaped_lines(text).replace("\n", "\n  "))
    stream.flush()


def _is_single(session: Session, config: InferConfig, how: InferOptions) -> bool:
    """True for one answer about one picture. Raises typer.BadParameter for options that exclude each other (exit code 2)."""
    if how.verify_reuse is not None:
        if config.data is None or config.images is None:
            raise typer.BadParameter("--verify-reuse needs --data and --images")
        single = False
    elif how.chat:
        if (
            config.image is None
            or config.question is not None
            or config.data is not None
            or config.out is not None
            or session.json
        ):
            raise typer.BadParameter("--chat takes --image alone")
        single = False
    else:
        single = _is_one_picture(config)
    if (how.show or how.save is not None) and not single:
        raise typer.BadParameter("--show and --save are for --image with --question")
    if (how.stream and not (single or how.chat)) or (how.stream and session.json):
        raise typer.BadParameter("--stream is for --image with --question, without --json")
    return single


def _is_one_picture(config: InferConfig) -> bool:
    """True for one picture, False for a file of questions. Raises typer.BadParameter for a mixture (exit code 2)."""
    data, images, question = config.data, config.images, config.question
    if config.image is None and (question is None or (images is not None and data is None)):
        if (data is None and question is None) or images is None or config.out is None:
            raise typer.BadParameter(USES)
        return False
    if config.image is None or not question:
        raise typer.BadParameter("--image and --question belong together")
    if data is not None or images is not None:
        raise typer.BadParameter("--image and --question exclude --data and --images")
    return True
