"""`--config FILE.toml`: options of a command from a file, in a table named after the command.

    [train]
    learning_rate = 2e-5

    [visualize.report]
    cards = 500

Keys are the options' names, with _ for -; an argument goes by the name that `cos config init` writes. The command line wins
over the environment, that over the file, the file over the defaults. Relative paths start from the folder where the command
runs, as they do on the command line. `[eval]` is for `cos eval run`, whose name may be left out.
"""

from __future__ import annotations

import inspect
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from cos_cli import foreign
from cos_cli.console import Session
from cos_core.errors import InputError
from cos_core.files import plug
from cos_core.files.text import one_line, read_text
from cos_core.options import Option

_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    object: "a text in quotes or a number",
    Path: "a path in quotes",
}
MAX_BYTES = 2**20
"""Longer files are refused as no settings file."""


def use(ctx: typer.Context, path: Path | None) -> Path | None:
    """The callback of --config: makes the file's values the defaults of this call."""
    if path is not None and not ctx.resilient_parsing:
        ctx.default_map = {**(ctx.default_map or {}), **read(ctx, path)}
    return path


def read(ctx: typer.Context, path: Path) -> dict[str, Any]:
    """Parameter -> value for the command of `ctx`.

    Raises InputError for a file that cannot be read, a table or key that means nothing (with the nearest name), and a value
    that the option does not take.
    """
    try:
        is_there = path.exists()
    except (OSError, ValueError):  # a name that no file can have, a folder that may not be entered
        is_there = True
    if not is_there:
        raise InputError(f"there is no settings file {path}; cos config init writes one")
    text = read_text(path, MAX_BYTES)
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise InputError(f"the settings {path} cannot be read: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"the settings {path} cannot be read: {one_line(error)}") from None
    table, below = _table(ctx, path, data)
    function: Any = ctx.command.callback
    mine = {each.key: each for each in inspect.unwrap(function).command.options if each.key != "config"}
    earlier = {old.replace("-", "_"): each for each in mine.values() for old in each.declared.formerly}
    values = {}
    for key, value in table.items():
        if key in below and isinstance(value, dict):
            continue
        name = key.replace("-", "_")
        parameter = mine.get(name) or earlier.get(name)
        if parameter is not None and parameter.name in values:
            raise InputError(f"{path}: {key} of {_spoken(ctx)} stands there twice; it is {parameter.key!r} now")
        if parameter is None:
            ours = foreign.answer(mine.values(), name)
            advice = f"; {ours[0].lower()}{ours[1:].rstrip('.')}" if ours else plug.nearest(key, list(mine))
            raise InputError(f"{path}: {_spoken(ctx)} has no option {key!r}{advice}")
        wanted = _unfit(parameter, value)
        if wanted is not None:
            raise InputError(f"{path}: {key} of {_spoken(ctx)} is {wanted}, not {one_line(repr(value), 80)}")
        try:
            values[parameter.name] = _as_typed(parameter, value)
        except (InputError, ValueError) as error:
            raise InputError(f"{path}: {key} of {_spoken(ctx)}: {error}") from None
    return values


def _table(ctx: typer.Context, path: Path, data: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The command's table, and the names of the commands below it, whose tables are inside it."""
    session = ctx.find_object(Session) or Session()
    commands = [each.words for member in session.tree for each in getattr(member, "commands", (member,))]
    names, first = _words(ctx), sorted({words[0] for words in commands})
    for key, value in data.items():
        if key not in first or not isinstance(value, dict):
            raise InputError(f"{path}: {key!r} is no table of a command's options{plug.nearest(key, first)}")
    table = data
    for name in names:
        if not isinstance(table.get(name), dict):
            raise InputError(f"{path} has no table [{'.'.join(names)}] with options of {_spoken(ctx)}")
        table = table[name]
    depth = len(names)
    return table, {words[depth] for words in commands if len(words) > depth and list(words[:depth]) == names}


def _words(ctx: typer.Context) -> list[str]:
    """The names of the command's table: those it is called by, without the usual one of a group."""
    function: Any = ctx.command.callback
    return list(inspect.unwrap(function).command.table)


def _spoken(ctx: typer.Context) -> str:
    return "cos " + " ".join(_words(ctx))


def _unfit(option: Option, value: Any) -> str | None:
    """The values that the option accepts, in words, when `value` is not one; else None. Files may be one path or a list."""
    single = option.many and option.kind is Path and not isinstance(value, list)
    if (option.many and not single) or option.values > 1:
        items = value if isinstance(value, list) else [None]
        count = f"{option.values} " if option.values > 1 else ""
        short = option.values > 1 and len(items) != option.values
        wrong = next((words for item in items if (words := _unfit_one(option, item)) is not None), None)
        return f"a list of {count}values, each {_wording(option)}" if wrong or short else None
    return _unfit_one(option, value)


def _unfit_one(option: Option, value: Any) -> str | None:
    kinds: Mapping[Any, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), object: (str, int, float)}
    fits = isinstance(value, kinds.get(option.kind, (str,))) and (option.kind is bool or not isinstance(value, bool))
    if fits and option.choices:
        fits = value in option.choices
    if fits and option.kind in (int, float):
        low, high = (-math.inf if option.low is None else option.low), option.high
        fits = low <= value <= (math.inf if high is None else high)  # NaN lies between no bounds
    return None if fits else _wording(option)


def _wording(option: Option) -> str:
    if option.choices:
        return "one of " + ", ".join(map(repr, option.choices))
    word = _WORDS.get(option.kind, "a text in quotes")
    ends = [f"{side} {end:,}" for side, end in (("at least", option.low), ("at most", option.high)) if end is not None]
    return " ".join([word, " and ".join(ends)]).strip()


def _as_typed(option: Option, value: Any) -> Any:
    """The value in the form that the command line has: `~` expanded, and text for an option with a parser.

    Raises what the parser raises.
    """
    if option.kind is Path:
        several = isinstance(value, list)
        paths = [str(Path(each).expanduser()) for each in (value if several else [value])]
        return paths if several or option.many else paths[0]
    if option.declared.parser is not None and not isinstance(value, list):
        option.declared.parser(str(value))
        return str(value)
    return value
