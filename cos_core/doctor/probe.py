"""Imports a library, or tries a store, in a process of its own: `python -m cos_core.doctor.probe torch transformers`.

Prints one JSON object a line: `{"begin": name}` before each, then `{"done": name, ...}` with the result. A library that
ends the process is the one that began last. Output of the libraries themselves is dropped.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from cos_core.errors import LockedError
from cos_core.files.locks import FileLock

SECONDS = 120.0
"""Time limit of all libraries together: a cold file system may need a minute for torch."""
Answers = dict[str, dict[str, Any]]


def ask(names: Sequence[str], seconds: float = SECONDS) -> Answers:
    """The probe's answers: name -> {"absent": True}, {"error": ...} or the facts. A crash is an error, too."""
    command = [sys.executable, "-m", "cos_core.doctor.probe", *names]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [_home(), os.environ.get("PYTHONPATH")]))}
    end = ""
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False, env=environment)
        printed = done.stdout
        if done.returncode:
            end = f"ended the process with signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
    except subprocess.TimeoutExpired as late:
        printed, end = late.stdout or b"", f"did not finish in {seconds:.0f} s"
    answers: Answers = {}
    began = None
    for line in printed.splitlines():
        record = json.loads(line)
        if "begin" in record:
            began = record["begin"]
        else:
            answers[record.pop("done")] = record
    if began is not None and began not in answers:
        answers[began] = {"error": end or "ended without a word"}
    return answers


def _home() -> str:
    """The folder that contains cos_core, for the child's PYTHONPATH: a checkout need not be installed."""
    return str(Path(__file__).resolve().parent.parent.parent)


def about_torch() -> dict[str, Any]:
    """Version, build, and the GPUs it can really use: a product of matrices is computed on each."""
    import torch

    facts: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "gpus": []}
    if not torch.cuda.is_available():
        return facts
    facts["built_for"] = torch.cuda.get_arch_list()
    for number in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(number)
        gpu: dict[str, Any] = {"name": torch.cuda.get_device_name(number), "architecture": f"sm_{major}{minor}"}
        facts["gpus"].append(gpu)
        try:
            # Free memory is read first: the computation's context takes some itself.
            gpu["free"], gpu["total"] = torch.cuda.mem_get_info(number)
            ones = torch.ones(8, 8, device=f"cuda:{number}")
            gpu["works"] = float((ones @ ones).sum()) == 512.0
        except RuntimeError as error:
            gpu.update(works=False, error=str(error).partition("\n")[0])
    return facts


def about_torchvision() -> dict[str, Any]:
    """Whether its compiled operators load: transformers fails on a torchvision that imports by halves."""
    import torch

    torchvision = importlib.import_module("torchvision")
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
    torchvision.ops.nms(boxes, torch.tensor([1.0, 0.5]), 0.5)
    return {"version": torchvision.__version__}


def about_transformers() -> dict[str, Any]:
    """The two classes that every stage with a model needs."""
    import transformers

    needed = (transformers.LlavaForConditionalGeneration, transformers.AutoProcessor)
    return {"version": transformers.__version__, "classes": [each.__name__ for each in needed]}


def about_store(place: str) -> dict[str, Any]:
    """Writes a store in a new folder inside `place`, reads it back, and asks a second process for its lock."""
    from cos_core.geometry import Box
    from cos_core.store.annotations import Store
    from cos_core.types import Annotation

    with tempfile.TemporaryDirectory(prefix=".cos-doctor-", dir=place) as scratch:
        path = Path(scratch) / "store"
        annotation = Annotation("a", Box(0.25, 0.25, 0.75, 0.75), 1.0, "full", "d" * 16, (0,))
        with Store.create_or_resume(path, "d" * 16, {}) as store:
            store.put_many([annotation])
        with Store.read(path) as store:
            if store.get("a") != annotation:
                return {"error": "what was written is not what was read"}
        lock = Path(scratch) / "lock"
        with FileLock(lock):
            command = [sys.executable, "-m", "cos_core.doctor.probe", f"lock:{lock}"]
            done = subprocess.run(command, capture_output=True, timeout=20, check=False)
        return {"locks": b'"held": true' in done.stdout}


def about_lock(path: str) -> dict[str, Any]:
    """Whether another process holds the lock."""
    try:
        with FileLock(Path(path)):
            return {"held": False}
    except LockedError:
        return {"held": True}


ABOUT = {
    "torch": about_torch,
    "torchvision": about_torchvision,
    "transformers": about_transformers,
}


def answer(name: str) -> Mapping[str, Any]:
    """The facts about one library (`torch`), folder (`store:PATH`) or lock (`lock:PATH`), or {"error": ...}."""
    kind, colon, rest = name.partition(":")
    try:
        if colon:
            return {"store": about_store, "lock": about_lock}[kind](rest)
        if importlib.util.find_spec(name) is None:
            return {"absent": True}
        if name in ABOUT:
            return ABOUT[name]()
        return {"version": getattr(importlib.import_module(name), "__version__", "")}
    except Exception as error:
        # A library may raise anything while it is imported; what it was is the answer.
        return {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:300]}


def _say(out: TextIO, record: Mapping[str, Any]) -> None:
    out.write(json.dumps(record) + "\n")
    out.flush()


def main(names: Sequence[str]) -> None:
    """Answers on the real stdout; everything else that is printed, also from C, is dropped."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        with contextlib.redirect_stdout(io.StringIO()):
            for name in names:
                key = name.partition(":")[0]
                _say(out, {"begin": key})
                _say(out, {"done": key, **answer(name)})


if __name__ == "__main__":
    main(sys.argv[1:])
