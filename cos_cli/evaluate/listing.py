"""`cos eval --list`: what each benchmark is, what it needs, from where, and what of it is missing."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cos_cli.console import emit, emit_json
from cos_cli.evaluate.figures import WIDTH
from cos_core.benchmarks import _files
from cos_core.files import plug
from cos_core.files.text import Lines
from cos_core.interfaces import Benchmark, Need

_FIRST, _INDENT = 12, " " * 13


def show(names: Sequence[str], data: Path | None, json: bool) -> None:
    """The benchmarks on stdout; with a data folder, whether their files are there."""
    listed = {name: _described(name, data) for name in names}
    if json:
        emit_json(listed)
        return
    lines = [line for name, about in listed.items() for line in (*_lines(name, about), "")]
    if data is not None:
        lines += ["+ there   ! missing   ? missing, and not needed to score"]
        lines += [f"(looked in {data}/NAME or its other names, else {data})"]
    emit(Lines(lines if data is not None else lines[:-1]))


def _described(name: str, data: Path | None) -> dict[str, Any]:
    benchmark: Benchmark = plug.load("benchmarks", name)
    wanted = benchmark.needs
    root = None if data is None else _root(data, name, benchmark, wanted)
    needs = [
        {
            "file": need.names[0],
            "source": need.source,
            "split": need.split,
            "optional": need.optional,
            "found": None if data is None else root is not None and need.path(root) is not None,
        }
        for need in wanted
    ]
    return {
        "summary": benchmark.summary,
        "questions": dict(benchmark.counts),
        "scorers": list(benchmark.scorers),
        "needs": needs,
    }


def _root(data: Path, name: str, benchmark: Benchmark, needs: Sequence[Need]) -> Path | None:
    """The benchmark's own folder, else `data` if it holds a file to score by: a folder `images` alone may be anybody's."""
    folder = _files.home(data, plug.short(name), benchmark)
    if folder != data:
        return folder
    return data if any(not need.optional and need.path(data) for need in needs) else None


def _lines(name: str, about: Mapping[str, Any]) -> Iterator[str]:
    yield from _wrapped(f"{name:{_FIRST}} ", about["summary"], _INDENT)
    if about["questions"]:
        counts = ", ".join(f"{split} {count:,}" for split, count in about["questions"].items())
        yield from _wrapped(_INDENT, f"questions: {counts}", _INDENT + "  ")
    if about["scorers"]:
        yield from _wrapped(_INDENT, f"scorers: {', '.join(about['scorers'])}", _INDENT + "  ")
    for need in about["needs"]:
        mark = {None: "-", True: "+", False: "?" if need["optional"] else "!"}[need["found"]]
        detail = ", ".join(filter(None, [f"split {need['split']}" if need["split"] else "", "optional" * need["optional"]]))
        yield f"{_INDENT}{mark} {need['file']}{f' ({detail})' if detail else ''}"
        yield from _wrapped(f"{_INDENT}    from ", need["source"], f"{_INDENT}    ")


def _wrapped(first: str, text: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
