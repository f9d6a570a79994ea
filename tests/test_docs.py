"""The documents against the program: a fresh reference, commands that exist, every exit code, a site that fetches nothing."""

from __future__ import annotations

import difflib
import importlib.util
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from documents import DOCUMENTS, ROOT, Block, blocks

from cos_cli import main, models_page
from cos_cli.command import Command, all_commands
from cos_cli.reference import reference
from cos_core import errors
from cos_core.models import families

COMMANDS = list(all_commands(main.TREE))
NAMING = [*DOCUMENTS, ROOT / "SECURITY.md", *sorted((ROOT / "docs" / "pictures").glob("*.svg"))]


def test_the_reference_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "137")  # what the caller's terminal is like does not matter
    written = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    stale = difflib.unified_diff(written.splitlines(), reference().splitlines(), "docs", "cos --help", lineterm="", n=0)
    assert not list(stale), "docs/reference/cli.md is stale: make reference"


def test_the_table_of_families_is_fresh() -> None:
    written = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    stale = difflib.unified_diff(written.splitlines(), models_page.page().splitlines(), "docs", "families", lineterm="", n=0)
    assert not list(stale), "docs/models.md is stale: make reference"
    assert all(families.of_type(kind).name in written for kind in families.names())


def test_the_reference_has_every_command_and_option() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^##+ cos ?([^\n]*)\n\n```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    assert len(COMMANDS) > 15
    for command in COMMANDS:
        text = sections[" ".join(command.table)]
        for parameter in command.options:
            assert all(name in text for name in (*parameter.names, *parameter.off)), f"{command.words}: {parameter.name}"


def _commands(block: Block) -> list[list[str]]:
    """The words of each `cos` command of a shell block, without what follows a pipe or a redirection."""
    lines = block.text.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["cos"]:
            ends = [place for place, word in enumerate(words) if word in ("|", "||", "&&", ">", ";")]
            found.append(words[1 : min(ends, default=len(words))])
    return found


def _named(words: list[str]) -> Command:
    """The command that the first words name."""
    for command in sorted(COMMANDS, key=lambda command: -len(command.words)):
        if tuple(words[: len(command.words)]) == command.words:
            return command
    return next(command for command in COMMANDS if command.usual and words[:1] == list(command.table))


def _left_over(named: Command, words: list[str]) -> list[str]:
    """What the command line's parser has no use for: a word behind a flag, say. It raises for a value that is missing."""
    spelt = named.words if tuple(words[: len(named.words)]) == named.words else named.table
    command: Any = named.typer()
    _, left, _ = command.make_parser(command.context_class(command)).parse_args(words[len(spelt) :])
    return list(left)


NOT_RUN = [block for block in blocks() if block.mark.startswith("not run") and _commands(block)]


@pytest.mark.parametrize("block", NOT_RUN, ids=str)
def test_commands_that_no_test_runs_are_true_to_the_cli(block: Block) -> None:
    for words in _commands(block):
        if words[0].startswith("-") or words[0] in ("config", "completion"):
            continue  # what they are given belongs to other commands
        command = _named(words)
        known = {name: parameter for parameter in command.options for name in (*parameter.names, *parameter.off)}
        given = [word for word in words if word.startswith("--")]
        assert not [word for word in given if word.partition("=")[0] not in known], f"{block}: cos {' '.join(words)}"
        if not {"...", "$settings"} & set(words):
            assert _left_over(command, words) == [], f"{block}: cos {' '.join(words)}"
        if "--config" not in given and "..." not in words and "$settings" not in words:
            needed = [parameter for parameter in command.options if parameter.required and parameter.names]
            assert all(set(parameter.names) & set(given) for parameter in needed), f"{block}: cos {' '.join(words)}"


def test_every_exit_code_is_explained() -> None:
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    explained = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    raised = {each.exit_code for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.CosError)}
    assert explained == raised | {0, 2, main.BUG, main.BAD_INPUT, main.MISSING, main.INTERRUPTED, main.PIPE_CLOSED}


_PATH = re.compile(r"(?<![\w/.])(?:cos_core|cos_cli|benchmarks|scripts|tests|templates|completions)/[\w./-]*\w")
_MODULE = re.compile(r"(?<![\w/.])cos_(?:core|cli)(?:\.\w+)+")
_MADE_BY_THE_READER = re.compile(r"cos_core/_templates|.*/(quiz|yesno|constant|glm4v)(\.py)?")


@pytest.mark.parametrize("page", NAMING, ids=[str(page.relative_to(ROOT)) for page in NAMING])
def test_paths_and_modules_that_the_documents_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = {path for path in _PATH.findall(text) if not _MADE_BY_THE_READER.fullmatch(path)}
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]
    assert not [module for module in sorted(set(_MODULE.findall(text))) if not _resolves(module)]


def _resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    module, _, attribute = dotted.rpartition(".")
    try:
        return importlib.util.find_spec(dotted) is not None
    except ModuleNotFoundError:  # the part before the last dot is no package
        return hasattr(importlib.import_module(module), attribute)


class _Loads(HTMLParser):
    """What a page fetches when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") != "canonical":
            self.found.append(given.get("href") or "")
        elif "src" in given:
            self.found.append(given["src"] or "")


def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    # Not with --quiet: what is not printed is not counted as a warning.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "tutorial.html"} <= {page.name for page in pages}
    for page in pages:
        loads = _Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.found
        for address in loads.found:
            assert not re.match(r"(\w+:)?//", address), f"{page.name} fetches {address}"
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style.name
