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
from chat_server import Behaviour, serving
from PIL import Image

from cos_core.files import assets, manifest
from cos_core.types import Example

COUNT = 24
ENGINE = """
import json
import os
import signal
import time
from pathlib import Path
from cos_core.interfaces import Reply

class Held:
    name = "held"
    def __init__(self, hold, says, dies_after=None):
        self.hold, self.says, self.dies_after, self.calls = hold, says, dies_after, 0
    def generate(self, requests):
        if self.calls == self.dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        while self.calls and self.hold.exists():
            time.sleep(0.02)
        self.calls += 1
        return [Reply(self.says) for _ in requests]

def build(model, **options):
    return Held(Path(model).with_name("hold"), **json.loads(Path(model).read_text()))
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A benchmark of COUNT questions, an engine that stops after one batch while the file `hold` is there, and `cos`."""
    data = tmp_path / "benchmarks" / "scenes"
    (data / "images").mkdir(parents=True)
    for i in range(COUNT // 2):
        Image.new("RGB", (8, 6), "red").save(data / "images" / f"{i}.png")
    rows = [Example(str(i), "scenes", f"{i // 2}.png", f"What colour is {i}?", ("red",)) for i in range(COUNT)]
    (data / "questions.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    learn(tmp_path, "red")
    (tmp_path / "held.py").write_text(ENGINE)
    cos = tmp_path / "cos"
    cos.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from cos_cli.main import main; main()" "$@"\n')
    cos.chmod(0o755)
    return tmp_path


def learn(place: Path, says: str, **more: int) -> None:
    """Puts a model that gives this answer at the path of the one before; with `dies_after`, it kills its process."""
    (place / "model.json").write_text(json.dumps({"says": says, **more}))


def settings(place: Path, batch: int = 8) -> dict[str, str]:
    """What a user edits in a job file."""
    return {
        "JOB": str(assets.template("jobs", "nightly.sh")),
        "COS": str(place / "cos"),
        "BENCHMARKS": "scenes",
        "DATA": str(place / "benchmarks"),
        "MODEL": str(place / "model.json"),
        "RUNS": str(place / "runs"),
        "OPTIONS": f"--engine {place / 'held.py'} --roi none --batch-size {batch}",
    }


def shell(command: str, place: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **settings(place), **more}
    return subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=7200, check=False)


def crontab() -> str:
    """The command of the crontab, whose variables are those that `settings` gives."""
    lines = [line for line in assets.template("jobs", "eval.crontab").read_text().splitlines() if line and line[0] != "#"]
    names = {line.partition("=")[0] for line in lines[:-1]}
    assert names == {"SHELL", "MAILTO", *settings(Path())}
    when, command = re.fullmatch(r"((?:\S+ ){4}\S+)\s+(.*)", lines[-1]).groups()  # type: ignore[union-attr]
    assert when == "17 1 * * *"
    assert "%" not in command, "cron would take it for a line end"
    return command


def accuracy(place: Path, night: str) -> float:
    return json.loads((place / "runs" / f"{night}.json").read_text())["metrics"]["accuracy"]


def test_four_nights_of_the_crontab(place: Path) -> None:
    """The same model, another one at the same path, a worse one, and a night that runs out of time: who hears of what."""
    command, runs = crontab(), place / "runs"
    out_of_time = {"OPTIONS": settings(place)["OPTIONS"] + " --max-runtime 0"}

    first = shell(command, place, NIGHT="2026-11-01")
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
    assert (runs / "accepted").resolve() == (runs / "latest").resolve() == (runs / "2026-11-01").resolve()
    assert accuracy(place, "2026-11-01") == 1.0

    stopped = shell(command, place, NIGHT="2026-11-02", **out_of_time)
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (130, "", "")
    same = shell(command, place, NIGHT="2026-11-03")
    assert (same.returncode, same.stdout, same.stderr) == (0, "", "")
    assert (runs / "latest").resolve() == (runs / "2026-11-02").resolve(), "the night that was stopped is finished"
    assert manifest.read(runs / "2026-11-02").counts["ok"] == COUNT
    assert not (runs / "2026-11-03").exists()
    assert "baseline: accuracy" in (runs / "2026-11-02.log").read_text()

    learn(place, "red", dies_after=2)
    killed = shell(command, place, NIGHT="2026-11-03")
    assert killed.returncode == 137
    assert "2026-11-03 ended with code 137" in killed.stdout
    learn(place, "blue")
    worse = shell(command, place, NIGHT="2026-11-04")
    assert worse.returncode == 6
    assert "accuracy" in worse.stdout
    assert "2026-11-04 ended with code 6" in worse.stdout, "what the former model left half done is given up"
    assert (runs / "accepted").resolve() == (runs / "2026-11-01").resolve()
    assert accuracy(place, "2026-11-04") == 0.0


def test_a_night_without_its_server(place: Path) -> None:
    command, runs = crontab(), place / "runs"
    with serving(Behaviour(text="red")) as address:
        told = {"MODEL": "served", "OPTIONS": f"--engine openai --server {address} --roi none --concurrency 24"}
        assert shell(command, place, NIGHT="2026-11-01", **told).returncode == 0
    away = shell(command, place, NIGHT="2026-11-02", **told)
    assert away.returncode in (4, 5), away.stdout
    assert "2026-11-02 ended with code" in away.stdout
    assert (runs / "latest").resolve() == (runs / "2026-11-01").resolve()
    with serving(Behaviour(text="red"), int(address.rpartition(":")[2].partition("/")[0])):
        again = shell(command, place, NIGHT="2026-11-02", **told)
    assert (again.returncode, again.stdout) == (0, ""), again.stdout
    assert accuracy(place, "2026-11-02") == 1.0
    assert manifest.read(runs / "2026-11-02").counts["ok"] == COUNT, "the same command asked again"


def test_the_systemd_unit(place: Path) -> None:
    text = assets.template("jobs", "eval.service").read_text()
    names = set(re.findall(r'^Environment="(\w+)=', text, re.MULTILINE))
    assert names == set(settings(place))
    assert re.search(r"^SuccessExitStatus=75 130$", text, re.MULTILINE)
    command = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE).group(1)  # type: ignore[union-attr]
    done = shell(command.replace("${JOB}", "$JOB"), place, NIGHT="2026-11-01")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads((place / "runs" / "2026-11-01.json").read_text())["counts"]["ok"] == COUNT
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


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_night_of_twenty_starts(place: Path) -> None:
    out, latest, hold = place / "runs" / "nightly", place / "runs" / "latest", place / "hold"
    hold.touch()
    answers, codes = out / "predictions.jsonl", []
    made = settings(place, batch=1)
    words = ["eval", "scenes", "--data", made["DATA"], "--model", made["MODEL"], *made["OPTIONS"].split()]
    command = [made["COS"], *words, "--out", str(out), "--latest", str(latest), "--json", "-q"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(*more: str, before: str = "") -> subprocess.Popen[str]:
        line = f"{before} exec {shlex.join([*command, *more])}"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # Under a shell that started the tests in the background, SIGINT would be ignored.
        return subprocess.Popen(["sh", "-c", line], env=environment, **pipes, preexec_fn=heed_interrupts)

    def answered() -> int:
        return answers.read_bytes().count(b"\n") if answers.exists() else 0

    def end(process: subprocess.Popen[str]) -> str:
        said = process.communicate(timeout=7200)
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
    hold.unlink()
    for _ in range(8):
        end(start())
    assert "below" in end(start("--fail-under", "accuracy=1.1"))
    assert codes == [-9] * 5 + [75] * 3 + [130, 3, 130] + [0] * 8 + [6]
    ids = [json.loads(line)["example_id"] for line in answers.read_text().splitlines()]
    assert sorted(ids, key=int) == [str(i) for i in range(COUNT)], "every question once"
    assert manifest.read(latest).counts["ok"] == COUNT
