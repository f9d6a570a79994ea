"""The commands and their options as plain records, read from the functions that Typer registers.

One reading serves completion, `--config` files and their templates; none of it needs Typer's internals.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from cos_cli.evaluate.group import DEFAULT, WithDefault


@dataclass(frozen=True)
class Parameter:
    """An option or an argument of a command.

    `kind`: bool, int, float, str, Path, or object where `parser` decides; `choices` for a fixed set of texts. `names` are the
    spellings that take a value or set a flag, `off` those that unset it; an argument has neither. `values`: words that one
    mention takes (0 for a flag).
    `completes`: what `options.complete` said of its values. `default` is None where the command decides by itself.
    """

    name: str
    kind: type
    names: tuple[str, ...]
    off: tuple[str, ...]
    choices: tuple[str, ...]
    values: int
    many: bool
    required: bool
    default: Any
    shown_default: str | None
    help: str
    completes: str | None
    low: float | None
    high: float | None
    parser: Callable[[str], Any] | None
    metavar: str | None

    @property
    def key(self) -> str:
        """Its name in a settings file: the longest spelling, with _ for -; an argument's own name."""
        long = max(self.names, key=len, default=self.name)
        return long.removeprefix("--").replace("-", "_")


@dataclass(frozen=True)
class Command:
    """A command by the words that name it (`("eval", "compare")`); `usual`: its last word may be left out."""

    words: tuple[str, ...]
    function: Callable[..., Any]
    help: str
    usual: bool

    @property
    def table(self) -> tuple[str, ...]:
        """Where its options stand in a settings file: `[train]`, `[visualize.report]`, and `[eval]` for `cos eval run`."""
        return self.words[:-1] if self.usual else self.words

    @property
    def parameters(self) -> list[Parameter]:
        return parameters(self.function)


def commands(app: typer.Typer, words: tuple[str, ...] = (), usual: str | None = None) -> Iterator[Command]:
    """Every command below `app`, groups walked through, in the order of --help; hidden ones are left out."""
    for one in app.registered_commands:
        if one.callback is not None and not one.hidden:
            name = one.name or one.callback.__name__.replace("_", "-")
            yield Command((*words, name), one.callback, first_sentence(one.callback.__doc__), name == usual)
    for group in app.registered_groups:
        if group.typer_instance is not None and not group.hidden:
            cls = group.typer_instance.info.cls
            default = DEFAULT if isinstance(cls, type) and issubclass(cls, WithDefault) else None
            yield from commands(group.typer_instance, (*words, str(group.name)), default)


def groups(app: typer.Typer) -> list[tuple[str, str]]:
    """(name, what it is for) of every group of commands."""
    found = []
    for group in app.registered_groups:
        inner = group.typer_instance
        if inner is not None:
            callback = inner.registered_callback.callback if inner.registered_callback is not None else None
            words = inner.info.help if isinstance(inner.info.help, str) else callback.__doc__ if callback is not None else ""
            found.append((str(group.name), first_sentence(words)))
    return found


def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """The options and arguments of a command's function, in its order."""
    found = []
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if get_origin(parameter.annotation) is not Annotated:
            continue
        bare, *extras = get_args(parameter.annotation)
        info = next((extra for extra in extras if isinstance(extra, ParameterInfo)), None)
        if info is not None:
            found.append(_parameter(name, bare, info, parameter.default))
    return found


def first_sentence(text: str | None) -> str:
    """The beginning of a docstring, on one line."""
    paragraph = " ".join((text or "").strip().partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".:")


def _parameter(name: str, annotation: Any, info: ParameterInfo, default: Any) -> Parameter:
    from cos_cli.options import completed_by

    kind, choices, count, many = _shape(annotation)
    positional = isinstance(info, ArgumentInfo)
    names, off = ((), ()) if positional else _spellings(name, kind, info)
    missing = default is inspect.Parameter.empty
    return Parameter(
        name=name,
        kind=kind,
        names=names,
        off=off,
        choices=choices,
        values=0 if kind is bool and not positional else count,
        many=many,
        required=missing,
        default=None if missing else default,
        shown_default=info.show_default if isinstance(info.show_default, str) else None,
        help=info.help or "",
        completes=completed_by(info.autocompletion),
        low=info.min,
        high=info.max,
        parser=info.parser,
        metavar=info.metavar,
    )


def _shape(annotation: Any) -> tuple[type, tuple[str, ...], int, bool]:
    """(type, choices, words a mention, whether it may be repeated)."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(a for a in get_args(annotation) if a is not NoneType)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return str, tuple(str(choice) for choice in inner), 1, False
    if origin is list:
        kind, choices, _, _ = _shape(inner[0])
        return kind, choices, 1, True
    if origin is tuple:
        return inner[0], (), len(inner), False
    return object if annotation is Any else annotation, (), 1, False


def _spellings(name: str, kind: type, info: ParameterInfo) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """As Typer reads them: what is declared, else --name, and for a switch --no-name."""
    declared: Sequence[str] = info.param_decls or ()
    if isinstance(info, OptionInfo) and isinstance(info.default, str):
        # In Annotated, the first spelling arrives in the place of a default.
        declared = (info.default, *declared)
    if not declared:
        long = name.replace("_", "-")
        return (f"--{long}",), ((f"--no-{long}",) if kind is bool else ())
    on, off = [], []
    for spelling in declared:
        first, slash, second = spelling.partition("/")
        on.append(first.strip())
        if slash:
            off.append(second.strip())
    return tuple(on), tuple(off)


def path_like(parameter: Parameter) -> bool:
    """Whether its value is a path of the file system."""
    return isinstance(parameter.kind, type) and issubclass(parameter.kind, Path)
