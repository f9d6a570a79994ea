"""`--config FILE.toml`: options of a command from a file, in a table named after the command.

    [train]
    learning_rate = 2e-5

Keys are the options' names, with _ for -. What stands on the command line wins; values are checked as if they stood there.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from cos_core import plug
from cos_core.errors import InputError

_NOT_IN_FILES = ("config", "help")


def _use(ctx: typer.Context, path: Path | None) -> Path | None:
    """Makes the file's values the defaults of this call."""
    if path is not None and not ctx.resilient_parsing:
        ctx.default_map = {**(ctx.default_map or {}), **_read(ctx, path)}
    return path


def _read(ctx: typer.Context, path: Path) -> dict[str, Any]:
    """Parameter -> value. Raises InputError for a file that cannot be read, and for a table or key that means nothing."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"the settings {path} cannot be read: {error}") from None
    command = str(ctx.info_name)
    commands = sorted(getattr(ctx.find_root().command, "commands", {}))
    for name, table in data.items():
        if not isinstance(table, dict) or name not in commands:
            raise InputError(f"{path}: {name!r} is no table of a command's options{plug.nearest(name, commands)}")
    if command not in data:
        raise InputError(f"{path} has no table [{command}] with options of cos {command}")
    return {_parameter(ctx, path, command, key): value for key, value in data[command].items()}


def _parameter(ctx: typer.Context, path: Path, command: str, key: str) -> str:
    named = {
        option.removeprefix("--").replace("-", "_"): str(parameter.name)
        for parameter in ctx.command.params
        for option in parameter.opts
        if option.startswith("--")
    }
    known = [name for name in named if name not in _NOT_IN_FILES]
    name = key.replace("-", "_")
    if name not in known:
        raise InputError(f"{path}: cos {command} has no option {key!r}{plug.nearest(name, known)}")
    return named[name]


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Options from a TOML file, table [train]; the command line wins. See templates/config/.",
        callback=_use,
        is_eager=True,
        show_default=False,
    ),
]
