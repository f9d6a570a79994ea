"""Settings files: every stage reads them, strictly; `cos config` writes them and says where each value comes from."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest

from cos_cli import config, main, settings
from cos_cli.command import all_commands
from cos_core.files import assets

ROOT = Path(__file__).resolve().parent.parent
POPE = ROOT / "tests" / "golden" / "pope"
STAGES = {"annotate", "train", "infer", "demo", "eval run", "eval compare", "eval report"}
STAGES |= {f"visualize {name}" for name in ("overlay", "stats", "report", "compare", "export")}
COMMANDS = [command for command in all_commands(main.TREE) if config.takes_settings(command)]


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, tuple[object, str]]:
    """Setting -> (value, where from)."""
    assert main.run(["config", "show", "--json", *map(str, arguments)]) == 0
    return {name: (each["value"], each["from"]) for name, each in json.loads(capsys.readouterr().out)["settings"].items()}


def test_every_stage_takes_settings() -> None:
    assert {" ".join(command.words) for command in COMMANDS} >= STAGES


def test_where_each_setting_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    lines = ('data = "d.json"', "limit = 7", "extend = 1", 'policy = "center-crop"', 'detector_option = ["a=1", "b=2"]')
    file.write_text("\n".join(("[annotate]", *lines, "threshold = 0.25")))
    monkeypatch.setenv("COS_TRACEBACK", "1")
    found = shown(capsys, "annotate", "--config", file, "--limit", 3, "--images", "i")
    assert found["limit"] == (3, "flag")
    assert found["images"] == ("i", "flag")
    assert found["data"] == ("d.json", "file")
    assert found["extend"] == (1, "file")
    assert found["roi"] == ("center_crop", "file"), "by its name of 0.1.0, and read as on the command line"
    assert found["detector_option"] == (["a=1", "b=2"], "file")
    assert found["threshold"] == (0.25, "file"), "an option with a parser of its own"
    assert found["traceback"] == (True, "environment")
    assert found["batch_images"] == (8, "default")
    assert found["model"] == (None, "nowhere yet (required)")


def test_the_environment_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f.toml").write_text("[infer]\ntraceback = false")
    monkeypatch.setenv("COS_TRACEBACK", "1")
    assert shown(capsys, "infer", "--config", tmp_path / "f.toml")["traceback"] == (True, "environment")


def test_an_unnamed_usual_command_and_arguments_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "eval.toml"
    file.write_text(
        f'[eval]\nbenchmarks = ["pope"]\ndata = "{POPE}"\npredictions = "{POPE}/predictions.jsonl"\n'
        "json = true\nquiet = true\n[eval.compare]\nflips = 0\n[visualize.stats]\nout = 'o'\n"
    )
    assert main.run(["eval", "--config", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["random"]["f1"] > 0
    assert shown(capsys, "eval", "compare", "--config", file, "a", "b")["flips"] == (0, "file")
    assert shown(capsys, "visualize", "stats", "--config", file)["out"] == ("o", "file")
    assert shown(capsys, "eval", "--config", file, "mme")["benchmarks"] == (["mme"], "flag")


def test_a_home_in_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "f.toml").write_text("[infer]\nout = '~/answers.jsonl'\nquestion = '~'")
    found = shown(capsys, "infer", "--config", tmp_path / "f.toml")
    assert (found["out"][0], found["question"][0]) == ("/home/me/answers.jsonl", "~")


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("annotate", "[annotate]\npolicy = 'none'\nroi = 'none'", "'roi'"),
        ("train", "[train]\nworkers = -1", "at least 0"),
        ("train", "[train]\nlr = 1e-4", "--learning-rate"),
        ("annotate", "[annotate]\nlimits = 3", "no option 'limits'; did you mean 'limit'?"),
        (
            "annotate",
            "[annotate]\nlimit = '3'",
            "limit of cos annotate is a whole number at least 1 and at most 1,000,000,000, not '3'",
        ),
        ("annotate", "[annotate]\nlimit = true", "limit of cos annotate is a whole number"),
        ("annotate", "[annotate]\nlimit = 0", "at most 1,000,000,000, not 0"),
        ("visualize report", "[visualize.report]\nmin_area = 1.5", "a number at least 0 and at most 1, not 1.5"),
        ("annotate", "[annotate]\nregion = 'round'", "one of 'top1', 'component', 'union', not 'round'"),
        ("annotate", "[annotate]\nthreshold = 'otto'", "threshold of cos annotate"),
        ("annotate", "[annotate]\nthreshold = [1]", "a text in quotes or a number"),
        ("annotate", "[annotate]\ndata = 3", "a path in quotes, not 3"),
        ("annotate", "[annotate]\ndetector_option = 'a=1'", "a list of values, each a text in quotes"),
        ("annotate", "[annotate]\n[annotate.deep]\nx = 1", "no option 'deep'"),
        ("infer", "[infer]\nreuse = 'no'", "true or false, not 'no'"),
        ("infer", "[infer]\nno_reuse = true", "no option 'no_reuse'"),
        ("visualize overlay", "[visualize.overlay]\nbox = [0.1, 0.2]", "a list of 4 values, each a number"),
        ("visualize overlay", "[visualise.overlay]\nlongest = 64", "did you mean 'visualize'?"),
        ("visualize overlay", "[visualize.stats]\nout = 'x'", "no table [visualize.overlay]"),
        ("eval", "[evla]\nseed = 1", "'evla' is no table of a command's options; did you mean 'eval'?"),
        ("eval", "[eval]\nfail_under = 'a=1'", "a list of values"),
        ("demo", "[demo\n", "cannot be read"),
    ],
)
def test_what_a_file_cannot_say_is_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, text: str, said: str
) -> None:
    (tmp_path / "own.toml").write_text(text)
    assert main.run([*command.split(), "--config", str(tmp_path / "own.toml")]) == 3
    streams = capsys.readouterr()
    assert said in streams.err
    assert f"{tmp_path}/own.toml" in streams.err
    assert streams.err.count("\n") == 1
    assert streams.out == ""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.words))
def test_a_written_file_with_every_line_on_is_accepted(command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All settings at once, as `init` writes them: the keys exist, the samples have the right type."""
    file = tmp_path / "all.toml"
    text = config.template(command)
    # "..." is no sample of what has a grammar of its own (the shard "2/8"); prose has no key before an equals sign.
    own = tuple(f'# {p.key} = "..."' for p in config.settable(command) if p.declared.parser is not None)
    if command.words != ("train",):
        assert tomllib.loads(text)
        on = [line.removeprefix("# ") if " = " in line and not line.startswith(own) else line for line in text.splitlines()]
        text = "\n".join(on)
    file.write_text(text)
    found = shown(capsys, *command.words, "--config", file)
    assert sum(source == "file" for _, source in found.values()) > 2
    if command.words != ("train",):
        assert sum(source != "file" for _, source in found.values()) == sum(line.startswith(own) for line in on if own)
        for parameter in config.settable(command):
            if parameter.default not in (None, ()):
                assert found[parameter.key][0] == config.plain(parameter.default), parameter.key


