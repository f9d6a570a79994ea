"""The words of a command line before Typer reads them: spellings of earlier versions, and options that are given twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cos_core.options import Option


def renamed(known: Sequence[Option], words: Sequence[str]) -> list[str]:
    """The words with each option's earlier spelling replaced by the one it has now; values stay as they are."""
    spelled = {name: each for each in known for name in (*each.names, *each.off)}
    old = {f"--{word}": each for each in known for word in each.declared.formerly if f"--{word}" not in spelled}
    result: list[str] = []
    values = 0
    for place, word in enumerate(words):
        if values:
            values -= 1
        elif word == "--":
            return [*result, *words[place:]]
        else:
            name, equals, value = word.partition("=")
            option = old.get(name) or spelled.get(name)
            values = option.values if option is not None and not equals else 0
            word = old[name].names[0] + equals + value if name in old else word
        result.append(word)
    return result


def find_repeated(known: Sequence[Option], words: Sequence[str], interspersed: bool = True) -> str | None:
    """The error, in words, of an option that occurs twice and may occur once; None without one.

    `interspersed`: options may follow arguments. The same switch twice is no error.
    """
    spelled = {name: option for option in known for name in (*option.names, *option.off)}
    seen: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--" or (not interspersed and not word.startswith("-")):
            break
        for option, name, inline in _options(word, spelled):
            if not inline:
                del rest[: option.values]
            before = seen.get(option.name)
            if before is not None and option.values and not option.many:
                return f"{name} is given twice, and takes one value"
            if before is not None and not option.values and (before in option.off) != (name in option.off):
                return f"{before} and {name} exclude each other"
            seen[option.name] = name
    return None


def _options(word: str, spelled: Mapping[str, Option]) -> Iterator[tuple[Option, str, bool]]:
    """(option, its spelling, whether its value is in the same word) of each option in a word; `-qv` holds two switches."""
    if word.startswith("--"):
        name, inline, _ = word.partition("=")
        if name in spelled:
            yield spelled[name], name, bool(inline)
    elif word.startswith("-"):
        for place, letter in enumerate(word[1:], 2):
            option = spelled.get(f"-{letter}")
            if option is None:
                return
            yield option, f"-{letter}", place < len(word)
            if option.values:
                return
