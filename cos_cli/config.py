"""`cos config`: settings files, written and explained."""

from __future__ import annotations

import json as jsons
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import typer

from cos_cli.command import Command, Group, all_commands, command
from cos_cli.console import Session, columns, emit, emit_json, emit_text
from cos_core.errors import InputError
from cos_core.files import assets, plug
from cos_core.options import INPUT, OUTPUT, REQUIRED, Option, option

_SOURCES = {"COMMANDLINE": "flag", "ENVIRONMENT": "environment", "DEFAULT_MAP": "file", "DEFAULT": "default"}
_WIDTH = 124
HELP = """\
Write settings files for --config, and show what a command would run with.

\b
Examples:
  cos config init annotate --out mine.toml
  cos config show annotate --config mine.toml --limit 5
"""


@dataclass(frozen=True, slots=True)
class ShowOptions:
    """The command line whose settings are shown."""

    call: tuple[str, ...] = option(
        REQUIRED, "A command with its options, such as --config.", INPUT, argument=True, metavar="COMMAND [OPTIONS]"
    )


@dataclass(frozen=True, slots=True)
class InitOptions:
    """The command for which a settings file is written."""

    call: tuple[str, ...] = option(
        REQUIRED, "The command, such as train or visualize report.", INPUT, argument=True, metavar="COMMAND"
    )
    like: Literal["paper", "released"] = option(
        "paper", "For train: the paper's settings, or those of the released script where they differ.", INPUT
    )
    out: Path | None = option(None, "New file to write.", OUTPUT, shown_default="print it")


@command("config show", ShowOptions, leaves_out=("config_file", "quiet", "traceback"), interspersed=False)
def show(session: Session, what: ShowOptions) -> None:
    """Show the settings that a command would run with, and where each comes from.

    Own options of this command stand before COMMAND. Nothing is run, and nothing need be complete.

    \b
    Example:
      cos config show train --config mine.toml --epochs 2
    """
    shown, rest = find(session.tree, what.call)
    settings = effective(session.tree, shown, rest)
    if session.json:
        emit_json({"command": " ".join(shown.words), "settings": settings})
        return
    rows = [(name, _value(each), each["from"]) for name, each in settings.items()]
    emit(columns([("setting", "value", "from"), *rows]))


@command("config init", InitOptions, leaves_out=("config_file", "json", "quiet", "traceback"))
def init(session: Session, what: InitOptions) -> None:
    """Write a commented settings file for a command.

    \b
    Examples:
      cos config init train --like released --out mine.toml
      cos config init annotate
    """
    written, rest = find(session.tree, what.call)
    if rest:
        raise typer.BadParameter(f"{' '.join(rest)!r} is no part of a command")
    text = template(written, what.like)
    if what.out is None:
        emit_text(text.rstrip("\n"))
        return
    try:
        with what.out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{what.out} is there already; name a new file, or remove it") from None
    except OSError as error:
        raise InputError(f"{what.out} cannot be written: {error.strerror}") from None


def find(tree: Sequence[Command | Group], call: Sequence[str]) -> tuple[Command, list[str]]:
    """(the command that `call` names, what follows its name). Raises InputError for a name that is none."""
    known = {words: each for each in all_commands(tree) for words in {each.words, each.table} if takes_settings(each)}
    for length in range(min(len(call), 2), 0, -1):
        named = known.get(tuple(call[:length]))
        if named is not None:
            return named, list(call[length:])
    names = sorted(" ".join(words) for words in known)
    raise InputError(f"no command with settings is called {call[0]!r}{plug.nearest(' '.join(call[:2]), names)}")


def takes_settings(each: Command) -> bool:
    """Whether it has the option --config."""
    return "config_file" not in each.leaves_out


def effective(tree: Sequence[Command | Group], shown: Command, arguments: list[str]) -> dict[str, dict[str, Any]]:
    """Setting -> its value, where it comes from, and its help. Raises what the command itself would raise for wrong values."""
    context = _parsed(tree, shown, arguments)
    settings = {}
    for each in settable(shown):
        source = context.get_parameter_source(each.name)
        value = context.params.get(each.name, each.default)
        origin = _SOURCES[source.name] if source is not None else "default"
        if each.required and value in (None, (), []):
            value, origin = None, "nowhere yet (required)"
        if each.files and len(value or ()) == 1:
            (value,) = value
        settings[each.key] = {"value": plain(value), "from": origin, "default": each.shown_default}
    return settings


def settable(shown: Command) -> list[Option]:
    """What a settings file may hold."""
    return [each for each in shown.options if each.key != "config"]


def template(shown: Command, like: str = "paper") -> str:
    """A settings file: the shipped one for training, else one made of the options' own help, all of it commented out."""
    if shown.table == ("train",):
        return assets.template("config", f"train-{like}.toml").read_text(encoding="utf-8")
    name, table = " ".join(shown.table), ".".join(shown.table)
    lines = [
        f"# Settings of cos {name}: cos {name} --config THIS_FILE. What stands on the command line wins.",
        "# Remove the # before a setting to use it; what stands there is the default. Relative paths start from the folder",
        "# where the command runs.",
        "",
        f"[{table}]",
    ]
    for each in settable(shown):
        lines += ["", *_wrapped(each.help), f"# {each.key} = {_sample(each)}"]
    return "\n".join(lines) + "\n"


def _parsed(tree: Sequence[Command | Group], shown: Command, arguments: list[str]) -> Any:
    """The command's context after parsing `arguments`, without running it."""
    leaf = shown.typer()
    for parameter in leaf.params:
        # `leaf` is a copy: a command line without required values can be shown.
        parameter.required = False
    return leaf.make_context(" ".join(shown.words), list(arguments), obj=Session(tree=tree))


def _wrapped(text: str) -> list[str]:
    import textwrap

    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]


def _sample(each: Option) -> str:
    """The default as TOML; where there is none, an example of its kind, and what holds without it."""
    if each.default not in (None, ()):
        return _toml(plain(each.default))
    metavar = each.declared.metavar or ""
    if each.choices:
        example = _toml(each.choices[0])
    elif each.kind in (int, float):
        example = _toml(each.kind(each.low or 1))
    elif "|" in metavar:
        example = _toml(metavar.rpartition("|")[2])
    else:
        example = "true" if each.kind is bool else '"..."'
    if (each.many and not each.files) or each.values > 1:
        example = f"[{', '.join([example] * max(1, each.values))}]"
    unset = f"without it: {each.shown_default}" if each.shown_default else "not set"
    return f"{example}    # {'required' if each.required else unset}"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # TOML's basic strings, numbers and booleans are JSON's, as far as options have them.
    return jsons.dumps(value, ensure_ascii=False)


def plain(value: Any) -> Any:
    """Paths as text, tuples as lists."""
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _value(setting: dict[str, Any]) -> str:
    if setting["value"] is None:
        return setting["default"] or "-"
    return _toml(setting["value"])


group = Group("config", HELP, (show, init))
