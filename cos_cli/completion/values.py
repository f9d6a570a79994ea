"""Completions that depend on the machine: plug-ins, profiles, runs, checkpoints, stores and the ids in them.

Imports stay light: this runs at every press of TAB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from cos_core.files import plug

DEPTH = 3
"""Levels of folders below the typed one that are searched."""
_ENTRIES = 5000
_MOST_FOLDERS = 200
_READ_BYTES = 2**24
_ID = b'"example_id"'


def values(kind: str, typed: str, words: Sequence[str]) -> list[str] | None:
    """The completions of `typed`, sorted; None: any path, which the shell completes. `words`: those before it.

    `kind`: a kind of plug-ins, "roi", "profile", "family", "model", "run", "store", "example", "command".
    """
    named = kind in plug.KINDS or kind in ("profile", "family", "roi")
    if typed.startswith(("~", "./", "../", "/") if named else "~"):
        return None
    if kind in plug.KINDS or kind == "roi":
        # Several with commas: the last one is being typed, and none is wanted twice.
        head, comma, tail = typed.rpartition(",")
        present = {_plain(name) for name in head.split(",")}
        begun = tail.replace("-", "_")
        return [head + comma + name for name in _names(kind) if _plain(name) not in present and name.startswith(begun)]
    if kind == "profile":
        from cos_core.files.assets import profile_names

        return [name for name in profile_names() if name.startswith(typed)]
    if kind == "family":
        return [name for name in plug.families() if name.startswith(typed.replace("-", "_"))]
    if kind == "example":
        return _examples(typed, words)
    if kind == "model":
        here = folders(typed, is_checkpoint)
        shipped = ["miniature"] if "miniature".startswith(typed) else []
        return shipped + here or None
    return folders(typed, {"run": is_run, "store": is_store}[kind]) or None


def _names(kind: str) -> list[str]:
    """The plug-ins of a kind, sorted; policies by their short names, with "relevance" for the kind "roi"."""
    short = {name: alias for alias, name in plug.ROI_ALIASES.items()} if kind in ("roi", "policies") else {}
    known = plug.available("policies" if kind == "roi" else kind) + (["relevance"] if kind == "roi" else [])
    return sorted(short.get(name, name) for name in known)


def _plain(name: str) -> str:
    """The module name of a plug-in, for any of its spellings and aliases."""
    name = name.replace("-", "_")
    name = plug.SPELLINGS.get(name, name)
    return plug.ROI_ALIASES.get(name, name)


def is_run(path: Path) -> bool:
    """Whether the folder is a finished run of a stage."""
    return (path / "manifest.json").is_file()


def is_store(path: Path) -> bool:
    """Whether the folder is an annotation store."""
    return (path / "data.mdb").is_file()


def is_checkpoint(path: Path) -> bool:
    """Whether the folder holds a model: its configuration, and weights as safetensors."""
    return (path / "config.json").is_file() and any(each.suffix == ".safetensors" for each in path.iterdir())


def folders(typed: str, wanted: Callable[[Path], bool]) -> list[str]:
    """Folders for which `wanted` is true and whose paths begin with `typed`, down to DEPTH; hidden ones only when typed."""
    slash = typed.rfind("/") + 1
    tail = typed[slash:]
    paths: list[str] = []
    level, left = [typed[:slash]], _ENTRIES
    for depth in range(DEPTH):
        below: list[str] = []
        for parent in level:
            for name, linked in _folders_in(parent):
                left -= 1
                if left < 0 or len(paths) >= _MOST_FOLDERS:
                    return sorted(paths)
                begins = name.startswith(tail) if depth == 0 else True
                if not begins or (name.startswith(".") and not (depth == 0 and tail)):
                    continue
                with suppress(OSError):
                    if wanted(Path(parent + name)):
                        paths.append(parent + name)
                # A link may lead back up.
                if not linked:
                    below.append(f"{parent}{name}/")
        level = below
    return sorted(paths)


def _folders_in(parent: str) -> list[tuple[str, bool]]:
    """(name, whether it is a link) of the folders in one, sorted; nothing where it cannot be read."""
    try:
        with os.scandir(parent or ".") as entries:
            return sorted((entry.name, entry.is_symlink()) for entry in entries if entry.is_dir())
    except OSError:
        return []


def _examples(typed: str, words: Sequence[str]) -> list[str]:
    """Ids of the predictions or of the store that the command line names."""
    from cos_cli.completion.prefixes import SortedKeys, offers

    predictions = _option(words, "--predictions")
    if predictions is not None:
        return offers(SortedKeys(_recorded_ids(Path(predictions).expanduser())), typed)
    for word in (_option(words, "--store"), *words):
        if word and is_store(Path(word).expanduser()):
            from cos_core.store.ids import StoreIds

            with StoreIds(Path(word).expanduser()) as ids:
                return offers(ids, typed)
    return []


def _option(words: Sequence[str], name: str) -> str | None:
    for place, word in enumerate(words):
        if word == name and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def _recorded_ids(path: Path) -> list[bytes]:
    """Ids in the first 16 MiB of a predictions file, or of the folder that holds one; those with escapes are left out."""
    if path.is_dir():
        path /= "predictions.jsonl"
    with path.open("rb") as file:
        lines = file.read(_READ_BYTES).split(b"\n")
    ids = []
    for line in lines:
        _, mark, rest = line.partition(_ID)
        text = rest.lstrip(b" :")
        end = text.find(b'"', 1)
        if mark and text.startswith(b'"') and end > 0 and b"\\" not in text[:end]:
            ids.append(text[1:end])
    return ids
