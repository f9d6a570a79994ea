"""Completion: the table is that of the CLI, answers are right without torch or numpy, and real shells take them."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shells import Shell, there

from cos_cli import main
from cos_cli.completion import table, values
from cos_cli.completion.answer import PATH, answer
from cos_cli.completion.prefixes import SortedKeys, offers
from cos_cli.completion.words import Line, quoted
from cos_cli.shells import FILES
from cos_core.geometry import Box
from cos_core.store.annotations import Store
from cos_core.store.ids import StoreIds
from cos_core.types import Annotation

ROOT = Path(__file__).resolve().parent.parent
BREAKS = " \t\n\"'><=;|&(:"
MARK = "c" * 16
IDS = [f"{number:03d}#q{turn}" for number in range(150) for turn in range(2)] + ["vqa:7", "été 1", "étude", "x" * 600]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs, a checkpoint, a store, predictions, and names that need quoting."""
    folder = tmp_path_factory.mktemp("place")
    for run in ("runs/first", "runs/my run", "runs/deep/er", "runs/.hidden", "plain/run"):
        (folder / run).mkdir(parents=True)
        (folder / run / "manifest.json").write_text("{}")
    (folder / "runs" / "latest").symlink_to("first")
    (folder / "runs" / "loop").symlink_to("..")
    (folder / "tuned" / "last").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / "tuned" / "last" / name).touch()
    (folder / "tuned" / "config.json").touch()
    (folder / "a:b").mkdir()
    (folder / "a:b" / "the questions.json").touch()
    box = Box(0.1, 0.2, 0.5, 0.6)
    with Store.create_or_resume(folder / "rois", MARK, {}) as store:
        store.put_many(Annotation(i, box, 1.0, "from_single_question", MARK, (3,)) for i in IDS)
    lines = [json.dumps({"example_id": i, "answer": "red"}, ensure_ascii=False) for i in ("p1", "p2", 'a"b', "q")]
    (folder / "runs" / "first" / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def offered(line: str) -> list[str] | None:
    """What `answer` offers after the words of `line`; the last one is being typed."""
    *words, current = line.split(" ")
    found = answer(words, current)
    return found if found is None else [value for value, _ in found]


def test_the_table_is_fresh() -> None:
    shipped = (ROOT / "completions" / table.FILE).read_text(encoding="utf-8")
    assert shipped == table.table(), "run: make completions"


def test_every_line_of_the_table_is_understood() -> None:
    known = {"command", "usual", "flag", "text", "path", "profile", "family", "model", "run", "store", "example"}
    known |= {"backbones", "benchmarks", "detectors", "engines", "policies", "runners", "roi"}
    for line in table.table().splitlines():
        path, name, takes, repeated, value, words = line.split("\t")
        assert value in known or value.startswith("="), line
        assert words.isprintable()
        assert int(takes) in (0, 1, 4), line
        assert repeated in ("", "+")
        assert path or name


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("an", ["annotate"]),
        ("eval c", ["compare"]),
        ("eval run pop", ["pope"]),
        ("eval pope --roi none,cen", ["none,center"]),
        ("infer --roi mod", ["model"]),
        ("infer --roi rel", ["relevance"]),
        ("eval pope --roi none,model,no", []),
        ("eval pope --roi center-crop,cen", []),
        ("eval ./mi", PATH),
        ("eval pope mm", ["mmbench", "mme", "mmvet"]),
        ("infer --engine sc", ["scripted"]),
        ("infer --engine=sc", ["--engine=scripted"]),
        ("infer --on-bad-box s", ["skip"]),
        ("infer --image photo.jpg --qui", ["--quiet"]),
        ("infer --quiet --qui", []),
        ("eval --fail-under a=1 --fail-u", ["--fail-under"]),
        ("infer --no-re", ["--no-reuse"]),
        ("infer --limit 1", []),
        ("infer --data q", PATH),
        ("infer --profile repo-2024-", ["repo-2024-train"]),
        ("infer --nonsense x --seed 3 --roi gol", ["gold"]),
        ("infer --family qwen2", ["qwen2_5_vl", "qwen2_vl"]),
        ("eval pope --family blip-", ["blip_2"]),
        ("doctor --family pix", ["pixtral"]),
        ("infer --profile cha", ["chat"]),
        ("infer --max-p", ["--max-pixels"]),
        ("eval pope --max-t", ["--max-tiles"]),
        ("infer --longest", ["--longest-edge"]),
        ("infer --max-tiles 4", []),
        ("visualize overlay --box 0.1 0.2 --", []),  # the third number of a box
        ("visualize overlay --box 0.1 0.2 0.3 0.4 --longe", ["--longest"]),
        ("annotate -- --da", []),
        ("config show anno", ["annotate"]),
        ("config show annotate --limi", ["--limit"]),
        ("config show --js", ["--json"]),
        ("config init vis", ["visualize"]),
        ("config init train --li", ["--like"]),
        ("completion install f", ["fish"]),
        ("nonsense ", []),
        ("--vers", ["--version"]),
    ],
)
def test_answers(line: str, expected: list[str] | None) -> None:
    assert offered(line) == expected or (expected == [] and offered(line) is PATH and line == "nonsense ")


