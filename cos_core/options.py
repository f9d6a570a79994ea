"""Options of a stage, declared once: a Config is a frozen dataclass whose fields carry what a command line needs to know.

A field says its default, its help, its bounds and what completes it (`option`); its type says the rest. `options_of` reads the
fields of a Config, nested groups included; the command, `--config` files, `cos config`, the reference page and the table of
completion are made of those records. `check` holds a Config against the bounds and choices that its fields declare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cos_core.errors import InputError
from cos_core.files import data_files, deciding, plug

Files = Path | tuple[Path, ...]
"""One file, or several that are one data set, in order."""

REQUIRED: Any = MISSING
"""The default of an option that must be given."""

INPUT, SELECTION, OUTPUT, MODEL, REGION, ANSWER = "Input", "Selection", "Output", "Model", "Region", "Answer"
TRAINING, SCORING, CHECKS, SPEED, SERVER, RUN = "Training", "Scoring", "Checks", "Speed", "Server and judge", "Run"
PANELS = (INPUT, SELECTION, OUTPUT, MODEL, REGION, ANSWER, TRAINING, SCORING, CHECKS, SPEED, SERVER, RUN)
"""The panels of --help, in their order."""

SEED = 2**32 - 1
"""The largest seed that every source of chance takes."""
REPLICATES = 100_000
"""Most bootstrap samples; the ends of an interval hardly move beyond a few thousand."""
COUNT = 10**9
"""The largest number of questions, steps or failures."""
BATCH = 10**6
"""The largest number of things that go together through a model, or stand beside each other in memory."""
TOKENS = 100_000
"""The longest text a model is asked for, in tokens."""
FINER, REGION_SIDE, RANK = 64, 64, 4096
"""Times that a relevance map is made finer; visual tokens of a region along a side; the largest rank of an adapter."""
SHOWN_PX, SHOWN_SIDE, TILES = 10**9, 10**5, 1000
"""The most pixels and the longest side that a picture is shown to a model with; the most tiles that it is cut into."""
LONGEST_PX = 8192
"""The longer side of a drawn picture, in pixels."""
GIB = 100_000
"""The largest memory budget, in GiB."""
PROCESSES = 1024
"""Most processes, workers or requests at once."""

_KEY = "option"
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Declared:
    """What `option` was given, beside the default; see there."""

    help: str
    panel: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    completes: str | None = None
    flag: str | None = None
    formerly: tuple[str, ...] = ()
    metavar: str | None = None
    shown_default: str | None = None
    parser: Callable[[str], Any] | None = None
    argument: bool = False
    many: bool = False
    environment: str | None = None


def option(
    default: Any,
    help: str,
    panel: str,
    *,
    not_in_fingerprint: str | None = None,
    before: Any = deciding.ALWAYS,
    **more: Any,
) -> Any:
    """A field of a Config that is an option: `epochs: int = option(1, "Passes over the data.", TRAINING, low=1)`.

    `default`: a value, REQUIRED, or the class `dict` for an empty mapping. `help`: one or two sentences. `panel`: where --help
    lists it. By keyword:

    low, high       bounds, both included, of a number
    choices         the values of a text, where the type (a Literal) does not list them
    aliases         other spellings of values, and what each means
    completes       the kind of its values for TAB (see cos_cli/completion/values.py)
    flag            its spellings, where they are not --field-name: "--json", "--quiet,-q", "--reuse/--no-reuse"
    formerly        spellings of earlier versions (without --), still accepted
    metavar         what stands for the value in --help
    shown_default   what holds without it, in words, where the default is None
    parser          text -> value, where the type alone does not say how; raises InputError
    argument        an argument of the command line, not an option
    environment     the environment variable that sets it

    A field decides the result, and is part of its fingerprint, unless one of these says otherwise (files/deciding.py):

    not_in_fingerprint   why it does not decide, in words: "where the answers go"
    before               of a field that was added later: the value that stands for how it was before, with which it is left out
    """
    metadata = {_KEY: Declared(help, panel, **more), **deciding.declared(not_in_fingerprint, before)}
    return field(default_factory=dict, metadata=metadata) if default is dict else field(default=default, metadata=metadata)


def group(of: Callable[[], Any], *, not_in_fingerprint: str | None = None) -> Any:
    """A field that holds a group of options, a Config of its own; `not_in_fingerprint` as of `option`."""
    return field(default_factory=of, metadata=deciding.declared(not_in_fingerprint, deciding.ALWAYS))


@dataclass(frozen=True, slots=True)
class Option:
    """An option or an argument of a command, read from a field of a Config.

    `name`: the field; `kind`: bool, int, float, str, Path, Mapping (NAME=VALUE texts), or object where `parser` decides.
    `choices` for a fixed set of texts, aliases included. `names` are the spellings that take a value or set a flag, `off` those
    that unset it; an argument has neither. `values`: words that one mention takes (0 for a flag). `files`: one path or several.
    `default` is None where the command decides by itself.
    """

    name: str
    kind: Any
    names: tuple[str, ...]
    off: tuple[str, ...]
    choices: tuple[str, ...]
    values: int
    many: bool
    files: bool
    required: bool
    default: Any
    declared: Declared

    @property
    def key(self) -> str:
        """Its name in a settings file: the longest spelling, with _ for -; an argument's own name."""
        long = max(self.names, key=len, default=self.name)
        return long.removeprefix("--").replace("-", "_")

    @property
    def help(self) -> str:
        return self.declared.help

    @property
    def low(self) -> float | None:
        return self.declared.low

    @property
    def high(self) -> float | None:
        return self.declared.high

    @property
    def shown_default(self) -> str | None:
        return self.declared.shown_default

    def meant(self, value: Any) -> Any:
        """The value that an alias stands for; any other value as it is."""
        return self.declared.aliases.get(value, value) if isinstance(value, str) else value


