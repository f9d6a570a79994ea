"""The dataset card beside an export: README.md with the YAML header that the hub and `datasets` read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import cos_core
from cos_core.data.formats.parquet import COLUMNS, HEAT_COLUMNS, Written
from cos_core.files.text import one_line

FILE = "README.md"
MARK = b"written by `cos store export` (cos-toolkit)"
"""What tells a card of ours from another README."""
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def card(name: str, info: Mapping[str, Any], written: Written, left_out: Mapping[str, int]) -> str:
    """The text of the card. `info`: Store.info(); `left_out`: examples without a row, by reason; `name`: the data set's."""
    settings = info["provenance"]
    size = next((words for limit, words in _SIZES if written.rows < limit), "10M<n<100M")
    columns = {**COLUMNS, **(HEAT_COLUMNS if written.heats else {})}
    counts = {
        "rows": written.rows,
        "with a box": written.boxed,
        "without a box (`reason` says why)": written.rows - written.boxed,
        "with a question": written.asked,
        "with a relevance map": written.heats,
        "parquet files": written.files,
        **left_out,
    }
    return "\n".join(
        [
            "---",
            f"pretty_name: {json.dumps(one_line(name), ensure_ascii=False)}",
            "configs:",
            "- config_name: default",
            "  data_files:",
            "  - split: train",
            "    path: data/train-*.parquet",
            "task_categories:",
            "- visual-question-answering",
            "size_categories:",
            f"- {size}",
            "tags:",
            "- visual-grounding",
            "- region-of-interest",
            "---",
            "",
            f"# {one_line(name)}",
            "",
            "Regions of pictures that answer questions about them, one row a question. The pictures themselves are not in",
            "here: `image` is a path relative to the folder of the data set that they come from.",
            "",
            f"The files and this card were {MARK.decode()}, version {cos_core.__version__}.",
            "",
            "## Columns",
            "",
            "| column | what it is |",
            "|---|---|",
            *(f"| `{column}` | {words} |" for column, words in columns.items()),
            "",
            "The metadata of the parquet schema says the same of frame and unit, under the key `cos`.",
            "",
            "## Counts",
            "",
            "| | |",
            "|---|---|",
            *(f"| {words} | {count:,} |" for words, count in counts.items()),
            "",
            "## How the regions were made",
            "",
            f"Fingerprint of the settings: `{info['fingerprint']}`.",
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {_cell(key)} | {_cell(value)} |" for key, value in sorted(settings.items())),
            "",
            "## Licence",
            "",
            "To be stated by the owner of the data set (`license` in the header). Pictures, questions and answers keep the",
            "licences of their sources; regions that a model made may be bound by the licence of that model.",
            "",
        ]
    )


def _cell(value: object) -> str:
    """A value for a table's cell: one line, bars escaped."""
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return one_line(words, 300).replace("\\", "\\\\").replace("|", "\\|")