def test_group_offers_its_commands_and_the_arguments_of_the_usual_one() -> None:
    found = offered("eval ")
    assert found is not None
    assert found[:3] == ["run", "compare", "report"]
    assert "pope" in found


def test_folders(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    runs = ["runs/deep/er", "runs/first", "runs/latest", "runs/my run"]
    assert offered("eval compare runs/first ") == ["plain/run", *runs]
    assert offered("eval compare runs/") == runs
    assert offered("eval compare runs/.h") == ["runs/.hidden"]
    assert offered("eval compare ./runs/f") == ["./runs/first"]
    assert offered("eval compare none") is PATH
    assert offered("infer --model ") == ["miniature", "tuned/last"]
    assert offered("train --store=r") == ["--store=rois"]
    assert values.folders("nowhere/", values.is_run) == []


def test_ids_of_a_store_and_of_predictions(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    overlay = "visualize overlay --store rois --example "
    assert offered(overlay) == ["0", "1", "vqa:7", "x" * 446, "é"]
    assert offered(overlay + "07") == [f"{n:03d}#q{t}" for n in range(70, 80) for t in range(2)]
    assert offered(overlay + "vqa:") == ["vqa:7"]
    assert offered(overlay + "ét") == ["étude", "été 1"]
    assert offered(overlay + "9") == []
    assert offered("visualize overlay --predictions runs/first --example p") == ["p1", "p2"]
    assert offered("visualize overlay --predictions=runs/first/predictions.jsonl --example ") == ["p1", "p2", "q"]
    assert offered("visualize overlay --example ") == []


class Plain:
    """The slow way: looks at every key."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = sorted(set(keys), key=str.encode)

    def offers(self, prefix: str, most: int) -> list[str]:
        mine = [key for key in self.keys if key.startswith(prefix)]
        if len(mine) <= most:
            return mine
        common = os.path.commonprefix(mine)  # noqa: RUF071 - characters are what is meant
        parts: dict[str, list[str]] = {}
        for key in mine:
            parts.setdefault(key[: len(common) + 1], []).append(key)
        found = [group[0] if len(group) == 1 or part == common else part for part, group in parts.items()]
        return found[:most]


@given(
    st.lists(st.text("ab:é漢\U0001f600", min_size=1, max_size=5), min_size=1, max_size=40),
    st.text("abé漢", max_size=2),
    st.integers(3, 9),
)
def test_offers_are_those_of_looking_at_every_key(keys: list[str], prefix: str, most: int) -> None:
    found = offers(SortedKeys([key.encode() for key in keys]), prefix, most)
    assert found == Plain(keys).offers(prefix, most)


def test_offers_of_a_store_are_those_of_its_keys_in_memory(place: Path) -> None:
    in_memory = SortedKeys([i.encode() for i in IDS if len(i) < 500])
    generator = random.Random(3)
    with StoreIds(place / "rois") as ids:
        for _ in range(200):
            prefix = generator.choice(IDS[:-1])[: generator.randrange(4)]
            for most in (2, 7, 1000):
                known = [i for i in offers(ids, prefix, most) if not i.startswith("x")]
                plain = offers(in_memory, prefix, most)
                assert known == plain or prefix == "", (prefix, most)


@given(st.lists(st.text("a b\\\"'$`!:=#~é", min_size=1, max_size=6), min_size=1, max_size=4), st.booleans())
def test_words_are_those_of_a_posix_shell(words: list[str], ended: bool) -> None:
    line = Line(shlex.join(words) + " " * ended)
    assert line.words + ([] if ended else [line.current]) == words
    assert line.quote == ""


@given(st.text("a b\\\"'$`!:=#(&é", min_size=1, max_size=8), st.sampled_from(["", '"', "'"]))
def test_what_is_quoted_reads_back(text: str, quote: str) -> None:
    line = Line(quote + quoted(text, quote), BREAKS)
    assert line.current == text
    assert line.words == []


def test_word_breaks_of_bash() -> None:
    texts = ("a:b:c", "--o=v", '"a:b', "x'a:b", r"a\:b", "a:")
    assert [Line(text, BREAKS).prefix_length for text in texts] == [4, 4, 0, 1, 0, 2]


def run(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "cos_cli", "__complete", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8", timeout=7200, check=False)


@pytest.mark.parametrize("line", ["cos ", "cos eval ", "cos eval compare ", "cos visualize overlay --store rois --example 07"])
def test_nothing_heavy_is_imported(line: str, place: Path) -> None:
    done = run(["bash", line, BREAKS], place)
    assert done.stdout.splitlines()[0] == "values"
    assert len(done.stdout.splitlines()) > 2
    loaded = {entry.rpartition("|")[2].strip().partition(".")[0] for entry in done.stderr.splitlines()}
    assert "cos_cli" in loaded
    assert not loaded & {"torch", "numpy", "PIL", "typer", "rich", "transformers", "pydantic", "dataclasses", "json"}


def test_names_that_steer_a_terminal_are_not_offered(place: Path, tmp_path: Path) -> None:
    for name in ("good", "bad\x1b[31m", "two\nlines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    assert run(["zsh", "eval", "compare", ""], tmp_path).stdout == "values\ngood\n"


def test_an_ascii_locale_changes_no_name(tmp_path: Path) -> None:
    (tmp_path / "été").mkdir()
    (tmp_path / "été" / "manifest.json").touch()
    assert run(["fish", "eval", "compare", ""], tmp_path, LC_ALL="C", PYTHONUTF8="0").stdout == "values\nété\n"


@pytest.fixture(scope="module", params=list(FILES))
def shell(request: pytest.FixtureRequest, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    if not there(request.param):
        pytest.skip(f"{request.param} is not installed (.ci/run installs it from the system's packages)")
    binaries = tmp_path_factory.mktemp("bin")
    (binaries / "cos").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m cos_cli "$@"\n')
    (binaries / "cos").chmod(0o755)
    environment = {"PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(tmp_path_factory.mktemp("home")), "LANG": "C.UTF-8"}
    opened = Shell(request.param, ROOT / "completions" / FILES[request.param], place, environment)
    yield opened
    opened.close()


def test_in_a_real_shell(shell: Shell) -> None:
    """One session, because a shell takes a second to start: each line with one TAB, as the shell would run it."""
    for line, expected in {
        "cos anno": ["annotate"],
        "cos infer --roi cen": ["infer", "--roi", "center"],
        "cos infer --roi=cen": ["infer", "--roi=center"],
        "cos infer --mod": ["infer", "--model"],
        "cos infer --model tu": ["infer", "--model", "tuned/last"],
        "cos eval compare runs/m": ["eval", "compare", "runs/my run"],
        'cos eval compare "runs/m': ["eval", "compare", "runs/my run"],
        "cos eval compare runs/my\\ r": ["eval", "compare", "runs/my run"],
        "cos infer --data a\\:b/th": ["infer", "--data", "a:b/the questions.json"],
        "cos infer --data=a\\:b/th": ["infer", "--data=a:b/the questions.json"],
        "cos infer --data 'a:b/th": ["infer", "--data", "a:b/the questions.json"],
        "cos visualize overlay --store rois --example 0123": ["visualize", "overlay", "--store", "rois", "--example", "0123"],
        "cos visualize overlay --store rois --example vqa:": [
            "visualize", "overlay", "--store", "rois", "--example", "vqa:7",
        ],
        "cos visualize overlay --store rois --example 149#q1": [
            "visualize", "overlay", "--store", "rois", "--example", "149#q1",
        ],
        "cos infer --roi none; cos eval po": ["infer", "--roi", "none"],
    }.items():  # fmt: skip
        assert shell.words(line)[1 : len(expected) + 1] == expected, line
    said = shell.shown("cos eval s")
    assert all(name in said for name in ("scenes", "scienceqa", "seed"))
    assert "pope" not in said


@pytest.mark.parametrize(("name", "start"), [("bash", ".bashrc"), ("zsh", ".zshrc"), ("fish", None)])
def test_install(name: str, start: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "a home"
    home.mkdir()
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SHELL", f"/bin/{name}")
    if start is not None:
        (home / start).write_text("alias x=y")
    assert main.run(["completion", "install", "--quiet"]) == 0
    first = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert main.run(["completion", "install", "--quiet"]) == 0
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == first
    assert (ROOT / "completions" / FILES[name]).read_bytes() in first.values()
    if start is not None:
        assert first[home / start].startswith(b"alias x=y\n")
    if not there(name):
        pytest.skip(f"installed, but {name} is not here to try it")
    asked = {"bash": "complete -p cos", "zsh": "print $_comps[cos]", "fish": "complete -C 'cos anno'"}[name]
    environment = {**os.environ, "TERM": "dumb", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([name, "-i", "-c", asked], env=environment, capture_output=True, text=True, timeout=7200, check=False)
    assert ("annotate" if name == "fish" else "_cos") in done.stdout


def test_install_without_a_home_or_a_known_shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert main.run(["completion", "install"]) == 3
    assert "bash, zsh and fish" in capsys.readouterr().err


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", "show", "zsh"]) == 0
    assert capsys.readouterr().out == (ROOT / "completions" / "_cos").read_text()
