"""Files that ship with the package: prompt profiles, config and report templates, completion, the miniature checkpoint."""

from __future__ import annotations

from pathlib import Path

from cos_core.errors import InputError

_PACKAGE = Path(__file__).resolve().parent.parent


def template(*parts: str) -> Path:
    """The path of a shipped template, e.g. `template("prompts", "paper.toml")`.

    In a wheel the templates lie inside the package; in a checkout they are the top-level `templates/`.
    Raises InputError when there is no such file.
    """
    for root in (_PACKAGE / "_templates", _PACKAGE.parent / "templates"):
        path = root.joinpath(*parts)
        if path.exists():
            return path
    raise InputError(f"no shipped template {'/'.join(parts)!r}; is the installation complete?")


def profile_names() -> list[str]:
    """Names of the shipped prompt profiles, sorted."""
    return sorted(p.stem for p in template("prompts").glob("*.toml"))


def completion(name: str) -> Path:
    """The path of a shipped completion file, e.g. `completion("cos.bash")`. Raises InputError when there is no such file."""
    for root in (_PACKAGE / "_completions", _PACKAGE.parent / "completions"):
        path = root / name
        if path.exists():
            return path
    raise InputError(f"no completion file {name!r}; is the installation complete?")


def miniature_checkpoint() -> Path:
    """The folder of the miniature LLaVA that `cos demo` starts from (also reachable as `--model miniature`).

    Raises InputError when the installation lacks it.
    """
    path = _PACKAGE / "miniature" / "checkpoint"
    if not (path / "config.json").exists():
        raise InputError("the miniature checkpoint is missing; reinstall cos-toolkit")
    return path
