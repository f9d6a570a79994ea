"""The command line: help, exit codes, which stream says what, and that no default of an option differs from its Config's."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
import typing
from pathlib import Path

import pytest
import typer
from PIL import Image

from cos_cli import foreign, infer, main
from cos_cli.command import Command, all_commands
from cos_cli.console import Session
from cos_cli.once import find_repeated, renamed
from cos_core import __version__
from cos_core.errors import FailuresError, InputError, LockedError, MissingError
from cos_core.geometry import Box
from cos_core.options import PANELS, REQUIRED, RUN, Files, check, check_number, option
from cos_core.system.extras import install
from cos_core.types import Prediction

ROOT = Path(__file__).resolve().parent.parent
POPE = ROOT / "tests" / "golden" / "pope"
COMMANDS = ["demo", "annotate", "train", "infer", "eval", "evidence", "visualize", "store", "model"]
COMMANDS += [f"store {name}" for name in ("info", "ls", "get", "stats", "verify", "merge", "export", "import")]
COMMANDS += [f"visualize {name}" for name in ("overlay", "stats", "report", "compare", "export")]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_an_example_and_says_nothing_on_stderr(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*command.split(), "--help"]) == 0
    said = capsys.readouterr()
    assert f"  cos {command}".rstrip() in said.out
    assert "Example" in said.out
    assert said.err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"cos {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "fly"),
        (["infer", "--model", "m", "--nonsense"], "--nonsense"),
        (["infer", "--model", "m"], "--image PICTURE --question TEXT"),
        (["infer", "--model", "m", "--image", "a.png"], "belong together"),
        (["infer", "--model", "m", "--image", "a.png", "--question", "q", "--data", "d"], "exclude"),
        (["eval", "pope", "--data", "d"], "either --predictions or --model"),
        (["eval", "pope", "--data", "d", "--predictions", "p", "--model", "m"], "either --predictions or --model"),
        (["eval", "pope", "--data", "d", "--model", "m"], "--out"),
        (["annotate", "--data", "d", "--images", "i", "--model", "m", "--out", "o", "--region", "round"], "round"),
        (["train", "--data", "d", "--images", "i", "--model", "m", "--out", "o", "--epochs", "0"], "epochs"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    streams = capsys.readouterr()
    assert said in streams.err
    assert streams.out == ""


def test_unknown_benchmark_is_3_and_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["eval", "popes", "--data", str(POPE), "--predictions", str(POPE / "predictions.jsonl")]) == 3
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.count("\n") == 1
    assert "did you mean 'pope'?" in streams.err


def test_benchmarks_are_listed_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["eval", "--list"]) == 0
    assert any(line.startswith("pope ") for line in capsys.readouterr().out.splitlines())


def test_scores_are_data_and_words_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "pope", "--data", str(POPE), "--predictions", str(POPE / "predictions.jsonl"), "--out", str(tmp_path)]
    assert main.run([*arguments, "--json"]) == 0
    streams = capsys.readouterr()
    result = json.loads(streams.out)
    expected = json.loads((POPE / "expected.json").read_text(encoding="utf-8"))
    assert result["metrics"]["random"]["f1"] == pytest.approx(expected["random"]["f1"], abs=1e-9)
    assert "eval complete" in streams.err
    assert main.run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pope, split coco; profile unknown; policy unknown; scorer official"
    assert lines[3].startswith("mean_f1")
    assert " to " in lines[3], "the headline has its interval"


MINE = """
from pathlib import Path
from cos_core.interfaces import BenchmarkData
from cos_core.types import Example, Score


class Mine:
    name = "mine"
    summary = "two questions"

    def load(self, root: Path) -> BenchmarkData:
        asked = [Example(str(i), "mine", f"{i}.png", "Is it red?", ("yes",)) for i in range(2)]
        return BenchmarkData("mine", "test", asked, root)

    def score(self, data, predictions):
        return [Score(e.id, float(e.id in predictions and predictions[e.id].answer in e.answers)) for e in data.examples]

    def metrics(self, data, scores):
        return {"accuracy": sum(s.value for s in scores) / len(scores)}


def build() -> Mine:
    return Mine()