@lru_cache(maxsize=128)
def options_of(config: type) -> tuple[Option, ...]:
    """The options of a Config in the order of its fields, its own before inherited ones; those of a nested group stand in the
    place of its field. Arguments keep the order of the fields, which is their order on the command line.
    """
    hints, own = get_type_hints(config), vars(config).get("__annotations__", {})
    records: list[Option] = []

    def after_own(each: Field[Any]) -> bool:
        return each.name not in own and not (_KEY in each.metadata and each.metadata[_KEY].argument)

    for each in sorted(fields(config), key=after_own):
        declared = each.metadata.get(_KEY)
        if declared is not None:
            records.append(_option(each, hints[each.name], declared))
        elif (group := nested(hints[each.name])) is not None:
            records.extend(options_of(group))
    return tuple(records)


def nested(annotation: Any) -> type | None:
    """The group of options that a field holds; None for a field that is none."""
    is_group = isinstance(annotation, type) and is_dataclass(annotation)
    return annotation if is_group and any(True for _ in _declared(annotation)) else None


def construct(config: type[C], values: Mapping[str, Any], **more: Any) -> C:
    """A Config of the values of its options, by field; groups are made first. `more`: fields that are no options.

    A value that is absent leaves the default. Raises InputError as the Config does.
    """
    hints = get_type_hints(config)
    settings = dict(more)
    for each in fields(config):  # type: ignore[arg-type]
        if each.name in settings:
            continue
        if _KEY in each.metadata:
            if each.name in values:
                settings[each.name] = values[each.name]
        elif (group := nested(hints[each.name])) is not None:
            settings[each.name] = construct(group, values)
    return config(**settings)


def widened(config: type[C], group: Any, **more: Any) -> C:
    """A Config of the fields of a group that it inherits from, and of `more`."""
    return config(**{**{each.name: getattr(group, each.name) for each in fields(group)}, **more})


def check(config: Any) -> None:
    """Raises InputError for a value outside of the bounds or choices that its field declares, NaN and infinities included."""
    for each in options_of(config.__class__):
        value = getattr(config, each.name, None)
        if value is None:
            continue
        if each.choices:
            choices = [choice for choice in each.choices if choice not in each.declared.aliases]
            if value not in choices:
                raise InputError(f"{each.name} is {' or '.join(choices)}, got {value!r}")
        elif each.kind in (int, float) and (each.low is not None or each.high is not None) and each.values == 1:
            check_number(each.name, value, -math.inf if each.low is None else each.low, each.high or math.inf)


