"""Left alone: the job files are run as they stand, and a night of starts that overlap, die and meet a full disk."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from cos_core import assets, manifest
from cos_core.types import Example

COUNT = 24
ENGINE = """
import time
from cos_core.interfaces import Reply

class Slow:
    name = "slow"
    def generate(self, requests):
        time.sleep(0.1 * len(requests))
        return [Reply("red") for _ in requests]

def build(**options):
    return Slow()
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A benchmark of COUNT questions, a model that takes its time, and `cos` as a program."""
    data = tmp_path / "benchmarks" / "scenes"
    (data / "images").mkdir(parents=True)
    for i in range(COUNT // 2):
        Image.new("RGB", (8, 6), "red").save(data / "images" / f"{i}.png")
    rows = [Example(str(i), "scenes", f"{i // 2}.png", f"What colour is {i}?", ("red",)) for i in range(COUNT)]
    (data / "questions.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "slow.py").write_text(ENGINE)
    cos = tmp_path / "cos"
    cos.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from cos_cli.main import main; main()" "$@"\n')
    cos.chmod(0o755)
    return tmp_path


def settings(place: Path, batch: int = 8) -> dict[str, str]:
    """What a user edits in a job file."""
    return {
        "COS": str(place / "cos"),
        "BENCHMARKS": "scenes",
        "DATA": str(place / "benchmarks"),
        "MODEL": str(place / "model.json"),
        "RUNS": str(place / "runs"),
        "OPTIONS": f"--engine {place / 'slow.py'} --roi none --batch-size {batch}",
    }


def shell(command: str, place: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **settings(place), **more}
    return subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_crontab(place: Path) -> None:
    lines = [line for line in assets.template("jobs", "eval.crontab").read_text().splitlines() if line and line[0] != "#"]
    names = {line.partition("=")[0] for line in lines[:-1]}
    assert names == {"SHELL", *settings(place)}
    when, command = re.fullmatch(r"((?:\S+ ){4}\S+)\s+(.*)", lines[-1]).groups()  # type: ignore[union-attr]
    assert when == "17 1 * * *"
    assert "%" not in command, "cron would take it for a line end"
    done = shell(command, place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads((place / "runs" / "nightly.json").read_text())["metrics"]["accuracy"] == 1.0
    assert manifest.read(place / "runs" / "latest").status == "complete"


def test_the_systemd_unit(place: Path) -> None:
    text = assets.template("jobs", "eval.service").read_text()
    names = set(re.findall(r'^Environment="(\w+)=', text, re.MULTILINE))
    assert names == set(settings(place))
    assert re.search(r"^SuccessExitStatus=75 130$", text, re.MULTILINE)
    program, flag, command = shlex.split(re.search(r"^ExecStart=(.*)$", text, re.MULTILINE).group(1))  # type: ignore[union-attr]
    assert (program, flag) == ("/bin/sh", "-c")
    done = shell(command, place)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["ok"] == COUNT
    timer = assets.template("jobs", "eval.timer").read_text()
    assert "OnCalendar=*-*-* 01:17:00" in timer
    if shutil.which("systemd-analyze"):
        shown = subprocess.run(["systemd-analyze", "calendar", "*-*-* 01:17:00"], capture_output=True, check=False)
        assert shown.returncode == 0


def test_the_slurm_file(place: Path) -> None:
    script = shlex.quote(str(assets.template("jobs", "eval.slurm")))
    own = {"OUT": str(place / "out"), "PARTS": "2"}
    assert shell(f"bash {script}", place, **own).returncode == 3, "nothing is answered yet"
    for part in ("1", "2"):
        done = shell(f"bash {script}", place, **own, SLURM_ARRAY_TASK_ID=part)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    scored = shell(f"bash {script}", place, **own)
    assert json.loads(scored.stdout)["counts"]["ok"] == COUNT


def test_a_night_of_twenty_starts(place: Path) -> None:
    out, latest = place / "runs" / "nightly", place / "runs" / "latest"
    answers, codes = out / "predictions.jsonl", []
    made = settings(place, batch=1)
    words = ["eval", "scenes", "--data", made["DATA"], "--model", made["MODEL"], *made["OPTIONS"].split()]
    command = [made["COS"], *words, "--out", str(out), "--latest", str(latest), "--json", "-q"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(*more: str, before: str = "") -> subprocess.Popen[str]:
        line = f"{before} exec {shlex.join([*command, *more])}"
        return subprocess.Popen(["sh", "-c", line], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def answered() -> int:
        return answers.read_bytes().count(b"\n") if answers.exists() else 0

    def end(process: subprocess.Popen[str]) -> str:
        said = process.communicate(timeout=300)
        codes.append(process.returncode)
        whole = not latest.is_symlink() or manifest.read(latest).status == "complete"
        assert whole, "latest is always a whole run"
        return said[1]

    for _ in range(5):  # killed in the middle, each after one more answer at least
        before, process = answered(), start()
        while answered() <= before and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        end(process)
    before, first = answered(), start()
    while answered() <= before:
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # it holds the lock while three others come
    for process in [start() for _ in range(3)]:
        assert "another process" in end(process)
    first.send_signal(signal.SIGCONT)
    first.send_signal(signal.SIGINT)
    assert "the same command continues" in end(first)
    assert "cannot be written" in end(start(before="ulimit -f 1;"))  # a disk with room for 512 bytes
    (out / ".run.lock").write_text("999999\n")
    (out / "predictions.jsonl.lock").write_text("999999\n")
    assert "time is up" in end(start("--max-runtime", "0"))
    for _ in range(8):
        end(start())
    assert "below" in end(start("--fail-under", "accuracy=1.1"))
    assert codes == [-9] * 5 + [75] * 3 + [130, 3, 130] + [0] * 8 + [6]
    ids = [json.loads(line)["example_id"] for line in answers.read_text().splitlines()]
    assert sorted(ids, key=int) == [str(i) for i in range(COUNT)], "every question once"
    assert manifest.read(latest).counts["ok"] == COUNT
