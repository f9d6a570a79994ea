"""How an extra of this installation is added: the command that messages give, which works as typed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

NAME = "cos-toolkit"
_ROOT = Path(__file__).resolve().parent.parent.parent


def install(extra: str, *options: str) -> str:
    """`pip install '/where/cos/lies[model]'`: from the checkout that runs, else from where this distribution was installed."""
    return " ".join(["pip", "install", *options, *_wanted(extra)])


def _wanted(extra: str) -> list[str]:
    from importlib import metadata

    if (_ROOT / "pyproject.toml").is_file():
        return ["-e", shlex.quote(f"{_ROOT}[{extra}]")]
    try:
        source = json.loads(metadata.distribution(NAME).read_text("direct_url.json") or "{}")
        url, vcs = str(source.get("url", "")), source.get("vcs_info", {}).get("vcs", "")
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        url, vcs = "", ""
    if not url:
        return [shlex.quote(f"{NAME}[{extra}]")]
    if urlsplit(url).scheme == "file" and not vcs and Path(path := unquote(urlsplit(url).path)).is_dir():
        return [shlex.quote(f"{path}[{extra}]")]
    return [shlex.quote(f"{NAME}[{extra}] @ {vcs + '+' if vcs else ''}{url}")]
