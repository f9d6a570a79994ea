"""A command made of Configs: its options are the fields of the dataclasses that its function takes (cos_core/options.py).

    @command("train", "cos_core.training:TrainConfig", LaunchOptions)
    def train(session: Session, config: TrainConfig, launch: LaunchOptions) -> None:
        \"\"\"Fine-tune a checkpoint ...\"\"\"

A Config that is named by a text is imported when the command is called or described, not for `cos --help`. Options of the same
name in two Configs are one option.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from cos_cli import settings
from cos_cli.console import Session
from cos_cli.once import find_repeated, renamed
from cos_core import options
from cos_core.errors import InputError
from cos_core.options import OUTPUT, PANELS, RUN, Option, option

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 10_000}
"""Help is as wide as the terminal."""


@dataclass(frozen=True, slots=True)
class CommonOptions:
    """Options of every command; some leave some out."""

    config_file: Path | None = option(
        None,
        "Options from a TOML file, in a table named after the command; the command line wins. See `cos config init`.",
        RUN,
        flag="--config",
    )
    json: bool = option(False, "Print one JSON object on stdout.", OUTPUT)
    quiet: bool = option(False, "No progress, warnings only.", RUN, flag="--quiet,-q")
    traceback: bool = option(False, "Show where an error arose.", RUN, environment="COS_TRACEBACK")


@dataclass(frozen=True)
class Command:
    """A command: the words that name it (`("eval", "compare")`), its function, and the Configs that the function takes.

    `usual`: its last word may be left out. `leaves_out`: fields of CommonOptions that it lacks. `interspersed`: options may
    follow arguments.
    """

    words: tuple[str, ...]
    function: Callable[..., None]
    sources: tuple[type | str, ...]
    usual: bool = False
    leaves_out: frozenset[str] = field(default_factory=frozenset)
    interspersed: bool = True

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.function) or ""

    @property
    def help(self) -> str:
        """The first sentence of its help."""
        return first_sentence(self.doc)

    @property
    def table(self) -> tuple[str, ...]:
        """Where its options stand in a settings file: `[train]`, `[visualize.report]`, and `[eval]` for `cos eval run`."""
        return self.words[:-1] if self.usual else self.words

    @cached_property
    def configs(self) -> tuple[type, ...]:
        return tuple(_imported(each) if isinstance(each, str) else each for each in self.sources)

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """Its options and arguments, those of all commands last."""
        common = [each for each in options.options_of(CommonOptions) if each.name not in self.leaves_out]
        declared = [each for config in self.configs for each in options.options_of(config)]
        return tuple({each.name: each for each in reversed([*declared, *common])}.values())[::-1]

    def typer(self) -> Any:
        """The command as Typer has it, with all of its options."""
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        context = {**CONTEXT, "allow_interspersed_args": self.interspersed}
        app.command(self.words[-1], cls=_OptionsCommand, help=self.doc, context_settings=context)(self._callback())
        return typer.main.get_command(app)

    def _callback(self) -> Callable[..., Any]:
        """The function that Typer calls, with a signature of the options."""

        def run(ctx: typer.Context, **values: Any) -> None:
            session = ctx.ensure_object(Session)
            session.quiet |= values.get("quiet", False)
            session.traceback |= values.get("traceback", False)
            session.json |= values.get("json", False)
            self.function(session, *self.built(values))

        parameters = [_parameter(each) for each in self.options]
        first = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        run.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
        run.__annotations__ = {"ctx": typer.Context, **{each.name: each.annotation for each in parameters}}
        run.command = self  # type: ignore[attr-defined]
        return run

    def built(self, values: Mapping[str, Any]) -> list[Any]:
        """The Configs, of the values of the options. Raises typer.BadParameter, and what a Config raises."""
        meant = {each.name: _meant(each, values[each.name]) for each in self.options if each.name in values}
        return [options.construct(config, meant) for config in self.configs]


def command(
    words: str,
    *sources: type | str,
    usual: bool = False,
    leaves_out: Sequence[str] = (),
    interspersed: bool = True,
) -> Callable[[Callable[..., None]], Command]:
    """Decorator: makes a Command of a function that takes the Session and one Config of each of `sources`."""

    def decorate(function: Callable[..., None]) -> Command:
        return Command(tuple(words.split()), function, sources, usual, frozenset(leaves_out), interspersed)

    return decorate


@dataclass(frozen=True)
class Group:
    """Commands below one word."""

    name: str
    doc: str
    commands: tuple[Command, ...]

    @property
    def help(self) -> str:
        return first_sentence(self.doc)

    def typer(self) -> typer.Typer:
        app = typer.Typer(cls=OrderedGroup, no_args_is_help=True, rich_markup_mode=None, help=inspect.cleandoc(self.doc))
        register(app, self.commands)
        return app


def register(app: typer.Typer, members: Sequence[Command | Group]) -> None:
    """Makes `members` commands of `app`; what a command needs is imported when it is called."""
    for member in members:
        if isinstance(member, Group):
            app.add_typer(member.typer(), name=member.name)
        else:
            app.command(member.words[-1], cls=_LazyCommand, help=member.doc)(_stub(member))
    order = [member.name if isinstance(member, Group) else member.words[-1] for member in members]
    usual = next((member.words[-1] for member in members if isinstance(member, Command) and member.usual), None)
    app.info.cls = type("OrderedGroup", (OrderedGroup,), {"order": tuple(order), "usual": usual})


def all_commands(members: Sequence[Command | Group]) -> Iterator[Command]:
    """Every command, those of groups included, in the order of --help."""
    for member in members:
        yield from member.commands if isinstance(member, Group) else (member,)


def first_sentence(text: str | None) -> str:
    """The beginning of a docstring, on one line."""
    paragraph = " ".join((text or "").strip().partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".:")


class OrderedGroup(TyperGroup):
    """Commands in the order in which they were registered; where one is usual, its name may be left out."""

    order: tuple[str, ...] = ()
    usual: str | None = None

    def list_commands(self, _ctx: Any) -> list[str]:
        return sorted(self.commands, key=lambda name: self.order.index(name) if name in self.order else len(self.order))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if self.usual is not None and (not args or args[0] not in self.commands):
            args = [self.usual, *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, first_sentence(self.commands[name].help)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class _LazyCommand(TyperCommand):
    """A command that knows its name and help; its options are made when it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        function: Any = self.callback
        return inspect.unwrap(function).command.typer().make_context(info_name, args, parent, **extra)