"""


def test_a_benchmark_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What CONTRIBUTING promises."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"example_id": "0", "answer": "yes"}\n{"example_id": "1", "answer": "no"}\n', encoding="utf-8")
    arguments = ["eval", str(tmp_path / "mine.py"), "--data", str(tmp_path), "--predictions", str(answers), "--json"]
    assert main.run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == {"accuracy": 0.5}


ERRORS = [
    (InputError("the picture is torn"), 3, "cos: the picture is torn\n"),
    (MissingError("no GPU"), 4, "cos: no GPU\n"),
    (FailuresError("7 of 9 failed"), 5, "cos: 7 of 9 failed\n"),
    (LockedError("held by 12"), 75, "cos: held by 12\n"),
    (KeyboardInterrupt(), 130, "cos: interrupted; the same command continues where it stopped\n"),
    (OSError(28, "No space left on device", "/out/x"), 3, "cos: no space left on device: /out/x\n"),
    (
        ModuleNotFoundError("No module named 'torch'", name="torch"),
        4,
        f"cos: this needs the package 'torch'; install it with: {install('model')}\n",
    ),
    (
        ModuleNotFoundError("No module named 'detectron2.config'", name="detectron2.config"),
        4,
        f"cos: this needs the package 'detectron2'; install it with: {install('detect')}\n",
    ),
]


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(*_: object) -> None:
        raise error

    monkeypatch.setattr("cos_core.evaluate.stage.run", run)


SCORE = ["eval", "pope", "--data", str(POPE), "--predictions", str(POPE / "predictions.jsonl")]


@pytest.mark.parametrize(("error", "code", "sentence"), ERRORS, ids=lambda value: type(value).__name__)
def test_errors_become_a_sentence_and_a_code(
    error: BaseException, code: int, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _failing(monkeypatch, error)
    assert main.run(SCORE) == code
    streams = capsys.readouterr()
    assert streams.err == sentence
    assert streams.out == ""


@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), ModuleNotFoundError("x", name="cos_core.x"), OSError(5, "I/O")])
def test_a_defect_is_1_and_shown_in_full(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _failing(monkeypatch, error)
    assert main.run(SCORE) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "a defect of cos" in said.splitlines()[-1]


@pytest.mark.parametrize("how", ["option", "environment"])
def test_traceback_on_demand(how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _failing(monkeypatch, InputError("torn"))
    if how == "environment":
        monkeypatch.setenv("COS_TRACEBACK", "1")
    assert main.run([*SCORE, "--traceback"] if how == "option" else SCORE) == 3
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("cos: torn\n")


def test_a_message_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _failing(monkeypatch, InputError("file \x1b[2Jx\r"))
    assert main.run(SCORE) == 3
    assert "\x1b" not in capsys.readouterr().err


def test_a_closed_pipe_is_quiet() -> None:
    script = "from cos_cli.main import main; main()"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", script, *SCORE], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=7200, check=False
    )
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.slow
def test_a_corrupt_picture_is_one_sentence_and_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "photo.jpg"
    Image.effect_noise((64, 48), 50).convert("RGB").save(picture)
    picture.write_bytes(picture.read_bytes()[:400])
    assert main.run(["infer", "--model", "miniature", "--image", str(picture), "--question", "What colour is it?"]) == 3
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("cos: ")
    assert streams.err.count("\n") == 1
    assert "photo.jpg" in streams.err


@pytest.mark.slow
def test_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "photo.jpg"
    Image.effect_noise((64, 48), 50).convert("RGB").save(picture)
    arguments = [
        "infer",
        "--model",
        "miniature",
        "--image",
        str(picture),
        "--question",
        "What colour is it?",
        "--roi",
        "center",
    ]
    assert main.run([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["box"] == [0.25, 0.25, 0.75, 0.75] or answer["box"] == pytest.approx([0.25, 0.25, 0.75, 0.75], abs=1e-2)
    assert answer["policy"] == "center_crop"
    assert main.run(arguments) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:2]] == ["box", "status"]


def test_what_one_answer_looks_like() -> None:
    said = infer.describe(Prediction("a", "a red\x1b[0m car", Box(0.25, 0.5, 0.75, 1.0), "[...]", "ok"))
    assert said.splitlines()[0] == "box     [0.250, 0.500, 0.750, 1.000]  left, top, right, bottom"
    assert said.splitlines()[1] == "status  ok"
    assert said.splitlines()[2] == "answer  a red\\x1b[0m car"
    failed = infer.describe(Prediction("a", None, None, "over there", "unparsable", error="no usable box"))
    assert failed.splitlines() == ["box     none", "status  unparsable ('over there')", "answer  none (no usable box)"]


def test_every_option_says_what_it_is() -> None:
    """Help, a panel that there is, and bounds where it is a number; its default is one that its own bounds let pass."""
    wrong = []
    for command in all_commands(main.TREE):
        for each in command.options:
            number = each.kind in (int, float) and each.values == 1
            if not each.help or each.declared.panel not in PANELS or (number and None in (each.low, each.high)):
                wrong.append((command.words, each.name))
            if number and each.default is not None:
                check_number(each.name, each.default, each.low or 0, each.high or 0)
    assert wrong == []


def test_a_command_is_made_of_its_configs() -> None:
    """Typer's own tree is the reference: names, switches, arguments, and which values a mention takes."""
    for command in all_commands(main.TREE):
        leaf = command.typer()
        made = {each.name: each for each in leaf.params if each.name != "help"}
        assert list(made) == [each.name for each in command.options]
        for each in command.options:
            theirs = made[each.name]
            assert theirs.required == each.required
            if each.declared.argument:
                assert theirs.param_type_name == "argument"
                continue
            assert (set(each.names), set(each.off)) == (set(theirs.opts), set(theirs.secondary_opts))
            assert each.many == theirs.multiple
            assert each.values == (0 if theirs.is_flag else theirs.nargs)


