"""The first code of the `cos` script: completion is answered before anything is loaded that a command needs."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


def main() -> None:
    """Entry point of the `cos` script. Ctrl-C ends it in one sentence with 130 from here on, also while modules are loaded."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Raised in the middle of an import, KeyboardInterrupt would be a traceback. One that ignores it (nohup) still does.
        signal.signal(signal.SIGINT, _interrupted)
    if sys.argv[1:2] == ["__complete"]:
        from cos_cli.completion import answer

        answer.main(sys.argv[2:])
        return
    from cos_cli.main import main as command

    command()


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    """Nothing was begun, or everything is done: there is nothing to put in order."""
    try:
        os.write(2, b"cos: interrupted; the same command continues where it stopped\n")
    finally:
        os._exit(INTERRUPTED)
