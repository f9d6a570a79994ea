"""`cos completion`: the scripts of bash, zsh and fish, shown or put where the shell finds them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cos_cli.command import Group, command
from cos_cli.console import Session, emit_text, reporting
from cos_core.errors import InputError
from cos_core.files import assets
from cos_core.options import INPUT, option

FILES = {"bash": "cos.bash", "zsh": "_cos", "fish": "cos.fish"}
HELP = """\
Complete commands, options, names, runs and ids with TAB.

\b
Example:
  cos completion install
"""


@dataclass(frozen=True, slots=True)
class ShellOptions:
    """The shell that is to complete."""

    shell: Literal["bash", "zsh", "fish"] | None = option(
        None, "The shell.", INPUT, argument=True, shown_default="the one that $SHELL names"
    )


@command("completion show", ShellOptions, leaves_out=("config_file", "json", "quiet", "traceback"))
def show(_session: Session, which: ShellOptions) -> None:
    """Print the completion script.

    \b
    Example:
      cos completion show bash > /etc/bash_completion.d/cos
    """
    emit_text(script(which.shell or _login_shell()).rstrip("\n"))


@command("completion install", ShellOptions, leaves_out=("config_file", "json"))
def install(session: Session, which: ShellOptions) -> None:
    """Put the completion script where the shell finds it.

    Writes it below ~/.local/share (fish: ~/.config/fish/completions); for bash and zsh adds one line to the shell's start-up
    file. Called again, it renews the script and adds nothing.

    \b
    Example:
      cos completion install zsh
    """
    shell = which.shell or _login_shell()
    with reporting(session) as reporter:
        for path in put(shell):
            reporter.note(f"written: {path}")
        reporter.note(f"open a new {shell}, or run: {activation(shell)}")


def script(shell: str) -> str:
    """The shipped script of a shell."""
    return assets.completion(FILES[shell]).read_text(encoding="utf-8")


def put(shell: str) -> list[Path]:
    """Writes the script, and for bash and zsh the line that reads it; returns the files that changed. Raises OSError."""
    file = _place(shell)
    written = []
    if not file.exists() or file.read_text(encoding="utf-8") != script(shell):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(script(shell), encoding="utf-8")
        written.append(file)
    start = {"bash": _home() / ".bashrc", "zsh": Path(os.environ.get("ZDOTDIR") or _home()) / ".zshrc"}.get(shell)
    if start is not None:
        line = activation(shell)
        present = start.read_text(encoding="utf-8", errors="surrogateescape") if start.exists() else ""
        if line not in present.splitlines():
            # Appended, never rewritten: the file may be a link, and it belongs to the user.
            with start.open("a", encoding="utf-8") as opened:
                opened.write(("" if not present or present.endswith("\n") else "\n") + line + "\n")
            written.append(start)
    return written


def activation(shell: str) -> str:
    """The line that makes a running shell complete `cos`."""
    path = str(_place(shell)).replace("'", "'\\''")
    if shell == "zsh":
        return f"(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit }}; source '{path}'  # completion of cos"
    if shell == "bash":
        return f"[ -r '{path}' ] && . '{path}'  # completion of cos"
    return f"source '{path}'"


def _place(shell: str) -> Path:
    if shell == "fish":
        return Path(os.environ.get("XDG_CONFIG_HOME") or _home() / ".config") / "fish" / "completions" / FILES[shell]
    return Path(os.environ.get("XDG_DATA_HOME") or _home() / ".local" / "share") / "cos" / "completions" / FILES[shell]


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise InputError("there is no home folder to install completion in; set HOME, or use: cos completion show") from None


def _login_shell() -> Literal["bash", "zsh", "fish"]:
    name = Path(os.environ.get("SHELL", "")).name
    for shell in ("bash", "zsh", "fish"):
        if name == shell:
            return shell
    raise InputError(f"completion is for bash, zsh and fish, and $SHELL is {name or 'not set'}; name one of them")


group = Group("completion", HELP, (show, install))