@dataclasses.dataclass(frozen=True)
class _Group:
    size: int = option(3, "How large.", RUN, low=1, high=9)


@dataclasses.dataclass(frozen=True)
class _Config:
    out: Path = option(REQUIRED, "Where to.", RUN)
    files: Files | None = option(None, "From where.", RUN)
    kind: typing.Literal["a", "b"] = option("a", "Which.", RUN, aliases={"bee": "b"}, flag="--sort", formerly=("type",))
    settings: typing.Mapping[str, typing.Any] = option(dict, "More.", RUN, flag="--set", metavar="NAME=VALUE")
    fast: bool = option(True, "Quickly.", RUN)
    note: str = "no option"
    group: _Group = dataclasses.field(default_factory=_Group)

    def __post_init__(self) -> None:
        check(self)


def test_a_line_in_a_config_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    command = Command(("try",), lambda _session, config: found.append(config), (_Config,))
    leaf: typing.Any = command.typer()

    def called(*words: str) -> _Config:
        leaf.main(list(words), standalone_mode=False, obj=Session())
        return found[-1]

    assert called("--out", "o") == _Config(Path("o"))
    many = called("--out", "o", "--files", "x", "--files", "y", "--type", "bee", "--set", "a=1", "--no-fast", "--size", "4")
    assert many == _Config(Path("o"), (Path("x"), Path("y")), "b", {"a": 1}, False, group=_Group(4))
    with pytest.raises(typer.BadParameter):
        called("--out", "o", "--size", "10")
    with pytest.raises(InputError, match="size"):
        check(_Group(10))
    with pytest.raises(InputError, match="kind"):
        _Config(Path("o"), kind="c")  # type: ignore[arg-type]


def test_names_of_other_tools_answer_with_options_that_exist() -> None:
    ours = {name for command in all_commands(main.TREE) for each in command.options for name in (*each.names, *each.off)}
    for names, options, words in foreign.ROWS:
        assert options or words
        assert set(options.split()) <= ours, options
        assert not [name for name in names.split() if name != name.strip("-_").lower() or "_" in name]


