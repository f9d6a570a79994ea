"""Plug-ins: found by file name, loaded on demand, or from the user's own file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cos_core
from cos_core.errors import InputError
from cos_core.files import plug


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
    assert plug.load("benchmarks", str(mine), size=3) == ("built", {"size": 3})
    assert plug.load("benchmarks", f"{mine}:other") == "other"
    for name in (f"{mine}:missing", f"{mine}:number"):
        with pytest.raises(InputError, match="has no function"):
            plug.load("benchmarks", name)
    with pytest.raises(InputError, match="no plug-in file"):
        plug.load("benchmarks", str(tmp_path / "none.py"))


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'none'"):
        plug.load("policies", "nome")
    with pytest.raises(InputError, match="there are: "):
        plug.load("policies", "zzzzzzzz")
    with pytest.raises(InputError, match="unknown kind"):
        plug.available("toys")
