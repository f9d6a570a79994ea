"""Python and its packages: there, fit for each other, and those that were tested together."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from cos_core.doctor.finding import Level, MachineFinding
from cos_core.doctor.probe import Answers
from cos_core.system.extras import install

LIBRARIES = {
    "annotate": ("transformers", "safetensors", "sentencepiece", "protobuf"),
    "train": ("transformers", "safetensors", "sentencepiece", "protobuf", "accelerate"),
    "infer": ("transformers", "safetensors", "sentencepiece", "protobuf"),
}
"""Packages that a task needs beside torch and the base package; all but accelerate are in the extra `model`."""
OPTIONAL = {
    "torchvision": "pip uninstall torchvision (cos does not need it), or install the one for this torch",
    "deepspeed": "reinstall it, or train without --deepspeed",
    "detectron2": "see docs/install.md; without it --detector grid works",
}
"""Packages that no task needs, and what to do about one that is installed and does not import."""
NEEDED_EXTRAS = {"annotate": ("model",), "infer": ("model",), "train": ("model", "train")}
"""The extras of which a task needs all packages."""
RUNNING_EXTRAS = ("model", "train", "detect", "scale", "sheets", "arrow")
"""The extras that users install; `dev` and `docs` are for those who change cos."""
OLDEST = (3, 11)


def version(name: str) -> str | None:
    """The installed version of a distribution, which is not imported."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def python() -> MachineFinding:
    """The interpreter."""
    words = f"{'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}"
    if sys.version_info < OLDEST:
        return MachineFinding("python", "missing", words, "use Python 3.11 or newer")
    return MachineFinding("python", "ok", words)


def allowed(task: str | None) -> Iterator[MachineFinding]:
    """Installed packages against the versions that cos declares (its own metadata, as pip reads it), one finding a package.

    A version outside is "missing" for a task that needs the package, a warning for every other; None asks for no task, where
    only the packages of the base install are needed.
    """
    needed = {"", *NEEDED_EXTRAS.get(task or "", ())}
    outside: dict[str, MachineFinding] = {}
    for extra, requirement in _declared():
        name, there = requirement.name, version(requirement.name)
        if there is None or requirement.specifier.contains(there, prereleases=True):
            continue
        level: Level = "missing" if extra in needed else "warning"
        whose = f"extra {extra!r}" if extra else "every use"
        word = "too old" if _is_older(there, requirement) else "too new"
        message = f"{name} {there} is {word} for cos ({whose}): {requirement.specifier} was tested"
        if name not in outside or (level == "missing" and outside[name].level != "missing"):
            outside[name] = MachineFinding("versions", level, message, f"pip install '{name}{requirement.specifier}'")
    yield from outside.values()


def torch(needed: bool, gpu: bool, driver_cuda: str | None, answers: Answers) -> Iterator[MachineFinding]:
    """The build, and whether it fits driver and GPUs."""
    there = version("torch")
    if there is None:
        todo = f"install torch in the build that suits the machine, then: {install('model')}"
        yield MachineFinding("torch", "missing" if needed else "note", "not installed; annotate, train and infer need it", todo)
        return
    answer = answers.get("torch", {})
    if "error" in answer:
        yield MachineFinding(
            "torch", "missing", f"{there} is installed but does not import: {answer['error']}", "reinstall torch"
        )
        return
    cuda = _cuda_of_build()
    words = f"{there}, build for " + (f"CUDA {cuda}" if cuda else "CPUs")
    if gpu and cuda is None:
        yield MachineFinding("torch", "warning", f"{words}, so the GPU stays unused", "install the CUDA build of torch")
    elif cuda and driver_cuda and _numbers(cuda)[0] > _numbers(driver_cuda)[0]:
        todo = f"update the driver, or install torch for CUDA {driver_cuda}"
        yield MachineFinding("torch", "missing" if needed else "warning", f"{words}; the driver knows CUDA {driver_cuda}", todo)
    else:
        yield MachineFinding("torch", "ok", words)
    for each in answer.get("gpus", ()):
        yield _usable(each)


def _usable(gpu: dict[str, object]) -> MachineFinding:
    if not gpu.get("works"):
        message = f"torch cannot compute on {gpu['name']}: {gpu.get('error', 'a wrong result')}"
        return MachineFinding("torch", "missing", message, f"install a torch that is built for {gpu['architecture']}")
    free, total = (float(str(gpu[key])) / 2**30 for key in ("free", "total"))
    return MachineFinding(
        "torch", "ok", f"computes on {gpu['name']} ({gpu['architecture']}), {free:.0f} of {total:.0f} GiB free"
    )


def libraries(task: str | None, answers: Answers) -> Iterator[MachineFinding]:
    """The other packages: those that the task needs, and those that were imported and are broken."""
    needed = LIBRARIES.get(task or "", ())
    for name in needed:
        there, error = version(name), answers.get(name, {}).get("error")
        if there is None:
            yield MachineFinding(name, "missing", "not installed", install("train" if name == "accelerate" else "model"))
        elif error is not None:
            yield MachineFinding(name, "missing", f"{there} is installed but does not import: {error}", f"reinstall {name}")
        elif name == "transformers":
            yield MachineFinding(name, "ok", f"{there}; LLaVA's classes import")
    for name, todo in OPTIONAL.items():
        if (error := answers.get(name, {}).get("error")) is not None:
            # transformers imports torchvision wherever it is installed.
            level: Level = "missing" if name == "torchvision" and needed else "warning"
            yield MachineFinding(name, level, f"{version(name)} is installed but does not import: {error}", todo)


def _cuda_of_build() -> str | None:
    """The CUDA version that torch was built for, read from its file: importing torch would take seconds."""
    path = Path(str(metadata.distribution("torch").locate_file("torch/version.py")))
    try:
        match = re.search(r"^cuda[^=]*= *['\"]([\d.]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return match[1] if match else None


def _declared() -> Iterator[tuple[str, Requirement]]:
    """(extra or "", requirement) of every package with a version in the installed metadata of cos; none in a bare checkout."""
    try:
        requirements = [Requirement(line) for line in metadata.requires("cos-toolkit") or []]
    except metadata.PackageNotFoundError:
        return
    for each in requirements:
        extra = re.search(r"extra *== *['\"]([^'\"]+)", str(each.marker or ""))
        if each.specifier and (extra is None or extra[1] in RUNNING_EXTRAS):
            yield extra[1] if extra else "", each


def _is_older(there: str, requirement: Requirement) -> bool:
    floors = [Version(each.version) for each in requirement.specifier if each.operator in (">=", "==", "~=")]
    return any(Version(there) < floor for floor in floors)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3])