def test_what_init_writes_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.toml"
    assert main.run(["config", "init", "infer", "--out", str(out)]) == 0
    assert shown(capsys, "infer", "--config", out) == shown(capsys, "infer")
    assert main.run(["config", "init", "infer", "--out", str(out)]) == 3
    assert "is there already" in capsys.readouterr().err


def test_init_of_training_copies_the_shipped_files(capsys: pytest.CaptureFixture[str]) -> None:
    for like in ("paper", "released"):
        assert main.run(["config", "init", "train", "--like", like]) == 0
        assert capsys.readouterr().out.rstrip("\n") == assets.template("config", f"train-{like}.toml").read_text().rstrip("\n")


def test_commands_without_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["show", "anotate"], ["init", "doctor"]):
        assert main.run(["config", *arguments]) == 3
    assert "did you mean 'annotate'?" in capsys.readouterr().err
    assert main.run(["config", "init", "infer", "extra"]) == 2
    assert main.run(["config", "show", "infer", "--nonsense"]) == 2


@pytest.mark.parametrize(
    ("written", "meant"), [('"a.json"', "a.json"), ('["a.json"]', "a.json"), ('["a.json", "b.json"]', ["a.json", "b.json"])]
)
def test_data_is_one_file_or_several(written: str, meant: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    for command in ("annotate", "train", "infer"):
        path.write_text(f"[{command}]\ndata = {written}\n")
        assert main.run(["config", "show", "--json", command, "--config", str(path)]) == 0
        assert json.loads(capsys.readouterr().out)["settings"]["data"]["value"] == meant


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.toml", None, "there is no settings file"),
        ("bom.toml", b"\xef\xbb\xbf[annotate]\nlimit = nan\n", "a whole number at least 1"),
        ("nul.toml", b"[annotate]\n#\0\n", "NUL"),
        ("utf16.toml", "[annotate]".encode("utf-16"), "save it as UTF-8"),
        ("latin.toml", b"[annotate]\n# \xe9\n", "not UTF-8"),
        ("long.toml", b"#" * (settings.MAX_BYTES + 1), "larger than"),
        ("deep.toml", b"[annotate]\nx = " + b"[" * 100_000, "cannot be read"),
        ("nan.toml", b"[annotate]\nextend = nan\n", "at most 10"),
        ("words.toml", b"[annotate]\nextend = '\\u001b[2J'\n", "a number at least 0"),
        ("", b"", "directory"),
        ("binary.toml", b"\xff\xfe\x00", "save it as UTF-8"),
    ],
)
def test_what_is_no_settings_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, said: str
) -> None:
    if content:
        (tmp_path / name).write_bytes(content)
    assert main.run(["annotate", "--config", str(tmp_path / name)]) == 3
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1


def test_pipes_and_devices_are_no_settings_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path in ("/dev/zero", str(tmp_path / "pipe.toml")):
        assert main.run(["annotate", "--config", path]) == 3
        assert "not a file" in capsys.readouterr().err


def test_short_names_of_number_formats(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[infer]\ndtype = "bf16"\n')
    command, rest = config.find(main.TREE, ["infer", "--config", str(tmp_path / "own.toml")])
    assert config.effective(main.TREE, command, rest)["dtype"]["value"] == "bfloat16"
