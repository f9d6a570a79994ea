"""Plug-ins without a registry: one module each, its file name is its name.

`available(kind)` lists names without importing anything (nor much of Python's library), so shell completion stays fast;
`load(kind, name)` imports the module; outsiders pass a path, `./mine.py` or `./mine.py:build`.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

from cos_core.errors import InputError, MissingError

KINDS = ("backbones", "benchmarks", "detectors", "engines", "policies", "runners")
SPELLINGS = {"centre": "center", "centre_crop": "center_crop"}
"""Other spellings of values of `--roi` -> the value."""
ROI_ALIASES = {"model": "from_single_question", "center": "center_crop"}
"""Short names of the option `--roi`; "relevance" (infer/heat.py) and the names of policies are the others."""
_MOVED = {"answers": "scoring.answers", "metrics": "scoring.metrics"}
"""Modules of cos_core that plug-in files written for 0.1.0 import, and where they stand now."""
_ROOT = Path(__file__).resolve().parent.parent


def available(kind: str) -> list[str]:
    """Names of the plug-ins of `kind`, sorted. Imports nothing."""
    _check_kind(kind)
    return sorted(p.stem for p in (_ROOT / kind).glob("*.py") if not p.stem.startswith("_"))


def load(kind: str, name: str, **options: Any) -> Any:
    """Builds the plug-in `name` of `kind`: calls its module's `build(**options)`.

    Raises InputError for an unknown name or option (with the nearest one), a file that is not there, a module without `build`,
    or an object that is no plug-in of the kind: one that lacks a method, or has a misspelt one.
    """
    _check_kind(kind)
    path, _, function = name.partition(":")
    if path.endswith(".py"):
        module = _from_file(Path(path))
    elif path.replace("-", "_") in available(kind):
        module = importlib.import_module(f"cos_core.{kind}.{path.replace('-', '_')}")
    else:
        raise InputError(f"no {kind} plug-in is called {name!r}{nearest(name, available(kind))}")
    build = getattr(module, function or "build", None)
    if not callable(build):
        raise InputError(f"the {kind} plug-in {name!r} has no function {function or 'build'!r}")
    _check_options(kind, name, build, options)
    return _checked(kind, name, build(**options))


def short(name: str) -> str:
    """A plug-in's name in paths: a file's stem."""
    return Path(name.partition(":")[0]).stem


def source(name: str | None) -> str | None:
    """The SHA-256 of the file that `name` names (`./mine.py`, `./mine.py:build`); None for a shipped plug-in, or none.

    What that file imports is not part of it. Raises InputError when it cannot be read.
    """
    path = Path((name or "").partition(":")[0])
    if path.suffix != ".py":
        return None
    import hashlib

    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"the plug-in file {path} cannot be read: {error.strerror}") from None


def sources(*names: str | None) -> dict[str, str]:
    """`source` of those of the plug-ins that are files, by the file's stem: what counts of them in a fingerprint."""
    return {Path((name or "").partition(":")[0]).stem: digest for name in names if (digest := source(name)) is not None}


def described(plugin: Any) -> dict[str, Any]:
    """A plug-in object's module and settings, for fingerprints and provenance: its `settings`, or its dataclass fields."""
    settings = getattr(plugin, "settings", None)
    if settings is None:
        from dataclasses import fields, is_dataclass

        settings = {f.name: getattr(plugin, f.name) for f in fields(plugin)} if is_dataclass(plugin) else {}
    return {"plugin": type(plugin).__module__.rpartition(".")[2], **settings}


def _checked(kind: str, name: str, plugin: Any) -> Any:
    """The plug-in, as an instance of its kind's base class.

    The class of one that does not inherit (files written for 0.1.0) is extended by the base class's defaults.
    """
    from cos_core import interfaces

    bases: dict[str, tuple[type[interfaces.Plugin], ...]] = {
        "backbones": (interfaces.Backbone,),
        "benchmarks": (interfaces.JudgedBenchmark, interfaces.Benchmark),
        "detectors": (interfaces.Detector,),
        "engines": (interfaces.Engine,),
    }
    if isinstance(plugin, bases.get(kind, object)):
        return plugin
    cls, base = type(plugin), bases[kind][-1]
    for each in reversed(bases[kind]):
        if all(hasattr(plugin, method) for method in each.__abstractmethods__):
            base = each
    if missing := sorted(method for method in base.__abstractmethods__ if not hasattr(plugin, method)):
        raise InputError(f"the {kind} plug-in {name!r} gives a {cls.__name__}, which has no {missing[0]!r}; {_advice(base)}")
    body = {"__slots__": (), "__module__": cls.__module__, "__doc__": cls.__doc__}
    try:
        object.__setattr__(
            plugin, "__class__", types.new_class(cls.__name__, (cls, base), exec_body=lambda names: names.update(body))
        )
    except TypeError:
        raise InputError(f"the {kind} plug-in {name!r} gives a {cls.__name__}; {_advice(base)}") from None
    return plugin


def _advice(base: type) -> str:
    return f"let its class inherit from cos_core.interfaces.{base.__name__}"


def _check_options(kind: str, name: str, build: Any, options: dict[str, Any]) -> None:
    import inspect

    parameters = inspect.signature(build).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            raise InputError(f"the {kind} plug-in {name!r} has no option {option!r}{nearest(option, list(parameters))}")


def _from_file(path: Path) -> types.ModuleType:
    import importlib.util

    if not path.is_file():
        raise InputError(f"no plug-in file {path}")
    spec = importlib.util.spec_from_file_location(f"cos_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be imported as a plug-in")
    module = importlib.util.module_from_spec(spec)
    try:
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            if (error.name or "").partition(".")[0] != "cos_core" or "cos_core.metrics" in sys.modules:
                raise
            for old, new in _MOVED.items():
                sys.modules[f"cos_core.{old}"] = importlib.import_module(f"cos_core.{new}")
            spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise MissingError(f"the plug-in {path} needs the package {error.name!r}, which is not installed") from error
    except InputError as error:
        raise InputError(f"the plug-in {path}: {error}") from None
    except (Exception, SystemExit) as error:
        # An exception of a plug-in is no defect of cos; --traceback shows where it was raised.
        raise InputError(f"the plug-in {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"unknown kind of plug-in {kind!r}; one of {', '.join(KINDS)}")


def nearest(name: str, names: list[str]) -> str:
    """The end of a sentence about an unknown name: the one that was probably meant, else all there are."""
    import difflib

    close = difflib.get_close_matches(name, names, 1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(names)}" if names else "; it has none"


def families() -> list[str]:
    """The families of models that have a file, sorted. Imports nothing."""
    folder = Path(__file__).parents[1] / "models" / "families"
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
