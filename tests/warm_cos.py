"""`cos` forked from a process that has the stages and their libraries imported, which takes five seconds of a cold start.

Each command is a process all the same, with its own working folder, environment, standard streams, signals and exit code. What
a library reads from the environment when it is imported (HF_HUB_OFFLINE, the home) is the server's.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WARM = (
    "cos_cli.main",
    "cos_core.annotate.stage",
    "cos_core.backbones.regions",
    "cos_core.engines.hf",
    "cos_core.evaluate.stage",
    "cos_core.infer.stage",
    "cos_core.models.llava",
    "cos_core.training.stage",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava.processing_llava",
    "transformers.trainer",
)
SCRIPT = """#!{python} -S
import sys
sys.path.insert(0, {tests!r})
from warm_cos import ask
sys.exit(ask({address!r}))
"""


@contextmanager
def warm(folder: Path, **environment: str) -> Iterator[Path]:
    """A server while this lasts; the new folder holds its socket and a program `cos` that asks it."""
    folder.mkdir()
    address = str(folder / "socket")
    program = folder / "cos"
    program.write_text(SCRIPT.format(python=sys.executable, tests=str(Path(__file__).parent), address=address))
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(address)
        listening.listen()
        server = subprocess.Popen(
            [sys.executable, __file__, str(listening.fileno())],
            env={**os.environ, **environment},
            pass_fds=[listening.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    try:
        yield folder
    finally:
        server.kill()
        server.wait()


def ask(address: str) -> int:
    """Has the server run these arguments here, and hands on what this process is signalled; the exit code."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.connect(address)
        told = {"words": sys.argv[1:], "folder": str(Path.cwd()), "environment": dict(os.environ)}
        socket.send_fds(line, [json.dumps(told).encode()], [0, 1, 2])
        pid = int(line.recv(32))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        code = int(line.recv(32))
    return code if code >= 0 else 128 - code


def _serve(listening: socket.socket) -> None:
    """Never returns in the server; returns in a command's process, when that is to begin."""
    for name in WARM:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that answer
    while True:
        line, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(line)
            return
        line.close()


def _answer(line: socket.socket) -> None:
    """Waits for the command, tells how it ended, and ends; returns in the command's process."""
    text, streams, _, _ = socket.recv_fds(line, 1 << 20, 3)
    pid = os.fork()
    if pid == 0:
        line.close()
        told = json.loads(text)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        # The server's own were made for other files.
        sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.chdir(told["folder"])
        os.environ.clear()
        os.environ.update(told["environment"])
        sys.argv = ["cos", *told["words"]]
        return
    for stream in streams:
        os.close(stream)  # a reader of them waits for the command alone
    line.send(str(pid).encode())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    line.send(str(code).encode())
    os._exit(0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    from cos_cli.entry import main

    main()
