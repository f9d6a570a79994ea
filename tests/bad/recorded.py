"""What came of every bad input and every injected fault, in two tables that `make faults` writes and the tests compare with:
`tests/bad/inputs.tsv`, a row a bad input, and `tests/faults/faults.tsv`, a row a kind of fault of a stage.

A row holds codes, types of errors, files and counts; no wording.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TypeVar

from bad.run import Outcome
from bad.world import Case

INPUTS = Path(__file__).with_name("inputs.tsv")
FAULTS = Path(__file__).resolve().parents[1] / "faults" / "faults.tsv"


@dataclass(frozen=True)
class InputRow:
    """`code`: the exit code; `error`: the exception's type, "" for none; `kept`: the files that were not there before."""

    family: str
    name: str
    code: str
    error: str
    kept: str

    @classmethod
    def of(cls, case: Case, outcome: Outcome) -> InputRow:
        return cls(case.family, case.name, str(outcome.code), outcome.error, listing(outcome.kept))


@dataclass(frozen=True)
class FaultRow:
    """`fault` at a kind of write (`at`) of a stage: how many `times`, and the files `kept` after the last."""

    stage: str
    fault: str
    at: str
    code: str
    times: str
    kept: str


Row = TypeVar("Row", InputRow, FaultRow)


def listing(names: Iterable[str]) -> str:
    """Names of files as a cell."""
    return ", ".join(name.encode("unicode_escape").decode() for name in names)


def read(path: Path, kind: type[Row]) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return [kind(**row) for row in csv.DictReader(file, dialect="excel-tab")]


def write(path: Path, rows: Iterable[InputRow] | Iterable[FaultRow]) -> None:
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, dialect="excel-tab", lineterminator="\n")
        writer.writerow([field.name for field in fields(rows[0])])
        writer.writerows(astuple(row) for row in rows)


def inputs() -> Iterator[InputRow]:
    """Runs every bad input."""
    from bad import cases
    from bad.run import call, warm
    from bad.world import make_world

    with tempfile.TemporaryDirectory(prefix="cos-faults-") as root:
        world = make_world(Path(root) / "world")
        warm(world)
        for number, case in enumerate(cases()):
            folder = Path(root) / str(number)
            folder.mkdir()
            outcome = call(case, world, folder)
            if (outcome.code, "Traceback" in outcome.err) != (case.code, False):
                sys.exit(f"{case}: {outcome.code}, expected {case.code}\n{outcome.err}")
            yield InputRow.of(case, outcome)


def main(stages: list[str]) -> None:
    """Everything anew; or, of the faults, the stages named."""
    from faults.storm import rows

    known = read(FAULTS, FaultRow) if stages else []
    anew = rows(stages)
    if not stages:
        write(INPUTS, inputs())
    done = {row.stage for row in anew}
    order = list(dict.fromkeys([row.stage for row in known] + [row.stage for row in anew]))
    merged = [row for stage in order for row in (anew if stage in done else known) if row.stage == stage]
    write(FAULTS, merged)


if __name__ == "__main__":
    main(sys.argv[1:])
