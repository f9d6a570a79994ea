"""One part of a job that several processes or machines do together."""

from __future__ import annotations

from dataclasses import dataclass

from cos_core.errors import InputError


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index`, from 1, of `count`: every `count`-th window of pictures. All shards together compute what one job would."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise InputError(f"a shard is i/n with i from 1 to n, got {self}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`2/8`. Raises InputError."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise InputError(f"a shard is i/n, for instance 2/8, got {text!r}")
        return cls(int(index), int(count))

    def has(self, number: int) -> bool:
        """Whether window `number`, from 0, is one of this part's."""
        return number % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
