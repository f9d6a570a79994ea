"""Python and its packages: there, fit for each other, and those that were tested together."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from cos_core.doctor.finding import Level, MachineFinding
from cos_core.doctor.probe import Answers
from cos_core.files import assets
from cos_core.system.extras import install

EXTRAS = {
    "annotate": ("torch", "transformers", "safetensors", "sentencepiece", "protobuf"),
    "train": ("torch", "transformers", "safetensors", "sentencepiece", "protobuf", "accelerate"),
    "infer": ("torch", "transformers", "safetensors", "sentencepiece", "protobuf"),
}
"""Packages that a task cannot do without, beyond those of the base package; all but accelerate are in the extra `model`."""
NEEDED_EXTRAS = {"annotate": ("model",), "infer": ("model",), "train": ("model", "train")}
"""The extras of which a task needs all packages."""
RUNNING_EXTRAS = ("model", "train", "detect", "scale", "sheets")
"""The extras that users install; `dev` and `docs` are for those who change cos."""
OLDEST = (3, 11)
_NAMED = 4


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


def tested() -> Iterator[MachineFinding]:
    """Installed packages against constraints.txt."""
    pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;#]+)", assets.constraints().read_text(encoding="utf-8"), re.MULTILINE))
    installed = {name: there.partition("+")[0] for name in pins if (there := version(name)) is not None}
    other = [f"{name} {there} (tested {pins[name]})" for name, there in installed.items() if there != pins[name]]
    if not other:
        yield MachineFinding("versions", "ok", f"all {len(installed)} packages are the tested ones")
    else:
        shown = ", ".join(other[:_NAMED]) + (f" and {len(other) - _NAMED} more" if len(other) > _NAMED else "")
        todo = f"if something fails: pip install -c {assets.constraints()} ..."
        yield MachineFinding(
            "versions", "note", f"{len(other)} of {len(installed)} packages are not the tested ones: {shown}", todo
        )


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
        said = f"{name} {there} is {word} for cos ({whose}): {requirement.specifier} was tested"
        if name not in outside or (level == "missing" and outside[name].level != "missing"):
            outside[name] = MachineFinding("versions", level, said, f"pip install '{name}{requirement.specifier}'")
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
        yield _usable(each, answer)


def _usable(gpu: dict[str, object], answer: dict[str, object]) -> MachineFinding:
    if not gpu.get("works"):
        said = f"torch cannot compute on {gpu['name']}: {gpu.get('error', 'a wrong result')}"
        return MachineFinding("torch", "missing", said, f"install a torch that is built for {gpu['architecture']}")
    free, total = (float(str(gpu[key])) / 2**30 for key in ("free", "total"))
    return MachineFinding(
        "torch", "ok", f"computes on {gpu['name']} ({gpu['architecture']}), {free:.0f} of {total:.0f} GiB free"
    )


def libraries(task: str | None, answers: Answers) -> Iterator[MachineFinding]:
    """The other packages of the task: there, and importable where that was tried."""
    for name in EXTRAS.get(task or "", ("transformers",)):
        there, error = version(name), answers.get(name, {}).get("error")
        extra = "train" if name == "accelerate" else "model"
        if name == "torch":
            continue
        if there is None:
            level: Level = "missing" if task in EXTRAS else "note"
            yield MachineFinding(name, level, "not installed", install(extra))
        elif error is not None:
            yield MachineFinding(name, "missing", f"{there} is installed but does not import: {error}", f"reinstall {name}")
        elif name == "transformers":
            tried = "; LLaVA's classes import" if name in answers else ""
            yield MachineFinding(name, "ok", there + tried)


def torchvision(needed: bool, answers: Answers) -> Iterator[MachineFinding]:
    """Not needed, but a broken one breaks transformers."""
    there = version("torchvision")
    if there is None:
        return
    todo = "pip uninstall torchvision (cos does not need it), or install the one for this torch"
    error = answers.get("torchvision", {}).get("error")
    if error is not None:
        said = f"{there} is installed but does not import, which breaks transformers: {error}"
        yield MachineFinding("torchvision", "missing" if needed else "warning", said, todo)
        return
    mine = version("torch")
    wanted = next((m[1] for r in metadata.requires("torchvision") or () if (m := re.match(r"torch==([\d.]+)", r))), None)
    if mine is not None and wanted is not None and mine.partition("+")[0] != wanted and "torchvision" not in answers:
        yield MachineFinding("torchvision", "warning", f"{there} was built for torch {wanted}, and torch is {mine}", todo)
    else:
        yield MachineFinding("torchvision", "ok", there)


def deepspeed(answers: Answers) -> Iterator[MachineFinding]:
    """Importable, and whether one of its operators could be compiled."""
    there = version("deepspeed")
    if there is None:
        todo = f"needed for several GPUs only: DS_BUILD_OPS=0 {install('train', '--no-build-isolation')}"
        yield MachineFinding("deepspeed", "note", "not installed", todo)
        return
    answer = answers.get("deepspeed", {})
    if "error" in answer:
        todo = "reinstall it, or train without --deepspeed"
        yield MachineFinding("deepspeed", "warning", f"{there} is installed but does not import: {answer['error']}", todo)
        return
    yield MachineFinding("deepspeed", "ok", there)
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    ninja = shutil.which("ninja") or util.find_spec("ninja")
    cuda = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc") or (cuda and (Path(cuda) / "bin" / "nvcc").is_file())
    absent = [name for name, tool in (("a C++ compiler", compiler), ("ninja", ninja), ("nvcc", nvcc)) if not tool]
    ops = answer.get("ops", {})
    refused = [name.removesuffix("Builder") for name, fits in ops.items() if not fits]
    if absent:
        todo = "install them if zero3_offload is wanted (it compiles CPUAdam); zero2 and zero3 compile nothing on a CPU"
        yield MachineFinding(
            "operators", "note", f"DeepSpeed cannot compile all of its operators without {', '.join(absent)}", todo
        )
    elif refused:
        yield MachineFinding("operators", "note", f"DeepSpeed will not compile {', '.join(refused)} here", "see: ds_report")
    else:
        yield MachineFinding(
            "operators", "ok", "compiler, nvcc and ninja are there" + ("; DeepSpeed would use them" if ops else "")
        )


def detectron2(answers: Answers) -> MachineFinding:
    """The detector of the paper; the default one needs nothing."""
    todo = "see docs/install.md; without it --detector grid works"
    if util.find_spec("detectron2") is None:
        return MachineFinding("detectron2", "note", "not installed; --detector detectron2 needs it", todo)
    error = answers.get("detectron2", {}).get("error")
    if error is not None:
        return MachineFinding("detectron2", "warning", f"installed but does not import: {error}", todo)
    return MachineFinding("detectron2", "ok", version("detectron2") or "installed")


def sheets() -> MachineFinding:
    """What MMBench's submissions need."""
    there = version("openpyxl")
    if there is None:
        return MachineFinding("openpyxl", "note", "not installed; MMBench's submissions need it", install("sheets"))
    return MachineFinding("openpyxl", "ok", there)


def _cuda_of_build() -> str | None:
    """The CUDA version that torch was built for, read from its file: importing torch would take seconds."""
    path = Path(str(metadata.distribution("torch").locate_file("torch/version.py")))
    try:
        found = re.search(r"^cuda[^=]*= *['\"]([\d.]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


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