def check_number(name: str, value: float | None, low: float, high: float) -> None:
    """Raises InputError when `value` is given and is not in [low, high]."""
    if value is not None and not low <= value <= high:
        text = str(value)
        raise InputError(f"{name} must lie between {low:,} and {high:,}, got {text if len(text) <= 40 else text[:39] + '…'}")


def _declared(config: type) -> Iterator[tuple[Field[Any], Declared]]:
    for each in fields(config):
        if _KEY in each.metadata:
            yield each, each.metadata[_KEY]


def _option(each: Field[Any], annotation: Any, declared: Declared) -> Option:
    kind, choices, count, many, files = _shape(annotation)
    choices = tuple(dict.fromkeys((*(declared.choices or choices), *declared.aliases))) if choices or declared.choices else ()
    if declared.parser is not None and kind not in (str, Path):
        kind = object
    names, off = ((), ()) if declared.argument else _spellings(each, kind, declared)
    factory = each.default_factory is not MISSING
    required = each.default is MISSING and not factory
    return Option(
        name=each.name,
        kind=kind,
        names=names,
        off=off,
        choices=choices,
        values=0 if kind is bool and not declared.argument else count,
        many=many or declared.many,
        files=files,
        required=required,
        default=None if required or factory else each.default,
        declared=declared,
    )


def _shape(annotation: Any) -> tuple[Any, tuple[str, ...], int, bool, bool]:
    """(kind, choices, words that one mention takes, whether it may be repeated, whether it is one path or several)."""
    if get_origin(annotation) in (Union, UnionType):
        members = [each for each in get_args(annotation) if each is not NoneType]
        if set(members) == set(get_args(Files)):
            return Path, (), 1, True, True
        annotation = members[0] if len(members) == 1 else object
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return str, tuple(str(choice) for choice in inner), 1, False, False
    if origin is tuple:
        many = inner[-1] is Ellipsis
        return inner[0], (), 1 if many else len(inner), many, False
    if origin is not None and issubclass(origin, Mapping):
        return Mapping, (), 1, True, False
    return annotation, (), 1, False, False


def _spellings(each: Field[Any], kind: Any, declared: Declared) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """--field-name, and for a switch that is not off by default --no-field-name; or what `flag` says."""
    if declared.flag is None:
        long = each.name.replace("_", "-")
        return (f"--{long}",), ((f"--no-{long}",) if kind is bool and each.default is not False else ())
    on, _, off = declared.flag.partition("/")
    return tuple(on.split(",")), ((off,) if off else ())


# --- values of options -----------------------------------------------------------------------------------------------


def plugin_name(text: str) -> str:
    """A plug-in as its file is called: `center-crop` and `center_crop` are one name and give one fingerprint."""
    return text if text.partition(":")[0].endswith(".py") else text.replace("-", "_")


def roi_name(text: str) -> str:
    """A way to choose the region as the paper spells it: `centre` is read as `center`."""
    name = plugin_name(text)
    return plug.SPELLINGS.get(name, name)


def policy_name(text: str) -> str:
    """The policy that a value of --roi means, as manifests and fingerprints know it: `center` is `center_crop`."""
    name = roi_name(text)
    return plug.ROI_ALIASES.get(name, name)


def family_name(text: str) -> str:
    """A family as its file is called: `qwen2.5-vl` is `qwen2_5_vl`. Raises InputError for one without a file."""
    name = text.lower().replace("-", "_").replace(".", "_")
    if name not in plug.families():
        raise InputError(f"there is no family {text!r}{plug.nearest(name, plug.families())}")
    return name


def files_of(paths: Sequence[Path]) -> Files:
    """One path, or several in order, globs and folders of `datasets` replaced by their files (data_files.expanded).

    Raises InputError for a file that is there twice.
    """
    import os

    paths = data_files.expanded(paths)
    resolved = [os.path.realpath(path) for path in paths]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            raise InputError(f"--data names {paths[place]} twice")
    return paths[0] if len(paths) == 1 else tuple(paths)


