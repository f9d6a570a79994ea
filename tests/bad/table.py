"""docs/faults.md: what came of every bad input and every injected fault, as a table that `make faults` writes."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
_HEAD = "| what | how | code | sentence | kept |\n|---|---|---|---|---|\n"
INPUTS, FAULTS = "## Bad inputs", "## Injected faults"
_WORDS = """# What goes wrong, and what comes of it

Written by `make faults`, which runs each row; `make test` runs them too, but for what is said below, and fails when one is missing.
Exit codes are those of the README. No row ends in a traceback, and none writes or reads outside the folders it is given.

{inputs}: {bad} rows

"Kept" names the files that are there afterwards and were not before.

{bad_rows}
{faults}: {injected} faults

Every durable write of a stage (a write, a flush to the disk, a rename, a commit of the store, a file that torch, safetensors or
tokenizers write), one after the other: the process is killed there, Ctrl-C is pressed there, the disk is full from there on, or the
write is cut short there. Then the same command runs again, and what it leaves is compared, byte by byte but for times, with what an
undisturbed run leaves. "Kept" is what stood there between the two. A library's file is cut off after 512 bytes by the system's own
limit. A killed process may leave a hidden `.tmp` file, which nothing reads. `make test` takes a sample of the stages whose runs are dear (`tests/faults/stages.py` says which): every so many of their writes, and
of training one of each kind (what, and whether to the log, its curve, a checkpoint, the model, the manifest, or which library's file).

{fault_rows}"""


@dataclass(frozen=True)
class Row:
    family: str
    name: str
    code: str
    sentence: str
    kept: str

    def __str__(self) -> str:
        return "| " + " | ".join(map(_cell, (self.family, self.name, self.code, self.sentence, self.kept))) + " |"


def _cell(text: str) -> str:
    text = "".join(c if c.isprintable() else "?" for c in text)
    return re.sub(r"([|<>*_`\\])", r"\\\1", text) or "—"


def _plain(cell: str) -> str:
    return re.sub(r"\\(.)", r"\1", cell).replace("—", "") if cell == "—" else re.sub(r"\\(.)", r"\1", cell)


def read(part: str = INPUTS) -> list[Row]:
    """The rows that stand in the document."""
    text = DOCUMENT.read_text(encoding="utf-8").partition(part)[2].partition("\n## ")[0]
    cells = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in text.splitlines() if line.startswith("| ")][1:]
    return [Row(*map(_plain, row)) for row in cells]


def count(part: str) -> int:
    """How many cases the document says it has."""
    said = re.search(rf"^{part}: (\d+) ", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return int(said[1]) if said else 0


def times(stage: str) -> int:
    """How many faults of a stage the rows speak of."""
    return sum(_times(row) for row in read(FAULTS) if row.family == stage)


def _times(row: Row) -> int:
    said = re.search(r", (\d+) times: ", row.name)
    return int(said[1]) if said else 0


def inputs() -> Iterator[Row]:
    from bad import cases
    from bad.run import call
    from bad.world import make_world

    with tempfile.TemporaryDirectory(prefix="cos-faults-") as root:
        world = make_world(Path(root) / "world")
        for number, case in enumerate(cases()):
            folder = Path(root) / str(number)
            folder.mkdir()
            outcome = call(case, world, folder)
            if (outcome.code, "Traceback" in outcome.err) != (case.code, False):
                sys.exit(f"{case}: {outcome.code}, expected {case.code}\n{outcome.err}")
            # Where a sound record stood beside the bad one, the last line tells of success.
            told = [line for line in outcome.err.splitlines() if case.said in line and case.names in line]
            said = (
                (told[0] if told else outcome.sentence)
                .replace(f"{folder}/", "")
                .replace(f"{root}/", "")
                .replace(str(folder), ".")
            )
            said = re.sub(r" in \d+\.\d+ s| in \d+ s", "", said)
            kept = ", ".join(outcome.kept[:4]) + (f" and {len(outcome.kept) - 4} more" if len(outcome.kept) > 4 else "")
            yield Row(
                case.family, case.name, str(case.code), said[:160] + ("..." if len(said) > 160 else ""), kept or "nothing new"
            )


def write(bad: Sequence[Row], injected: Sequence[Row]) -> None:
    parts = {"inputs": INPUTS, "bad": len(bad), "faults": FAULTS, "injected": sum(map(_times, injected))}
    rows = {
        "bad_rows": _HEAD + "".join(f"{row}\n" for row in bad),
        "fault_rows": _HEAD + "".join(f"{row}\n" for row in injected),
    }
    DOCUMENT.write_text(_WORDS.format(**parts, **rows), encoding="utf-8")


if __name__ == "__main__":
    from faults.storm import rows

    injected = rows()
    write(list(inputs()), injected)
