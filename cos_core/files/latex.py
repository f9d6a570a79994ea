"""Tables in LaTeX, with the rules of the package booktabs; every text from data is escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cos_core.files.text import printable

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "±": r"$\pm$",
}
_SPECIAL = re.compile("|".join(map(re.escape, _ESCAPES)))
_MINUS = re.compile(r"(?<![\w.)-])-(?=\.?\d)")
UNDEFINED = "undefined"
"""What stands for a figure that is not defined."""
_NUMBER = re.compile(r"[-+]?\.?\d")
HEAD = "% Needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}.\n"
"""The first line of a file of tables."""


def escape(text: str) -> str:
    """`text` on one line as LaTeX sets it; a hyphen before a number is a minus."""
    words = " ".join(printable(text).split())
    escaped = _SPECIAL.sub(lambda match: _ESCAPES[match[0]], _MINUS.sub("\0", words)).replace("\0", "$-$")
    # After the end of a row, a bracket or a star would be its argument.
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def table(rows: Sequence[Sequence[str]], caption: str = "", remarks: Sequence[str] = ()) -> str:
    """A table of equally long rows, its head first; columns of numbers stand to the right, `remarks` below.

    A cell that is one hyphen, where there is no figure, becomes a dash.
    """
    head, *body = rows
    places = "".join("r" if _numbers([row[i] for row in body]) else "l" for i in range(len(head)))
    lines = ["\\begin{table}", "\\centering"]
    lines += [f"\\caption{{{escape(caption)}}}"] if caption else []
    lines += [f"\\begin{{tabular}}{{{places}}}", "\\toprule", _row(head), "\\midrule", *map(_row, body)]
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"\n\\medskip\\parbox{{\\linewidth}}{{\\footnotesize {escape(words)}}}" for words in remarks]
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join("--" if cell == "-" else escape(cell) for cell in cells) + r" \\"


def _numbers(cells: Sequence[str]) -> bool:
    """Whether a column holds numbers, and nothing else but dashes and empty cells."""
    written = [cell for cell in cells if cell not in ("", "-")]
    return bool(written) and all(_NUMBER.match(cell) or cell.startswith(UNDEFINED) for cell in written)