@pytest.mark.parametrize(
    ("line", "ours"),
    [
        ("train --lr 1", "--learning-rate"),
        ("train --output_dir o", "--out"),
        ("train --model_name_or_path m", "--model"),
        ("train --per_device_train_batch_size 2", "--batch-size"),
        ("train --gradient-accumulation-steps 2", "--global-batch"),
        ("train --num-train-epochs 2", "--epochs"),
        ("train --bits 4", "--qlora"),
        ("train --policy-name x --max_steps 2", None),
        ("train --max_steps 2", "--max-steps"),
        ("infer --load-4bit", "--dtype"),
        ("infer --top_k 5", "--temperature"),
        ("infer --num-return-sequences 4", "--samples"),
        ("infer --conv-template v1", "--profile"),
        ("infer --prompt p", "--question"),
        ("infer --image-folder i", "--images"),
        ("infer --question-file q", "--data"),
        ("infer --answers-file a", "--out"),
        ("eval --answers-file a", "--predictions"),
        ("eval --tasks pope", "cos eval pope"),
        ("eval --log-samples", "scores.jsonl"),
        ("infer --overwrite", "--out"),
        ("infer --max_pixels 9", "--max-pixels"),
        ("infer --max-dynamic-patch 6", "--max-tiles"),
        ("eval --image_size 448", "--max-pixels"),
        ("infer --model-type qwen2_5_vl", "--family"),
        ("infer --trust-remote-code", "--engine openai"),
        ("infer --limit-mm-per-prompt image=2", "vllm serve"),
        ("eval --use-vllm", "--engine"),
        ("eval --use_cache x", "--reuse"),
        ("eval --judge m", "--judge-model"),
        ("eval --model_args pretrained=m", "--model"),
        ("infer --chat-template t.jinja", "--profile"),
        ("infer --nframe 8", "videos"),
    ],
)
def test_names_of_other_tools_are_answered_with_ours(line: str, ours: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(line.split()) == 2
    said = capsys.readouterr().err
    assert line.split()[1] in said
    assert ours is None or ours in said


def test_spellings_of_earlier_versions_are_accepted() -> None:
    known = next(command for command in all_commands(main.TREE) if command.words == ("train",)).options
    given = ["--policy", "none", "--workers=2", "--out", "--policy", "--", "--workers"]
    assert renamed(known, given) == ["--roi", "none", "--num-workers=2", "--out", "--policy", "--", "--workers"]


def scripted(tmp_path: Path) -> list[str]:
    """The first arguments of `cos infer` about one picture, with answers from a table."""
    table, picture = tmp_path / "table.json", tmp_path / "photo.png"
    inst1 = '<image>\nTo answer the question: "{}", where is the region of interest in the image?'
    inst2 = 'The region of interest in the image is <image>\n. Answer the question: "{}"'
    words = {"q": "red", "r": "blue"}
    answers = {inst1.format(q): "[0.250, 0.250, 0.750, 0.750]" for q in words} | {inst2.format(q): a for q, a in words.items()}
    table.write_text(json.dumps(answers))
    Image.new("RGB", (40, 30), "red").save(picture)
    return ["infer", "--engine", "scripted", "--model", str(table), "--image", str(picture)]


def test_a_conversation_about_one_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("q\nr\n\nq\n"))
    assert main.run([*scripted(tmp_path), "--chat"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "red\nblue\n"
    assert captured.err.count("box     [0.250") == 2


def test_an_answer_as_it_comes_and_as_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "shown.png"
    assert main.run([*scripted(tmp_path), "--question", "q", "--stream", "--save", str(saved)]) == 0
    assert capsys.readouterr().out.startswith("red\nbox     [0.250")
    assert Image.open(saved).width > 40


def test_answers_for_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a run that fails as well; nothing of it stays."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    words = scripted(tmp_path)
    ask = [*words[: words.index("--image")], "--data", str(tmp_path / "q.jsonl"), "--images", str(tmp_path), "--out", "-"]
    rows = [("1", Path(words[-1]).name), ("2", "gone.png"), ("3", "lost.png")]
    lines = [json.dumps({"question_id": name, "image": image, "text": "q"}) for name, image in rows]
    (tmp_path / "q.jsonl").write_text("\n".join(lines[:1]))
    there = set(tmp_path.iterdir())
    assert main.run(ask) == 0
    (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (answer["example_id"], answer["error"]) == ("1", None)
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    assert main.run(ask) == 5, "most of it failed"
    out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["example_id"], each["error"] is None) for each in out] == [("1", True), ("2", False), ("3", False)]
    assert set(tmp_path.iterdir()) == there
    assert main.run([*ask, "--json"]) == 2
    assert not Path("-").exists()


def test_show_draws_in_a_terminal_and_elsewhere_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    ask = [*scripted(tmp_path), "--question", "q", "--show"]
    ours, theirs = os.openpty()
    drawn = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while True:
                drawn.extend(os.read(ours, 1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    with open(theirs, "w") as terminal, monkeypatch.context() as patched:  # noqa: PTH123
        patched.setattr("sys.stderr", terminal)
        assert main.run(ask) == 0
    reader.join()
    os.close(ours)
    assert drawn.count("\N{UPPER HALF BLOCK}".encode()) > 200
    assert not list(tmp_path.glob("*overlay*"))
    assert main.run(ask) == 0
    assert Image.open(tmp_path / "photo-overlay.png").width > 40
    assert main.run(["infer", "--model", "m", "--data", "d", "--images", "i", "--out", "o", "--show"]) == 2


def one_valued() -> list[tuple[tuple[str, ...], str, int]]:
    """(command, option, words it takes) of every option that takes one value."""
    return [
        (command.words, parameter.names[0], parameter.values)
        for command in all_commands(main.TREE)
        for parameter in command.options
        if parameter.names and parameter.values and not parameter.many
    ]


def test_an_option_given_twice_is_refused_by_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    found = one_valued()
    assert len(found) > 150
    assert {words[0] for words, _, _ in found} == {
        "annotate", "train", "infer", "eval", "visualize", "store", "model", "demo", "config", "doctor",
        "evidence", "data",
    }  # fmt: skip
    for words, name, count in found:
        known = next(c for c in all_commands(main.TREE) if c.words == words).options
        values = ["1"] * count
        assert find_repeated(known, [name, *values]) is None
        for given in (
            [name, *values, "x", name, *values],
            [f"{name}=1", f"{name}=1"] if count == 1 else [name, *values] * 2,
        ):
            said = find_repeated(known, given)
            assert said == f"{name} is given twice, and takes one value", (words, name)
    for words, name, count in {one[0][0]: one for one in found}.values():
        assert main.run([*words, name, *["1"] * count, name, *["1"] * count]) == 2, words
        assert f"{name} is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("infer --question --seed --seed 1", None),
        ("infer --seed 1 -- --seed 2", None),
        ("infer -q --quiet --json --json", None),
        ("infer --reuse --no-reuse", "--reuse and --no-reuse exclude each other"),
        ("infer --data a --data b --seed 1", None),
        ("train --detector-option a=1 --detector-option b=2", None),
        ("infer --seed=1 --seed 1", "--seed is given twice"),
        ("config show train --seed 1", None),
    ],
)
def test_what_counts_as_given_twice(line: str, refused: str | None) -> None:
    name, *words = line.split()
    known = next(c for c in all_commands(main.TREE) if c.words[0] == name).options
    found = find_repeated(known, words, interspersed=name != "config")
    assert found == refused or (refused is not None and found is not None and found.startswith(refused))


def test_one_file_given_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a.json")
    given = ["--data", str(tmp_path / "a.json"), "--data", str(tmp_path / "link"), "--images", str(tmp_path)]
    for command in ("annotate", "train", "infer"):
        assert main.run([command, "--model", "m", "--out", str(tmp_path / "o"), *given]) == 2
        assert "twice" in capsys.readouterr().err


def test_what_a_wrong_command_line_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (600, 400)).save(tmp_path / "p.png")
    overlay = ["visualize", "overlay", "--image", str(tmp_path / "p.png"), "--out", str(tmp_path / "o.png")]
    for arguments, code, part in (
        ([*overlay, "--box", "120", "100", "300", "200"], 3, "pixels of 600x400 that is 0.2 0.25 0.5 0.5"),
        ([*overlay, "--box", "600", "100", "900", "200"], 3, "a box needs"),
        (["visualize", "overlay", "--box", "0.1", "0.2", "0.3", "--out", "x.png"], 2, "it takes 4 values"),
        (["infer", "--model", "miniature"], 2, "\n  --data FILE --images FOLDER --out FILE"),
        (["infer", "--bo\ncos: done"], 2, "--bo\\x0acos: done"),
        (["store", "info", "a\ncos: done"], 3, "a\\ncos: done"),
    ):
        assert main.run(arguments) == code, arguments
        assert part in capsys.readouterr().err


def test_a_defect_is_told_without_lines_of_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> None:
        try:
            raise ValueError("first\ncos: done \x1b[2J")
        except ValueError as error:
            raise RuntimeError("second\ncos: done") from error

    monkeypatch.setattr(main, "app", broken)
    assert main.run([]) == 1
    said = capsys.readouterr().err
    assert "ValueError: first\\ncos: done \\x1b[2J\n" in said
    assert "direct cause" in said
    assert not any(line.startswith("cos: done") for line in said.splitlines())
