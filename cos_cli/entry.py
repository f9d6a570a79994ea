"""The first code of the `cos` script: completion is answered before anything is loaded that a command needs."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `cos` script."""
    if sys.argv[1:2] == ["__complete"]:
        from cos_cli.completion import answer

        answer.main(sys.argv[2:])
        return
    from cos_cli.main import main as command

    command()
