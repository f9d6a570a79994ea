"""The `cos` command: every command is registered here, and here errors become one sentence and an exit code.

Exit codes: 0 ok · 1 bug · 2 usage · 3 bad input or config · 4 missing extra, model or hardware · 5 finished with more failures
than allowed · 6 regression · 75 locked by another run · 130 interrupted · 141 the reader of stdout went away.
"""

from __future__ import annotations

import errno
import inspect
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from cos_cli import annotate, config, data, demo, doctor, evaluate, evidence, infer, model, shells, store, train, visualize
from cos_cli.command import CONTEXT, Command, Group, OrderedGroup, register
from cos_cli.console import Session
from cos_core import __version__
from cos_core.errors import CosError
from cos_core.files.text import MESSAGE, message, one_line, words_of
from cos_core.system.extras import install
from cos_core.system.streams import guarded

BUG, BAD_INPUT, MISSING, INTERRUPTED, PIPE_CLOSED = 1, 3, 4, 130, 141

_CLICK_EXCEPTION: Any = typer.BadParameter.__mro__[2]
"""What Typer raises for a command line that cannot be; it has no public name in all versions."""

EXTRA_OF = {
    "torch": "model",
    "transformers": "model",
    "tokenizers": "model",
    "safetensors": "model",
    "accelerate": "model",
    "deepspeed": "train",
    "detectron2": "detect",
    "fvcore": "detect",
    "omegaconf": "detect",
    "pycocotools": "detect",
}
"""The extra of the distribution that brings an optional package."""

OPERATING_SYSTEM = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EFBIG,
}
"""File errors caused by the machine or the arguments, not by a bug."""

TREE: tuple[Command | Group, ...] = (
    demo.demo,
    annotate.annotate,
    train.train,
    infer.infer,
    evaluate.group,
    evidence.evidence,
    visualize.group,
    data.group,
    store.group,
    model.group,
    config.group,
    doctor.doctor,
    shells.group,
)
"""Every command, in the order of `cos --help`: the demo, then the pipeline's, then those about files and this machine."""

app = typer.Typer(
    name="cos",
    cls=OrderedGroup,
    no_args_is_help=True,
    add_completion=False,  # completion/ answers a press of TAB without loading Typer
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)
register(app, TREE)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cos {__version__}")
        raise typer.Exit


@app.callback()
def cos(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Chain-of-Spot: teach a vision-language model where to look, then let it answer.

    One way through: annotate -> train -> infer -> eval -> visualize. Each command's --help has an example.

    \b
    Example:
      cos infer --model miniature --image photo.jpg --question "What colour is the car?"
    """


def main() -> None:
    """Runs the command line of this process; `entry` calls it."""
    _open_streams()
    if not sys.stderr.isatty():
        # Bars that libraries draw (downloads, shards) are for people; a log gets our own occasional lines.
        os.environ.setdefault("TQDM_DISABLE", "1")
    if not sys.warnoptions:
        # Warnings about the next versions of libraries are for developers, not for users of a command.
        warnings.simplefilter("ignore", FutureWarning)
    loading = signal.getsignal(signal.SIGINT)
    try:
        if callable(loading):
            # From here on Ctrl-C is an exception: what is open is closed.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = _interrupted()
    if callable(loading):
        signal.signal(signal.SIGINT, loading)
    sys.exit(code)


def _open_streams() -> None:
    """Opens closed streams (`>&-`) on /dev/null: else the next opened file would get their number, and their output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the locale's encoding lacks is escaped instead of raising an error.
            stream.reconfigure(errors="backslashreplace")


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; errors are printed on stderr."""
    with guarded():
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    session = Session(tree=TREE)
    try:
        ended = app(args=list(arguments), prog_name="cos", obj=session, standalone_mode=False)
    except _CLICK_EXCEPTION as error:
        return _wrong_use(error)
    except SystemExit as end:
        return _exit_code(end)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except CosError as error:
        return _say(error, words_of(error), error.exit_code, session)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            return _bug(error)
        advice = f"this needs the package {package!r}; install it with: {install(EXTRA_OF[package])}"
        return _say(error, advice, MISSING, session)
    except OSError as error:
        if error.errno not in OPERATING_SYSTEM:
            return _bug(error)
        where = f": {error.filename}" if error.filename else ""
        # Folders are made where they are missing, so what exists is a file.
        why = "a file stands where a folder is needed" if error.errno == errno.EEXIST else error.strerror or str(error)
        return _say(error, f"{why.lower()}{where}", BAD_INPUT, session)
    except Exception as error:
        # The last place before Python's own: a defect is shown in full, with a sentence that calls it one.
        return _bug(error)
    code = ended if isinstance(ended, int) else 0
    return _interrupted() if code == INTERRUPTED else code


def _wrong_use(error: Any) -> int:
    """Prints Typer's message, on one line, and returns its exit code."""
    if type(error).__name__ != "NoArgsIsHelpError":  # whose message is the whole help
        error.message = message(error.message)
        if (ours := _ours(error)) is not None:
            error.message, error.possibilities = f"{error.message.rstrip('.')}. {ours}", None
        many = getattr(getattr(error, "param", None), "nargs", 1)
        if many > 1:
            # A number too few takes the next option for one.
            error.message = f"it takes {many} values: {error.message}"
    error.show(file=sys.stderr)
    return int(error.exit_code)


def _ours(error: Any) -> str | None:
    """For an unknown option that another tool has: a sentence with its name here; else None."""
    from cos_cli import foreign

    name, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    function: Any = getattr(getattr(context, "command", None), "callback", None)
    command = getattr(inspect.unwrap(function), "command", None) if function is not None else None
    return foreign.answer(command.options, str(name)) if name and command is not None else None


def _exit_code(end: SystemExit) -> int:
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
    if code == INTERRUPTED:
        return _interrupted()
    if isinstance(end.__context__, OSError) and end.__context__.errno == errno.EPIPE:
        # The reader of stdout (`| head`) has closed the pipe.
        return PIPE_CLOSED
    return code


def _say(error: BaseException, sentence: str, code: int, session: Session) -> int:
    if session.traceback:
        _trace(error)
    print(f"cos: {message(sentence)}", file=sys.stderr)
    return code


def _trace(error: BaseException) -> None:
    """Prints the traceback as Python does, but each exception's message, which may contain data, on one line."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        _trace(before)
        how = "was the direct cause of" if error.__cause__ else "was being handled during"
        print(f"\nThe exception above {how} the following one:\n", file=sys.stderr)
    frames = "".join(traceback.format_tb(error.__traceback__))
    message_lines = "".join(traceback.format_exception_only(error)).rstrip()
    print(f"Traceback (most recent call last):\n{frames}{one_line(message_lines, MESSAGE)}", file=sys.stderr)


def _bug(error: Exception) -> int:
    _trace(error)
    print(f"cos: this is a defect of cos ({type(error).__name__}); please report it with the lines above", file=sys.stderr)
    return BUG


def _interrupted() -> int:
    print("cos: interrupted; the same command continues where it stopped", file=sys.stderr)
    return INTERRUPTED
