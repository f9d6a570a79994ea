"""Real shells behind a pseudo-terminal: what a person sees who presses TAB."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

_ESCAPES = re.compile(r"\x1b\[[0-9;?>=]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()][A-Z0-9]|\x1b[=>]|\x0f|\r")
PROMPT = "READY> "
_START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "--interactive"],
}
_FIRST = {
    "bash": f"PS1='{PROMPT}'; bind 'set bell-style none'; bind 'set show-all-if-ambiguous on'",
    "zsh": f"PROMPT='{PROMPT}'; bindkey -e; unsetopt zle_bracketed_paste promptsp; autoload -Uz compinit; compinit -u -D",
    "fish": f"function fish_prompt; echo -n '{PROMPT}'; end; set -g fish_autosuggestion_enabled 0",
}


def there(shell: str) -> bool:
    return shutil.which(shell) is not None


class Shell:
    """An interactive shell in `folder`, which has read the completion script `script`."""

    def __init__(self, shell: str, script: Path, folder: Path, environment: Mapping[str, str]) -> None:
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(_START[shell][0], _START[shell], {**environment, "TERM": "xterm", "COLUMNS": "200", "LINES": "50"})
        self._quiet()
        self._run(_FIRST[shell])
        self._run(f"source '{script}'")

    def words(self, line: str) -> list[str]:
        """The words that the shell would run after `line` and one TAB: quoting is undone by the shell itself."""
        # Before the line printf, so that the command becomes its arguments; after it a mark. All of it typed ahead.
        self._send(line + "\t\x01printf '<%s>\\n' \x05; echo E''ND\r")
        return re.findall(r"^<(.*)>$", self._until("END\n"), re.MULTILINE)

    def shown(self, line: str) -> str:
        """What appears after `line` and TAB TAB; the line is thrown away."""
        self._send(line + "\t")
        said = self._quiet()
        self._send("\t")
        said += self._quiet()
        self._send("\x05\x15\x03")
        self._quiet()
        return said

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._terminal)

    def _run(self, line: str) -> None:
        self._send(line + "; echo E''ND\r")
        self._until("END\n")

    def _send(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def _until(self, mark: str, limit: float = 300.0) -> str:
        """What is said until `mark`; everything that was said when it does not come."""
        said, end = "", time.monotonic() + limit
        while mark not in said and time.monotonic() < end:
            said += self._quiet(0.2)
        return said

    def _quiet(self, silence: float = 0.7, limit: float = 300.0) -> str:
        """What is said until nothing more comes for `silence` seconds while the shell has no command at work."""
        said, end = b"", time.monotonic() + limit
        while time.monotonic() < end:
            if not select.select([self._terminal], [], [], silence)[0]:
                if psutil.Process(self.pid).children():
                    continue
                break
            try:
                said += os.read(self._terminal, 65536)
            except OSError:
                break
        return _ESCAPES.sub("", said.decode(errors="replace"))
