"""What messages tell people to type works as typed."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from cos_cli import main
from cos_cli.command import all_commands
from cos_core.system import extras

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Words of a sentence that stand for what a message fills in.
FILLED = "FILLED"


def strings(path: Path) -> Iterator[str]:
    """The texts of a module that are no docstrings, each with FILLED for what an f-string fills in."""
    tree = ast.parse(path.read_text())
    plain = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else FILLED for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (plain | inside):
            yield node.value


def advised() -> list[str]:
    """`cos ...` in backticks, of every message."""
    found = set()
    for folder in ("cos_core", "cos_cli"):
        for path in (ROOT / folder).rglob("*.py"):
            for text in strings(path):
                found.update(re.findall(r"`(cos [^`]+)`", text))
    return sorted(found)


def test_there_is_advice() -> None:
    assert any("store ls" in line for line in advised())


@pytest.mark.parametrize("line", advised())
def test_a_command_named_in_a_message_is_one(line: str) -> None:
    words = shlex.split(line)[1:]
    known = {command.words: command for command in all_commands(main.TREE)}
    names = next((tuple(words[:n]) for n in range(len(words), 0, -1) if tuple(words[:n]) in known), None)
    if names is None:
        assert any(each[: len(words)] == tuple(words) for each in known), line  # a group, such as `cos eval`
        return
    options = {flag for parameter in known[names].options for flag in (*parameter.names, *parameter.off)}
    for word in words[len(names) :]:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, line


def test_every_extra_named_in_a_message_exists() -> None:
    for folder in ("cos_core", "cos_cli"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert "cos-toolkit[" not in text, path
            assert set(re.findall(r"\binstall\(['\"](\w+)", text)) <= set(EXTRAS), path
    assert set(main.EXTRA_OF.values()) <= set(EXTRAS)


def test_the_install_command_names_where_cos_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert shlex.split(extras.install("model")) == ["pip", "install", "-e", f"{ROOT}[model]"]
    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    urls = {
        json.dumps({"url": tmp_path.as_uri(), "dir_info": {}}): f"{tmp_path}[train]",
        json.dumps({"url": "file:///w/c.whl", "archive_info": {}}): "cos-toolkit[train] @ file:///w/c.whl",
        json.dumps({"url": "https://h/c", "vcs_info": {"vcs": "git"}}): "cos-toolkit[train] @ git+https://h/c",
        "": "cos-toolkit[train]",
        "{torn": "cos-toolkit[train]",
    }
    for written, wanted in urls.items():
        monkeypatch.setattr(metadata.PathDistribution, "read_text", lambda self, name, text=written: text or None)
        assert shlex.split(extras.install("train"))[-1] == wanted


def test_the_extra_model_suffices_for_what_the_documents_say() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    row = next(line for line in page.splitlines() if "| `model`" in line)
    assert "train" in row.partition("| `model`")[0]
    source = (ROOT / "cos_core" / "training" / "runtime.py").read_text()
    needed = set(re.findall(r"^        import (\w+)", source[source.index("def require") :].partition("except")[0], re.M))
    model = {re.split(r"[<>=~\[]", text)[0] for text in EXTRAS["model"]}
    assert needed
    assert needed <= model
