"""Single functions of an installed harness, without importing it: their modules import the whole stack at the top.

lmms-eval and ms-vlmeval are installed without dependencies (Makefile, constraints.txt) as a second opinion for tests; nothing
of theirs stands in this repository.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import pytest


def load(package: str, file: str, *names: str, **given: Any) -> list[Any]:
    """The top-level functions, classes and constants `names` of a module file, run with `given` and the literals above them.

    Skips the test when the package is not installed; a name that is not there is an error.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed; make setup installs it")
    path = Path(found.submodule_search_locations[0]) / file
    kept = [node for node in _parsed(path).body if _literal(node) or _name(node) in names]
    space: dict[str, Any] = dict(given)
    exec(compile(ast.Module(kept, []), str(path), "exec"), space)
    return [space[name] for name in names]


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _name(node: ast.stmt) -> str | None:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    return node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else None


def _literal(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Assign):
        return False
    try:
        ast.literal_eval(node.value)
    except ValueError:
        return False
    return True
