"""Tables in LaTeX: what data may hold is set as it is, columns and rules are booktabs', nothing is lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scored_runs import folder, scored

from cos_cli import main
from cos_core.files import latex


@pytest.mark.parametrize(
    ("text", "set_as"),
    [
        ("50 % & $5_{x}$ #1", r"50 \% \& \$5\_\{x\}\$ \#1"),
        (r"C:\runs\~a^b", r"C:\textbackslash{}runs\textbackslash{}\textasciitilde{}a\textasciicircum{}b"),
        ("-1.2 to +0.5", "$-$1.2 to +0.5"),
        ("base-13b", "base-13b"),
        ("B - A", "B - A"),
        ("a\nb\x00", "a b\ufffd"),
        ("[0.1, -.2]", r"{}[0.1, $-$.2]"),
        ("<b> | ≥ 3 ×", r"\textless{}b\textgreater{} \textbar{} $\geq$ 3 $\times$"),
    ],
)
def test_text_is_escaped(text: str, set_as: str) -> None:
    assert latex.escape(text) == set_as


def test_a_table_by_hand() -> None:
    made = latex.table([("row", "paper", "95 %"), ("cos_7b", "-", "-1.0 to 2.0"), ("ours", "71.2", "")], "Tab. 1", ("R & D",))
    assert made.splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Tab. 1}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"row & paper & 95 \% \\",
        r"\midrule",
        r"cos\_7b & -- & $-$1.0 to 2.0 \\",
        r"ours & 71.2 &  \\",
        r"\bottomrule",
        r"\end{tabular}",
        "",
        r"\medskip\parbox{\linewidth}{\footnotesize R \& D}",
        r"\end{table}",
    ]


def test_the_papers_tables_have_every_cell() -> None:
    from cos_core.evaluate import paper, paper_files
    from cos_core.interfaces import SilentReporter

    cells = paper.report({}, replicates=100, reporter=SilentReporter())
    made = paper_files.tex(cells)
    for title, group in paper_files.by_table(cells).items():
        assert rf"\caption{{{latex.escape(title)}}}" in made
        rows = paper_files.overview(group, titles=True)
        for row in rows:
            assert latex._row(row) in made
    tables = re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n\\toprule\n(.*?)\\bottomrule", made, re.DOTALL)
    assert len(tables) == len(paper_files.by_table(cells))
    for places, body in tables:
        rows_of = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in rows_of} == {len(places) - 1}


def test_a_comparison_keeps_units_and_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path / "data_1")
    runs = [
        str(scored(tmp_path / name, data, right)) for name, right in (("a_1", [True] * 4), ("b", [False, True, True, True]))
    ]
    assert main.run(["eval", "compare", *runs, "--format", "latex"]) == 0
    made = capsys.readouterr().out
    assert made.startswith(latex.HEAD)
    assert r"a\_1" in made
    assert r"\begin{tabular}{lrrrrrl}" in made
    (row,) = [line for line in made.splitlines() if line.startswith("scenes &")]
    assert re.search(r"& \$-\$0\.2500 & \$-\$[\d.]+ to \+0\.\d+ &", row)
    assert "(fraction)" in made