class _OptionsCommand(TyperCommand):
    """Accepts spellings of earlier versions, refuses an option given twice, and lists options in panels."""

    @property
    def record(self) -> Command:
        function: Any = self.callback
        command: Command = inspect.unwrap(function).command
        return command

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = self.record.options
        args = renamed(known, args)
        repeated = find_repeated(known, args, ctx.allow_interspersed_args)
        if repeated is not None:
            raise typer.BadParameter(repeated)
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *PANELS)}
        for each in self.record.options:
            panels["Arguments" if each.declared.argument else each.declared.panel].append(_help_row(each))
        panels[RUN].append(("-h, --help", "Show this message and exit."))
        for name, rows in panels.items():
            if rows:
                with formatter.section(name):
                    formatter.write_dl(rows)


_VALUES: Mapping[Any, str] = {int: "N", float: "NUMBER", Path: "PATH", Mapping: "NAME=VALUE"}
_SHOWN_BOUND = 100_000
"""Upper bounds from here on only catch mistakes, and --help does not show them."""


def _help_row(each: Option) -> tuple[str, str]:
    """An option's row in --help: its spellings and value, and its help with default and bounds."""
    declared = each.declared
    choices = [choice for choice in each.choices if choice not in declared.aliases]
    value = declared.metavar or "|".join(choices) or _VALUES.get(each.kind, "TEXT")
    if declared.argument:
        left = value if declared.metavar else each.name.upper()
    else:
        left = " / ".join([", ".join(sorted(each.names, key=len)), *each.off]) + f" {value}" * each.values
    notes = ["required"] if each.required else []
    default = declared.shown_default or each.default
    if each.off and isinstance(default, bool):
        default = each.names[0] if default else each.off[0]
    if default not in (None, False, "", ()):
        notes.append(f"default: {default}")
    if each.low is not None and each.high is not None and each.high < _SHOWN_BOUND:
        notes.append(f"{each.low:g} to {each.high:g}")
    if declared.environment is not None:
        notes.append(f"environment: {declared.environment}")
    return left, declared.help + (f"  [{'; '.join(notes)}]" if notes else "")


def _stub(member: Command) -> Callable[[], None]:
    def stub() -> None:
        """Stands for a command until it is called."""

    stub.command = member  # type: ignore[attr-defined]
    return stub


def _imported(source: str) -> type:
    import importlib

    module, _, name = source.partition(":")
    config: type = getattr(importlib.import_module(module), name)
    return config


def _parameter(each: Option) -> inspect.Parameter:
    """An option as a parameter that Typer reads."""
    declared = each.declared
    more: dict[str, Any] = {
        "help": declared.help,
        "metavar": declared.metavar,
        "callback": _callback_of(each),
    }
    if each.kind in (int, float):
        more |= {"min": each.low, "max": each.high}
    if declared.shown_default is not None:
        more["show_default"] = declared.shown_default
    elif each.default is None or each.many:
        more["show_default"] = False
    if declared.parser is not None:
        more["parser"] = _parser(declared.parser)
    if declared.environment is not None:
        more["envvar"] = declared.environment
    if declared.argument:
        info: Any = typer.Argument(**more)
    else:
        if each.name == "config_file":
            more |= {"callback": settings.use, "is_eager": True}
        first, *others = each.names
        info = typer.Option("/".join([first, *each.off]), *others, **more)
    missing = inspect.Parameter.empty if each.required else None if each.many else each.default
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(each.name, kind, default=missing, annotation=Annotated[_annotation(each), info])


def _annotation(each: Option) -> Any:
    """The type of an option's value on the command line."""
    if each.choices:
        single: Any = Literal[each.choices]
    elif each.kind is object or each.declared.parser is not None:
        single = Any
    else:
        single = str if each.kind is Mapping else each.kind
    if each.many:
        single = list[single]
    elif each.values > 1:
        single = GenericAlias(tuple, (single,) * each.values)
    return single if each.required or single is Any else single | None if each.default is None or each.many else single


def _parser(parser: Callable[[str], Any]) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:
        try:
            return parser(text)
        except InputError as error:
            raise typer.BadParameter(str(error)) from None

    return parsed


def _callback_of(each: Option) -> Callable[[Any], Any] | None:
    """The function applied to a parsed value: it refuses NaN and infinities, or resolves aliases."""
    if each.kind is float:
        return _finite
    return each.meant if each.declared.aliases else None


def _finite(value: Any) -> Any:
    many = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(number, float) and not math.isfinite(number) for number in many):
        raise typer.BadParameter("a finite number is needed")
    return value


def _meant(each: Option, value: Any) -> Any:
    """The value in the form of a Config's field: one path or several, a mapping, a tuple. Raises typer.BadParameter."""
    try:
        if each.files:
            return options.files_of(value) if value else None
        if each.kind is Mapping:
            return options.mapping_of(value or ())
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    return tuple(value or ()) if each.many else value
