"""`cos train` in several processes, by DeepSpeed's own launcher: it starts the same command once for each GPU.

The data is examined here, before any process takes a GPU. A signal to this process asks all of them, on all machines, to write
a checkpoint and stop, by a file in the output folder that they look for after each step.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cos_core.errors import InputError, MissingError
from cos_core.system.extras import install

if TYPE_CHECKING:
    from cos_core.interfaces import Reporter
    from cos_core.training import TrainConfig

_LAUNCH_ONLY = ("--processes", "--hostfile", "--check")
_HOST = re.compile(r"(\S+)\s+slots=([1-9]\d*)")


def inside() -> bool:
    """Whether a launcher (deepspeed, torchrun, slurm's srun with torchrun) has started this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def wanted(processes: int | None, hostfile: Path | None) -> bool:
    """Whether this command line asks for a launcher and is not already under one."""
    return (processes is not None or hostfile is not None) and "RANK" not in os.environ


def launch(config: TrainConfig, processes: int | None, hostfile: Path | None, reporter: Reporter) -> None:
    """Examines the data, then trains in as many processes as asked and waits for them.

    Raises typer.Exit with the processes' own exit code when they fail, and KeyboardInterrupt when they were asked to stop.
    """
    from importlib.util import find_spec

    from cos_core import training

    if find_spec("deepspeed") is None:
        raise MissingError(f"several processes need the package 'deepspeed': {install('train')}")
    if hostfile is not None and len(machines(hostfile)) > 1 and shutil.which("pdsh") is None:
        raise MissingError("DeepSpeed's launcher reaches other machines by pdsh and ssh without a password: install pdsh")
    if config.check != "off":
        training.run(dataclasses.replace(config, check_only=True), reporter)
    command = [sys.executable, "-m", "deepspeed.launcher.runner"]
    if hostfile is not None:
        command += ["--hostfile", str(hostfile)]
    if processes is not None:
        command += ["--num_gpus", str(processes)]
    # The port of the meeting point: free here and now, so that two runs on one machine do not meet.
    command += ["--master_port", str(_free_port()), "--no_local_rank", "--module", "cos_cli", *_arguments(sys.argv[1:])]
    environment = dict(os.environ)
    if config.device == "cpu" or not _cuda():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    code, stopped = _wait(command, environment, config.out / ".stop")
    if stopped:
        raise KeyboardInterrupt
    if code:
        raise typer.Exit(code if 0 < code < 128 or code == 130 else 1)


def machines(hostfile: Path) -> dict[str, int]:
    """Processes on each machine. Raises InputError, where DeepSpeed's launcher would train on this machine alone instead."""
    from cos_core.files.text import read_text

    lines = read_text(hostfile).splitlines()
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        match = _HOST.fullmatch(text)
        if text and match is None:
            raise InputError(f"{hostfile}:{number}: a line is 'HOST slots=N', got {text[:80]!r}")
        if match and match[1] in slots:
            raise InputError(f"{hostfile}:{number}: {match[1]} stands there twice")
        if match:
            slots[match[1]] = int(match[2])
    if not slots:
        raise InputError(f"the hostfile {hostfile} names no machine")
    return slots


def _arguments(argv: list[str]) -> list[str]:
    """The command line of each process: `argv` without the launcher's options and without the check, which is done."""
    words: list[str] = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word in _LAUNCH_ONLY:
            skip = True
        elif not word.startswith(tuple(f"{name}=" for name in _LAUNCH_ONLY)):
            words.append(word)
    return [*words, "--check", "off"]


def _wait(command: list[str], environment: dict[str, str], stop: Path) -> tuple[int, bool]:
    """(exit code, whether a signal asked to stop). The processes' output goes to stderr, because stdout is for data."""
    signals: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def ask(number: int, _frame: Any) -> None:
        signals.append(number)
        if len(signals) == 1:
            stop.parent.mkdir(parents=True, exist_ok=True)
            stop.touch()
        for child in children if len(signals) > 1 else ():
            child.terminate()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # A group of its own: Ctrl-C in a terminal must not reach the processes before their checkpoint is written.
        children.append(subprocess.Popen(command, env=environment, stdout=sys.stderr, start_new_session=True))
        code = children[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code, bool(signals) and code != 0


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cuda() -> bool:
    from importlib.util import find_spec

    return find_spec("torch") is not None and Path("/dev/nvidiactl").exists()
