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
from pathlib import Path
from typing import Annotated, Any

import typer

from cos_core.errors import InputError
from cos_core.files import plug
from cos_core.files.text import one_line, read_text

_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    object: "a text in quotes or a number",
    Path: "a path in quotes",
}
MAX_BYTES = 2**20
"""A longer settings file is taken for something else."""

_NOT_IN_FILES = ("config", "help")


def _use(ctx: typer.Context, path: Path | None) -> Path | None:
    """Makes the file's values the defaults of this call."""
    if path is not None and not ctx.resilient_parsing:
        ctx.default_map = {**(ctx.default_map or {}), **read(ctx, path)}
    return path


def read(ctx: typer.Context, path: Path) -> dict[str, Any]:
    """Parameter -> value for the command of `ctx`.

    Raises InputError for a file that cannot be read, a table or key that means nothing (with the nearest name), and a value
    that the option does not take.
    """
    from cos_cli.commands import parameters

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
    mine = {p.key: p for p in parameters(inspect.unwrap(function)) if p.key not in _NOT_IN_FILES}
    found = {}
    for key, value in table.items():
        if key in below and isinstance(value, dict):
            continue
        parameter = mine.get(key.replace("-", "_"))
        if parameter is None:
            raise InputError(f"{path}: {_spoken(ctx)} has no option {key!r}{plug.nearest(key, list(mine))}")
        wanted = _unfit(parameter, value)
        if wanted is not None:
            raise InputError(f"{path}: {key} of {_spoken(ctx)} is {wanted}, not {one_line(repr(value), 80)}")
        try:
            found[parameter.name] = _as_given(parameter, value)
        except (typer.BadParameter, ValueError) as error:
            raise InputError(f"{path}: {key} of {_spoken(ctx)}: {error}") from None
    return found


def _table(ctx: typer.Context, path: Path, data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The command's own table, and the names of the commands below it, which have tables of their own in there."""
    names = _words(ctx)
    group: Any = ctx.find_root().command
    for place, name in enumerate(names):
        commands = sorted(getattr(group, "commands", {}))
        for key, value in data.items():
            if place == 0 and (key not in commands or not isinstance(value, dict)):
                raise InputError(f"{path}: {key!r} is no table of a command's options{plug.nearest(key, commands)}")
        if not isinstance(data.get(name), dict):
            whole = ".".join(names)
            raise InputError(f"{path} has no table [{whole}] with options of {_spoken(ctx)}")
        data, group = data[name], group.commands[name]
    return data, sorted(getattr(group, "commands", {}))


def _words(ctx: typer.Context) -> list[str]:
    """The names of the command's table: those it is called by, without the usual one of a group."""
    from cos_cli.evaluate.group import DEFAULT, WithDefault

    names: list[str] = []
    at: Any = ctx
    while at.parent is not None:
        if not (isinstance(at.parent.command, WithDefault) and at.info_name == DEFAULT):
            names.insert(0, str(at.info_name))
        at = at.parent
    return names


def _spoken(ctx: typer.Context) -> str:
    return "cos " + " ".join(_words(ctx))


def _unfit(parameter: Any, value: Any) -> str | None:
    """What the option takes, in words, when `value` is not that. Files may be one path or a list."""
    from cos_cli.commands import path_like

    single = parameter.many and path_like(parameter) and not isinstance(value, list)
    if (parameter.many and not single) or parameter.values > 1:
        items = value if isinstance(value, list) else [None]
        count = f"{parameter.values} " if parameter.values > 1 else ""
        short = parameter.values > 1 and len(items) != parameter.values
        wrong = next((w for item in items if (w := _unfit_one(parameter, item)) is not None), None)
        return f"a list of {count}values, each {_wording(parameter)}" if wrong or short else None
    return _unfit_one(parameter, value)


def _unfit_one(parameter: Any, value: Any) -> str | None:
    kinds: tuple[type, ...] = {bool: (bool,), int: (int,), float: (int, float), object: (str, int, float)}.get(
        parameter.kind, (str,)
    )
    fits = isinstance(value, kinds) and (parameter.kind is bool or not isinstance(value, bool))
    if fits and parameter.choices:
        fits = value in parameter.choices
    if fits and parameter.kind in (int, float):
        low, high = (-math.inf if parameter.low is None else parameter.low), parameter.high
        fits = low <= value <= (math.inf if high is None else high)  # NaN lies between no bounds
    return None if fits else _wording(parameter)


def _wording(parameter: Any) -> str:
    if parameter.choices:
        return "one of " + ", ".join(map(repr, parameter.choices))
    word = _WORDS.get(parameter.kind, "a text in quotes")
    ends = [f"{side} {end:,}" for side, end in (("at least", parameter.low), ("at most", parameter.high)) if end is not None]
    return " ".join([word, " and ".join(ends)]).strip()


def _as_given(parameter: Any, value: Any) -> Any:
    """The value as the command line would have it: `~` as the shell reads it, and text for an option with its own parser.

    Raises what the parser raises.
    """
    if parameter.kind is Path:
        several = isinstance(value, list)
        paths = [str(Path(each).expanduser()) for each in (value if several else [value])]
        return paths if several or parameter.many else paths[0]
    if parameter.parser is not None and not isinstance(value, list):
        parameter.parser(str(value))
        return str(value)
    return value


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Options from a TOML file, in a table named after the command; the command line wins. See `cos config init`.",
        callback=_use,
        is_eager=True,
        show_default=False,
    ),
]
