"""The command `cos evidence`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cos_cli.command import command
from cos_cli.console import Session, columns, emit, emit_json, reporting
from cos_core.files.text import Lines, escaped

if TYPE_CHECKING:
    from cos_core.evidence import EvidenceConfig

_WIDTH = 80


@command("evidence", "cos_core.evidence:EvidenceConfig")
def evidence(session: Session, config: EvidenceConfig) -> None:
    """Show whether a model uses its crops: one page of controls with verdicts.

    Answers benchmarks in several ways: one look, two looks, and two looks with the crop black, noise, another picture's,
    absent, without its box, or beside a blurred whole picture. First passes are shared. Stopped and started again, it goes on
    where it was; the page is index.html in --out.

    \b
    Examples:
      cos evidence miniature --benchmarks scenes --data runs/demo/scenes/test --out evidence
      cos evidence qwen3-vl --engine openai --server http://localhost:8000/v1 --benchmarks vstar --data data --out page
    """
    from cos_core.evidence import run

    with reporting(session) as reporter:
        found = run(config, reporter)
    if found.results is not None and session.json:
        emit_json(found.results)
    elif found.results is not None:
        emit(describe(found.results, config))
    found.conclude()


def describe(found: Mapping[str, Any], config: EvidenceConfig) -> Lines:
    """Each benchmark's verdict with its reasons, then the seven rows with their differences, and where the page is."""
    lines: list[str] = []
    for each in found["benchmarks"]:
        lines += [escaped(f"{each['benchmark']}: {each['verdict']}"), *_wrapped(each["words"]), ""]
        asked = max((arm["n"] for arm in each["arms"]), default=0)
        lines.append(f"{each['metric']} of {asked:,} questions; p-values are Holm's over {found['tests']} differences")
        lines.append("")
        lines += [*_table(each), ""]
        without: dict[str, list[str]] = {}
        for line in _lines(each):
            if line.get("difference") is None:
                without.setdefault(line["words"], []).append(f"{line['b']} - {line['a']}")
        for words, names in without.items():
            lines += [*_wrapped(f"{words.capitalize()} ({', '.join(names)})."), ""]
        failed = [f"{arm['arm']} {arm['failed']}" for arm in each["arms"] if arm["failed"]]
        if failed:
            lines += [*_wrapped(f"Questions without an answer, which count as wrong: {', '.join(failed)}."), ""]
    lines += _wrapped("Seen: the smallest true difference that would have been seen four times in five.")
    page, figures = (config.out / name for name in ("index.html", "results.json"))
    lines += ["", f"The page:    {escaped(page)}", f"The figures: {escaped(figures)}"]
    return Lines(lines)


def _table(each: Mapping[str, Any]) -> list[str]:
    """The questions, and below each its differences, in the columns of all of them."""
    head, *lines = columns([("", "diff.", "95 %", "p", "seen", "verdict"), *map(_cells, _lines(each))]).splitlines()
    shown, rest = [head], iter(lines)
    for number, row in enumerate(each["rows"], 1):
        shown.append(escaped(f"{number} {row['question']} {row['verdict'].capitalize()}."))
        shown += [next(rest) for _ in row["lines"]]
    return shown


def _cells(line: Mapping[str, Any]) -> tuple[str, ...]:
    from cos_core.evidence.words import signed, signed_interval

    name = f"  {line['b']} - {line['a']}"
    if line.get("difference") is None:
        return name, "", "", "", "", line["verdict"]
    unit, p = line["unit"], line["p_holm"]
    seen = "never" if line["seen"] is None else signed(line["seen"], unit).lstrip("+")
    figures = signed(line["difference"], unit), signed_interval(line["low"], line["high"], unit)
    return name, *figures, "" if p is None else f"{p:.2g}", seen, line["verdict"]


def _lines(each: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    return (line for row in each["rows"] for line in row["lines"])


def _wrapped(words: str) -> list[str]:
    return textwrap.wrap(escaped(words), _WIDTH)