def mapping_of(texts: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` texts as a mapping; values are read as JSON where they are JSON, else as text. Raises InputError."""
    import json

    settings: dict[str, Any] = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not mark or not name:
            raise InputError(f"{text!r} is not NAME=VALUE")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


# --- options that several Configs have -------------------------------------------------------------------------------

QUESTIONS = "JSON, JSONL, CSV, TSV, Parquet, Arrow, .gz, a glob, or a folder of `datasets` (`cos data check`); may be repeated."
NUMBER_FORMATS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def data_option(default: Any = REQUIRED, **more: Any) -> Any:
    return option(default, f"Questions: {QUESTIONS}", INPUT, **more)


def columns_option(**more: Any) -> Any:
    return option(
        None,
        "Names of the columns or keys in --data that are read as question, answer, image, id, ...",
        INPUT,
        parser=data_files.columns_text,
        metavar="question=NAME,answer=NAME",
        shown_default="their own names",
        **more,
    )


def images_option(default: Any = REQUIRED) -> Any:
    return option(
        default,
        "Folder that the image paths in --data start from.",
        INPUT,
        not_in_fingerprint="where the pictures are; the data names them",
    )


def follow_links_option(**more: Any) -> Any:
    return option(False, "Follow links out of the picture folder: you made them, not the data's author.", INPUT, **more)


def model_option(default: Any = REQUIRED, what: str = "LLaVA-1.5 checkpoint") -> Any:
    """`what`: the kind of checkpoint that the stage runs, as the first words of the help."""
    return option(
        default,
        f"{what}: a local folder, a hub id (llava-hf/llava-1.5-7b-hf, @REVISION after it), or 'miniature'.",
        MODEL,
        completes="model",
    )


def policy_option(default: str = "from_single_question") -> Any:
    """The questions that choose a region, in the field that manifests know as `policy`."""
    return option(
        default,
        "Which questions choose the region (Table 3a of the paper): 'from_single_question' is the method, 'center', ...",
        REGION,
        flag="--roi",
        formerly=("policy",),
        parser=policy_name,
        metavar="NAME",
        completes="policies",
    )


def profile_option(usual: str = "'paper'") -> Any:
    """`usual`: the profile of a checkpoint without one, as the help names it."""
    return option(None, f"Wording of the dialogue; by default the checkpoint's own, else {usual}.", MODEL, completes="profile")


ANY_FAMILY = "'paper' (LLaVA-1.5) or 'chat'"
"""The usual profiles where any family is asked."""


def family_option() -> Any:
    return option(
        None,
        "The family of a served model whose checkpoint is not here.",
        MODEL,
        parser=family_name,
        metavar="NAME",
        completes="family",
        shown_default="by the model's name",
        before=None,
    )


def detector_option() -> Any:
    return option(
        None,
        "What proposes candidate regions.",
        REGION,
        parser=plugin_name,
        metavar="NAME",
        completes="detectors",
        shown_default="grid with regions, none with patches, detectron2 with lxmert",
    )


def settings_option(of: str) -> Any:
    """NAME=VALUE settings of a plug-in, in the field `<of>_options`."""
    return option(dict, f"A setting of the {of}; may be repeated.", REGION, flag=f"--{of}-option", metavar="NAME=VALUE")


def limit_option() -> Any:
    return option(
        None,
        "Stop after this many questions.",
        INPUT,
        low=1,
        high=COUNT,
        shown_default="all",
        not_in_fingerprint="how many of the questions there are results for",
    )


def max_failures_option(**more: Any) -> Any:
    help = "Exit with code 5 when more questions than this fail."
    return option(None, help, CHECKS, low=0, high=COUNT, shown_default="no limit", **more)


def seed_option(default: int = 0, help: str = "Seed of every random choice.") -> Any:
    return option(default, help, RUN, low=0, high=SEED)


def device_option(help: str = "'auto', 'cpu', 'cuda', 'cuda:1', ...") -> Any:
    return option("auto", help, SPEED, not_in_fingerprint="where the model runs")


def dtype_option(formats: tuple[str, ...], help: str) -> Any:
    aliases = {short: long for short, long in NUMBER_FORMATS.items() if long in formats}
    return option("auto", help, SPEED, choices=("auto", *formats), aliases=aliases)
