"""A group of commands of which one may go unnamed: `cos eval pope ...` is `cos eval run pope ...`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

DEFAULT = "run"


class WithDefault(TyperGroup):
    """Whatever does not begin with the name of a command is for DEFAULT, options and help included."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)
