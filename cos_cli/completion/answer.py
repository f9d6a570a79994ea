"""`cos __complete SHELL ...`: the completions at the cursor. It runs at every press of TAB, so imports are few.

The first line of the output is "values", followed by a line a value, with a tab and its help for zsh and fish; or "path" (the
shell completes file names itself), followed by the `--option=` before the file name, and its beginning without quotes. bash
passes the text before the cursor and its word breaks, zsh and fish pass the words.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from cos_core.files.assets import completion

PATH = None
"""The answer for which the shell completes file names itself."""
Offers = list[tuple[str, str]]
_COMMANDS = ("command", "usual")


class CommandRow(NamedTuple):
    """A line of completions/commands.tsv: a command, option or argument.

    `takes`: number of words of its value; `repeated`: whether it may occur twice; `value`: "command", "usual", "flag", "path",
    "text", "=" and fixed choices, or a kind of `values`.
    """

    name: str
    takes: int
    repeated: bool
    value: str
    help: str


def answer(words: Sequence[str], current: str, table: str | None = None) -> Offers | None:
    """(value, help) of every completion of `current` after `words` (those after `cos`); PATH for any file name.

    `table`: the text of commands.tsv, by default the shipped file.
    """
    if _is_of_another_command(words, current):
        return answer(words[2:], current, table)
    rows = _rows(completion("commands.tsv").read_text(encoding="utf-8") if table is None else table)
    path, at = _command(rows, words)
    mine = rows.get(path, [])
    options = {row.name: row for row in mine if row.name.startswith("-")}
    arguments = [row for row in mine if row.name.isdigit()]
    place, pending, ended = 0, 0, False
    last: CommandRow | None = None
    for word in words[at:]:
        if pending:
            pending -= 1
        elif word == "--" and not ended:
            ended = True
        elif word.startswith("-") and len(word) > 1 and not ended:
            name, equals, _ = word.partition("=")
            last = options.get(name)
            pending = 0 if last is None else max(0, last.takes - bool(equals))
        else:
            place += 1
    if pending and last is not None:
        return _of(last, current, words)
    if current.startswith("--") and "=" in current and not ended:
        name, _, begun = current.partition("=")
        row = options.get(name)
        offers = [] if row is None or not row.takes else _of(row, begun, words)
        return PATH if offers is None else [(f"{name}={value}", about) for value, about in offers]
    if current.startswith("-") and not ended:
        present = {word.partition("=")[0] for word in words[at:]}
        return [
            (o.name, o.help) for o in options.values() if o.name.startswith(current) and (o.repeated or o.name not in present)
        ]
    named = " ".join(words)
    names: Offers = []
    if at == len(words) and _is_group(rows, named):
        # In a group whose usual command may be left out, the other commands' names are offered with its arguments.
        names = [(row.name, row.help) for row in rows[named] if row.value in _COMMANDS and row.name.startswith(current)]
    due = arguments[place] if place < len(arguments) else arguments[-1] if arguments and arguments[-1].repeated else None
    more = _of(due, current, words) if due is not None else []
    return names + more if more is not None else names or PATH


def _is_of_another_command(words: Sequence[str], current: str) -> bool:
    """Whether a whole command line follows `cos config show`, or the name of a command `cos config init`."""
    first = list(words[:2])
    is_option = len(words) == 2 and current.startswith("-")
    return not is_option and (first == ["config", "show"] or (first == ["config", "init"] and len(words) == 2))


def _of(row: CommandRow, current: str, words: Sequence[str]) -> Offers | None:
    """The values of an option or argument that begin with `current`; PATH for any file name."""
    if row.value == "path":
        return PATH
    if row.value in ("text", "flag"):
        return []
    if row.value.startswith("="):
        return [(choice, "") for choice in row.value[1:].split(" ") if choice.startswith(current)]
    from cos_cli.completion.values import values

    offered = values(row.value, current, words)
    return PATH if offered is None else [(value, "") for value in offered]


def _command(rows: dict[str, list[CommandRow]], words: Sequence[str]) -> tuple[str, int]:
    """(the command that `words` name, number of words that name it)."""
    path, at = "", 0
    while _is_group(rows, path):
        names = {row.name for row in rows[path] if row.value in _COMMANDS}
        if at < len(words) and words[at] in names:
            path = f"{path} {words[at]}".strip()
            at += 1
            continue
        usual = next((row.name for row in rows[path] if row.value == "usual"), None)
        if usual is None:
            break
        path = f"{path} {usual}"
    return path, at


def _is_group(rows: dict[str, list[CommandRow]], path: str) -> bool:
    return any(row.value in _COMMANDS for row in rows.get(path, ()))


def _rows(table: str) -> dict[str, list[CommandRow]]:
    """Command -> its lines."""
    rows: dict[str, list[CommandRow]] = {}
    for line in table.splitlines():
        path, name, takes, repeated, value, words = line.split("\t")
        rows.setdefault(path, []).append(CommandRow(name, int(takes), bool(repeated), value, words))
    return rows


def _harmless(value: str) -> bool:
    """Whether `value` is printable UTF-8: names of folders and ids are untrusted, and could contain terminal controls."""
    try:
        return os.fsencode(value).decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False


def main(arguments: Sequence[str]) -> None:
    """Writes the answer to stdout, as bytes, so that file names are unchanged in every locale."""
    from cos_cli.completion.words import Line, quoted

    if len(arguments) < 2:
        sys.exit("cos: __complete is what the shells' completion scripts call; see: cos completion install")
    shell, *rest = arguments
    if shell == "bash":
        line = Line(rest[0], rest[1])
        current = line.current
        offers = answer(line.words[1:], current)
        if offers is not None:
            begun_text = current[: line.prefix_length]
            offers = [(quoted(value[len(begun_text) :], line.quote), "") for value, _ in offers if value.startswith(begun_text)]
    else:
        *words, current = rest
        if shell == "fish":
            current = Line(current).current
        offers = answer(words, current)
    if offers is None:
        option, equals, begun = current.partition("=") if current.startswith("--") else ("", "", current)
        lines = ["path", option + equals, begun]
    else:
        lines = ["values", *(f"{value}\t{about}" if about else value for value, about in offers if _harmless(value))]
    sys.stdout.buffer.write(os.fsencode("\n".join(lines) + "\n"))
