"""Plug-ins: found by file name, loaded on demand, or from the user's own file."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

import cos_core
from cos_core.errors import InputError
from cos_core.files import plug
from cos_core.interfaces import Benchmark


def test_names_are_the_modules() -> None:
    folder = Path(cos_core.__file__).parent
    for kind in plug.KINDS:
        expected = sorted(p.stem for p in (folder / kind).glob("*.py") if not p.stem.startswith("_"))
        assert plug.available(kind) == expected
    assert "none" in plug.available("policies")


def test_listing_imports_nothing() -> None:
    code = (
        "import sys; from cos_core.files import plug; [plug.available(k) for k in plug.KINDS];"
        "sys.exit(any(m.startswith('cos_core.' + k + '.') for m in sys.modules for k in plug.KINDS))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(cos_core.__file__).parents[1], check=True)


def test_a_shipped_plug_in_is_built() -> None:
    assert plug.load("policies", "none").name == "none"


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def build(**options):\n    return ('built', options)\n\ndef other():\n    return 'other'\n\nnumber = 3\n")
    assert plug.load("policies", str(mine), size=3) == ("built", {"size": 3})
    assert plug.load("policies", f"{mine}:other") == "other"
    for name in (f"{mine}:missing", f"{mine}:number"):
        with refused(name.partition(":")[2]):
            plug.load("benchmarks", name)
    with refused("none.py"):
        plug.load("benchmarks", str(tmp_path / "none.py"))


def test_unknown_names_get_the_nearest() -> None:
    with refused("'none'"):
        plug.load("policies", "nome")
    with refused("zzzzzzzz", *plug.available("policies")):
        plug.load("policies", "zzzzzzzz")
    with refused("toys", *plug.KINDS):
        plug.available("toys")


QUIZ = """
from dataclasses import dataclass
from cos_core.interfaces import Benchmark

@dataclass(frozen=True, slots=SLOTS)
class Quiz(BASE):
    name: str = "quiz"
    def load(self, root):
        return root
    def score(self, data, predictions):
        return []
    def metrics(self, data, scores):
        return {}
    def submission(self, root, data, predictions):
        return "x"

def build():
    return Quiz()
"""


def quiz(folder: Path, base: str, slots: bool = False, **words: str) -> str:
    """A plug-in file whose class has the given base, with words of it replaced."""
    text = QUIZ.replace("(BASE)", base).replace("SLOTS", str(slots))
    for old, new in words.items():
        text = text.replace(f"def {old}(", f"def {new}(")
    (folder / "quiz.py").write_text(text)
    return str(folder / "quiz.py")


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("base", ["(Benchmark)", ""], ids=["inherits", "as for 0.1.0"])
def test_what_a_benchmark_leaves_out_has_its_default(tmp_path: Path, base: str, slots: bool) -> None:
    made = plug.load("benchmarks", quiz(tmp_path, base, slots))
    assert isinstance(made, Benchmark)
    assert (made.name, made.headline, made.unit, made.needs, made.estimates(None, [])) == (
        "quiz",
        "accuracy",
        "fraction",
        (),
        None,
    )
    assert made.submission(tmp_path, None, {}) == "x"
    assert [each.name for each in fields(made)] == ["name"]


@pytest.mark.parametrize("base", ["(Benchmark)", ""], ids=["inherits", "as for 0.1.0"])
@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("submission", "sumbission", ("'sumbission'", "'submission'")),
        ("metrics", "aggregate", ("'metrics'", "Benchmark")),
        ("load", "reading_of_the_files", ("'load'", "Benchmark")),
    ],
)
def test_a_misspelt_or_missing_method_is_named_at_load(tmp_path: Path, base: str, old: str, new: str, named: Any) -> None:
    file = quiz(tmp_path, base, **{old: new})
    with pytest.raises(InputError) as refused:
        plug.load("benchmarks", file)
    assert all(word in str(refused.value) for word in named)


def test_what_cannot_be_a_benchmark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def build():\n    return ('built', 3)\n")
    with pytest.raises(InputError, match=r"cos_core\.interfaces\.Benchmark"):
        plug.load("benchmarks", str(tmp_path / "mine.py"))


@pytest.mark.parametrize("name", plug.available("benchmarks"))
def test_every_shipped_benchmark_inherits(name: str) -> None:
    made = plug.load("benchmarks", name)
    assert type(made).__mro__[0].__module__ == f"cos_core.benchmarks.{name}"
    assert isinstance(made, Benchmark)
    assert made.name == name
    assert made.summary
