"""An option that takes one value is given once: the command line would keep the last value and say nothing of the others."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from cos_cli.commands import Parameter, parameters


class _Once(TyperCommand):
    """A command that refuses an option given twice, and a switch set both on and off."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        function: Any = self.callback
        repeated = find_repeated(parameters(inspect.unwrap(function)), args, ctx.allow_interspersed_args)
        if repeated is not None:
            raise typer.BadParameter(repeated)
        rest: list[str] = super().parse_args(ctx, args)
        return rest


def refuse_repeats(app: typer.Typer) -> None:
    """Makes every command below `app` refuse options that are given twice."""
    for command in app.registered_commands:
        command.cls = _Once
    for group in app.registered_groups:
        if group.typer_instance is not None:
            refuse_repeats(group.typer_instance)


def find_repeated(known: Sequence[Parameter], words: Sequence[str], interspersed: bool = True) -> str | None:
    """What is wrong with a command line that gives an option twice which may be given once; None when nothing is.

    `interspersed`: options may follow arguments. An equal switch given twice says one thing, and is no mistake.
    """
    spelled = {name: parameter for parameter in known for name in (*parameter.names, *parameter.off)}
    seen: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--" or (not interspersed and not word.startswith("-")):
            break
        for parameter, name, inline in _options(word, spelled):
            if not inline:
                del rest[: parameter.values]
            before = seen.get(parameter.name)
            if before is not None and parameter.values and not parameter.many:
                return f"{name} is given twice, and takes one value"
            if before is not None and not parameter.values and (before in parameter.off) != (name in parameter.off):
                return f"{before} and {name} exclude each other"
            seen[parameter.name] = name
    return None


def _options(word: str, spelled: Mapping[str, Parameter]) -> Iterator[tuple[Parameter, str, bool]]:
    """(option, its spelling, whether its value stands in the same word) of what a word sets; `-qv` sets two switches."""
    if word.startswith("--"):
        name, inline, _ = word.partition("=")
        if name in spelled:
            yield spelled[name], name, bool(inline)
    elif word.startswith("-"):
        for place, letter in enumerate(word[1:], 2):
            parameter = spelled.get(f"-{letter}")
            if parameter is None:
                return
            yield parameter, f"-{letter}", place < len(word)
            if parameter.values:
                return
