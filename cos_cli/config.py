"""`cos config`: settings files, written and explained."""

from __future__ import annotations

import json as jsons
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cos_cli import options
from cos_cli.commands import Command, Parameter, commands, path_like
from cos_cli.console import columns, emit, emit_json, emit_text
from cos_core.errors import InputError
from cos_core.files import assets, plug

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_SOURCES = {"COMMANDLINE": "flag", "ENVIRONMENT": "environment", "DEFAULT_MAP": "file", "DEFAULT": "default"}
_WIDTH = 124


@app.callback()
def config() -> None:
    """Write settings files for --config, and show what a command would run with.

    \b
    Examples:
      cos config init annotate --out mine.toml
      cos config show annotate --config mine.toml --limit 5
    """


@app.command(context_settings={"allow_interspersed_args": False})
def show(
    call: Annotated[
        list[str],
        typer.Argument(help="A command with its options, such as --config.", metavar="COMMAND [OPTIONS]", show_default=False),
    ],
    json: options.Json = False,
) -> None:
    """Show the settings that a command would run with, and where each comes from.

    Own options of this command stand before COMMAND. Nothing is run, and nothing need be complete.

    \b
    Example:
      cos config show train --config mine.toml --epochs 2
    """
    command, rest = find(call)
    found = effective(command, rest)
    if json:
        emit_json({"command": " ".join(command.words), "settings": found})
        return
    rows = [(name, _value(each), each["from"]) for name, each in found.items()]
    emit(columns([("setting", "value", "from"), *rows]))


@app.command()
def init(
    call: Annotated[
        list[str], typer.Argument(help="The command, such as train or visualize report.", metavar="COMMAND", show_default=False)
    ],
    like: Annotated[
        Literal["paper", "released"],
        typer.Option(help="For train: the paper's settings, or those of the released script where they differ."),
    ] = "paper",
    out: Annotated[Path | None, typer.Option(help="New file to write.", show_default="print it")] = None,
) -> None:
    """Write a commented settings file for a command.

    \b
    Examples:
      cos config init train --like released --out mine.toml
      cos config init annotate
    """
    command, rest = find(call)
    if rest:
        raise typer.BadParameter(f"{' '.join(rest)!r} is no part of a command")
    text = template(command, like)
    if out is None:
        emit_text(text.rstrip("\n"))
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{out} is there already; name a new file, or remove it") from None
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from None


def find(call: list[str]) -> tuple[Command, list[str]]:
    """(the command that `call` names, what follows its name). Raises InputError for a name that is none."""
    from cos_cli.main import app as root

    known = {words: each for each in commands(root) for words in {each.words, each.table} if takes_settings(each)}
    for length in range(min(len(call), 2), 0, -1):
        command = known.get(tuple(call[:length]))
        if command is not None:
            return command, call[length:]
    names = sorted(" ".join(words) for words in known)
    raise InputError(f"no command with settings is called {call[0]!r}{plug.nearest(' '.join(call[:2]), names)}")


def takes_settings(command: Command) -> bool:
    """Whether it has the option --config."""
    return any("--config" in parameter.names for parameter in command.parameters)


def effective(command: Command, arguments: list[str]) -> dict[str, dict[str, Any]]:
    """Setting -> its value, where it comes from, and its help. Raises what the command itself would raise for wrong values."""
    context = _parsed(command, arguments)
    found = {}
    for parameter in settable(command):
        source = context.get_parameter_source(parameter.name)
        value = context.params.get(parameter.name, parameter.default)
        origin = _SOURCES[source.name] if source is not None else "default"
        if parameter.required and value in (None, (), []):
            value, origin = None, "nowhere yet (required)"
        if _files(parameter) and len(value or ()) == 1:
            (value,) = value
        found[parameter.key] = {"value": _plain(value), "from": origin, "default": parameter.shown_default}
    return found


def _files(parameter: Parameter) -> bool:
    """Whether it takes one file or several, and so is written as one in a settings file."""
    return parameter.many and path_like(parameter)


def settable(command: Command) -> list[Parameter]:
    """What a settings file may hold."""
    return [parameter for parameter in command.parameters if parameter.key != "config"]


def template(command: Command, like: str = "paper") -> str:
    """A settings file: the shipped one for training, else one made of the options' own help, all of it commented out."""
    if command.table == ("train",):
        return assets.template("config", f"train-{like}.toml").read_text(encoding="utf-8")
    name, table = " ".join(command.table), ".".join(command.table)
    lines = [
        f"# Settings of cos {name}: cos {name} --config THIS_FILE. What stands on the command line wins.",
        "# Remove the # before a setting to use it; what stands there is the default. Relative paths start from the folder",
        "# where the command runs.",
        "",
        f"[{table}]",
    ]
    for parameter in settable(command):
        lines += ["", *_wrapped(parameter.help), f"# {parameter.key} = {_sample(parameter)}"]
    return "\n".join(lines) + "\n"


def _parsed(command: Command, arguments: list[str]) -> typer.Context:
    """The command's context after parsing `arguments`, without running it."""
    from cos_cli.main import app as root

    at: Any = typer.main.get_command(root)
    context: Any = at.make_context("cos", [], resilient_parsing=True)
    *groups, last = command.words
    for name in groups:
        at = at.commands[name]
        context = type(context)(at, parent=context, info_name=name)
    leaf = at.commands[last]
    for parameter in leaf.params:
        # This tree is ours alone: nothing need be complete to be shown.
        parameter.required = False
    made: typer.Context = leaf.make_context(last, list(arguments), parent=context)
    return made


def _wrapped(text: str) -> list[str]:
    import textwrap

    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]


def _sample(parameter: Parameter) -> str:
    """The default as TOML; where there is none, an example of its kind, and what holds without it."""
    if parameter.default is not None:
        return _toml(_plain(parameter.default))
    if parameter.choices:
        example = _toml(parameter.choices[0])
    elif parameter.kind in (int, float):
        example = _toml(parameter.kind(parameter.low or 1))
    elif parameter.metavar and "|" in parameter.metavar:
        example = _toml(parameter.metavar.rpartition("|")[2])
    else:
        example = "true" if parameter.kind is bool else '"..."'
    if (parameter.many and not _files(parameter)) or parameter.values > 1:
        example = f"[{', '.join([example] * max(1, parameter.values))}]"
    unset = f"without it: {parameter.shown_default}" if parameter.shown_default else "not set"
    return f"{example}    # {'required' if parameter.required else unset}"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # TOML's basic strings, numbers and booleans are JSON's, as far as options have them.
    return jsons.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _value(setting: dict[str, Any]) -> str:
    if setting["value"] is None:
        return setting["default"] or "-"
    return _toml(setting["value"])
