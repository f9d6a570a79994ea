"""Writes the completion scripts in completions/: `python -m cos_cli.completion FOLDER`. The scripts are Typer's own."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

FILES = {"bash": "cos.bash", "zsh": "_cos", "fish": "cos.fish"}


def script(shell: str) -> str:
    """The completion script of `cos` for `shell` ("bash", "zsh" or "fish")."""
    from cos_cli.main import app

    printed = io.StringIO()
    os.environ["_COS_COMPLETE"] = f"source_{shell}"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            app(args=[], prog_name="cos")
    finally:
        del os.environ["_COS_COMPLETE"]
    return printed.getvalue()


def main(folder: Path) -> None:
    """Writes one file a shell into `folder`."""
    for shell, name in FILES.items():
        (folder / name).write_text(script(shell), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "completions"))
