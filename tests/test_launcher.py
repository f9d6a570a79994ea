"""How `cos train` hands its command line to DeepSpeed's launcher, and how a stop reaches its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cos_cli import launcher
from cos_core.errors import InputError, MissingError
from cos_core.files import assets
from cos_core.interfaces import SilentReporter
from cos_core.training import TrainConfig


def test_each_process_gets_the_command_without_the_launchers_words() -> None:
    given = ["train", "--data", "d", "--processes", "8", "--hostfile=h", "--deepspeed", "zero3", "--check", "full"]
    assert launcher._arguments(given) == ["train", "--data", "d", "--deepspeed", "zero3", "--check", "off"]


def test_a_process_under_a_launcher_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert launcher.wanted(2, None)
    assert launcher.wanted(None, Path("hosts"))
    assert not launcher.wanted(None, None)
    monkeypatch.setenv("RANK", "0")
    assert not launcher.wanted(2, None)


def test_a_hostfile_is_read_before_a_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# two machines\nnode-a slots=8\n\nnode-b  slots=4  # half of it\n")
    assert launcher.machines(hosts) == {"node-a": 8, "node-b": 4}
    config = TrainConfig(tmp_path / "d", tmp_path, "m", tmp_path / "out", check="off")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="install pdsh"):
        launcher.launch(config, None, hosts, SilentReporter())
    for text, said in (
        ("node-a 8", r"hosts:1: a line is 'HOST slots=N'"),
        ("a slots=1\na slots=2", "hosts:2: a"),
        ("#", "no mac"),
    ):
        hosts.write_text(text)
        with pytest.raises(InputError, match=said):
            launcher.launch(config, None, hosts, SilentReporter())
    with pytest.raises(InputError, match="cannot be read"):
        launcher.launch(config, None, tmp_path / "none", SilentReporter())


def test_a_signal_becomes_a_stop_file_and_the_code_is_kept(tmp_path: Path) -> None:
    """The child stands for the launcher: it waits for the file and then fails as an interrupted run does."""
    stop = tmp_path / "out" / ".stop"
    child = (
        "import os, pathlib, signal, sys, time\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        f"while not pathlib.Path({str(stop)!r}).exists(): time.sleep(0.02)\n"
        "sys.exit(130)"
    )
    runner = (
        "import sys; from pathlib import Path; from cos_cli import launcher\n"
        f"print(launcher._wait([sys.executable, '-c', {child!r}], {{}}, Path({str(stop)!r})), flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", runner], capture_output=True, text=True, timeout=7200, check=True)
    assert done.stdout.strip() == "(130, True)"
    assert stop.exists()


def test_a_failing_process_gives_its_code(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    environment = dict(os.environ)
    assert launcher._wait([sys.executable, "-c", "raise SystemExit(3)"], environment, tmp_path / ".stop") == (3, False)
    assert signal.getsignal(signal.SIGTERM) is before


SRUN = """#!/bin/sh
printf '%s\\n' "$@" > "$HERE/srun"
case "$WAITS" in yes) while [ ! -e "$OUT/.stop" ]; do sleep 0.02; done; exit 130 ;; esac
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$HERE/scontrol"
case "$1" in show) echo node-1; echo node-2 ;; esac
"""
COS = """#!/bin/sh
printf '%s\\n' "$@" > "$HERE/cos"
exit "${CODE:-0}"
"""


def test_the_slurm_file(tmp_path: Path) -> None:
    """Its body with stand-ins for slurm: what it starts, that bad data starts nothing, and that a warning becomes a requeue."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("my-cos", COS)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    paths = {"DATA": "my data.json", "IMAGES": "i", "STORE": "s", "OUT": str(tmp_path / "out")}
    slurm = {"SLURM_NNODES": "2", "SLURM_GPUS_PER_NODE": "4", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[1-2]"}
    own = {"HERE": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}", "COS": "my-cos", "OPTIONS": "--seed 3"}
    environment = {**paths, **slurm, **own}
    script = ["bash", str(assets.template("jobs", "train.slurm"))]
    words = ["train", "--model", "llava-hf/llava-1.5-7b-hf", "--data", "my data.json", "--images", "i", "--store", "s"]
    words += ["--out", str(tmp_path / "out"), "--deepspeed", "zero3", "--seed", "3"]

    assert subprocess.run(script, env={**environment, "CODE": "3"}, check=False).returncode == 3
    assert (tmp_path / "cos").read_text().splitlines() == [*words, "--check-only"]
    assert not (tmp_path / "srun").exists(), "bad data takes no GPU"

    assert subprocess.run(script, env=environment, check=False).returncode == 0
    started = (tmp_path / "srun").read_text().splitlines()
    assert started[:5] == ["torchrun", "--nnodes", "2", "--nproc-per-node", "4"]
    assert started[started.index("--rdzv-endpoint") + 1] == "node-1:29500"
    assert started[started.index("-m") :] == ["-m", "cos_cli", *words, "--check", "off"]

    (tmp_path / "srun").unlink()
    process = subprocess.Popen(script, env={**environment, "WAITS": "yes"})
    while not (tmp_path / "srun").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=7200) != 0
    assert (tmp_path / "out" / ".stop").exists()
    assert (tmp_path / "scontrol").read_text().splitlines()[-1] == "requeue 7"
