"""A checkpoint's files with one thing changed: any key of a settings file, cut files, flipped bits, swapped ones.

Run as a program it loads each of them in its own process, within a bound of memory, and prints what happened as JSON:
`python strange_checkpoints.py SOUND_FOLDER SCRATCH_FOLDER COUNT`.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 10**7, 10**9, 10**12, -(10**30), 1e308, 0.5, float("nan"), "", "x", "many", "../x", "\ud800", [], [1, 2, 3],
    ["x"], [[[]]], {}, {"x": 1}, {"Regex": "(a+)+$"},
)  # fmt: skip
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "cos_profile.json",
)
MORE = 2 * 2**30
"""Bytes that loading may take beyond what is there when it begins."""
SECONDS = 60
"""Of processor time for one of them."""

Mutation = tuple[str, Callable[[Path], object]]


def copied(sound: Path, to: Path) -> Path:
    """The same checkpoint by hard links; `put` breaks the link of what it changes."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    for path in sound.iterdir():
        if path.is_file():
            try:
                os.link(path, to / path.name)
            except OSError:  # on another file system
                shutil.copy(path, to)
    return to


def put(path: Path, content: Any) -> None:
    """Replaces a file, by bytes or by JSON."""
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def mutations(sound: Path, count: int, seed: int = 0) -> list[Mutation]:
    """`count` mutations: all that concern whole files and weights, and of the many settings a sample."""
    chance = random.Random(seed)
    whole = [*_files(sound, chance), *_weights(sound, chance)]
    keys = list(_keys(sound))
    # Every key once, then others until there are enough.
    per_key = [chance.choice(list(group)) for _, group in itertools.groupby(keys, key=lambda made: made[0].partition("=")[0])]
    rest = chance.sample(keys, max(0, count - len(whole) - len(per_key)))
    return [*whole, *per_key, *rest]


def _keys(sound: Path) -> Iterator[Mutation]:
    for name in SETTINGS:
        if not (sound / name).is_file():
            continue
        for at in _paths(json.loads((sound / name).read_bytes())):
            for value in (*ODD, KeyError):
                yield (
                    f"{name}:{'.'.join(map(str, at))}={'(gone)' if value is KeyError else repr(value)[:40]}",
                    _set(name, at, value),
                )


def _paths(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if len(at) < 4 and isinstance(data, dict) and len(data) < 60:
        for key, value in data.items():
            yield from _paths(value, (*at, key))
    elif len(at) < 4 and isinstance(data, list) and data:
        yield from _paths(data[0], (*at, 0))


def _set(name: str, at: tuple[Any, ...], value: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        data = json.loads((folder / name).read_bytes())
        place = data
        for key in at[:-1]:
            place = place[key]
        if value is KeyError:
            del place[at[-1]]
        else:
            place[at[-1]] = value
        put(folder / name, data)

    return make


def _files(sound: Path, chance: random.Random) -> Iterator[Mutation]:
    names = sorted(path.name for path in sound.iterdir() if path.is_file() and path.suffix in (".json", ".jinja"))
    wholes = {
        "empty": b"",
        "a list": b"[]",
        "a number": b"7",
        "null": b"null",
        "nested": b"[" * 100_000,
        "noise": bytes(range(256)),
    }
    wholes |= {"an object": b"{}", "nested objects": b'{"a":' * 5000 + b"1" + b"}" * 5000, "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\n"}  # fmt: skip
    for name in names:
        data = (sound / name).read_bytes()
        for what, content in wholes.items():
            yield f"{name} is {what}", lambda f, n=name, c=content: put(f / n, c)
        cut = chance.randrange(len(data))
        yield f"{name} cut at {cut}", lambda f, n=name, d=data[:cut]: put(f / n, d)
        yield f"{name} missing", lambda f, n=name: (f / n).unlink()
        other = chance.choice([n for n in names if n != name])
        yield f"{name} is {other}", lambda f, n=name, o=other: put(f / n, (f / o).read_bytes())
        yield f"{name} a pipe", lambda f, n=name: ((f / n).unlink(), os.mkfifo(f / n))
        for _ in range(2):
            bit = chance.randrange(8 * len(data))
            yield f"{name} bit {bit}", lambda f, n=name, b=bit: put(f / n, _flipped((f / n).read_bytes(), b))


def _weights(sound: Path, chance: random.Random) -> Iterator[Mutation]:
    name = "model.safetensors"
    data = (sound / name).read_bytes()
    length = int.from_bytes(data[:8], "little")
    for bit in [*range(0, 64, 9), *(chance.randrange(64, 64 + 8 * length) for _ in range(16))]:
        yield f"{name} bit {bit}", lambda f, b=bit: put(f / name, _flipped(data, b))
    for cut in (0, 4, 8, 8 + length // 2, 8 + length, len(data) - 1):
        yield f"{name} cut at {cut}", lambda f, c=cut: put(f / name, data[:c])
    yield f"{name} a pipe", lambda f: ((f / name).unlink(), os.mkfifo(f / name))
    yield f"{name} longer", lambda f: put(f / name, data + b"\0")
    table = json.loads(data[8 : 8 + length])
    first = next(key for key in table if key != "__metadata__")
    for entry in ({"shape": [10**9, 10**9]}, {"shape": [-1]}, {"dtype": "F8"}, {"data_offsets": [0, 2**62]}, {"shape": "x"}):

        def make(folder: Path, entry: dict[str, Any] = entry) -> None:
            header = json.dumps({**table, first: {**table[first], **entry}}).encode()
            put(folder / name, len(header).to_bytes(8, "little") + header + data[8 + length :])

        yield f"{name} {first} {entry}", make
    index = "model.safetensors.index.json"
    for weight_map in ([], {}, None, {"a": 1}, {"a": "../outside.safetensors"}, {"a": "/etc/passwd"}, {"a": "gone.safetensors"}, {"a": "config.json"}):  # fmt: skip

        def sharded(folder: Path, weight_map: Any = weight_map) -> None:
            put(folder.parent / "outside.safetensors", data)
            (folder / name).unlink()
            put(folder / index, {"metadata": {}, "weight_map": weight_map})

        yield f"{index} {weight_map}", sharded


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


class TooLongError(BaseException):
    """No ordinary exception, so that nobody takes it for the file's fault."""


def main(sound: Path, scratch: Path, count: int) -> None:
    from PIL import Image

    from cos_core.dialogue.prompts import dialogue
    from cos_core.engines.hf import HfEngine, build
    from cos_core.errors import CosError
    from cos_core.interfaces import Request

    def too_long(*_: object) -> None:
        raise TooLongError

    def answered(folder: Path) -> str:
        engine = build(folder, device="cpu", dtype="float32", kv_budget=2**26)
        assert isinstance(engine, HfEngine)
        model = engine.loaded
        request = Request(dialogue(model.profile, "what?", chain=False), {"full": Image.new("RGB", (20, 10))}, 1)
        return engine.generate([request])[0].error or "answered"

    told: dict[str, str] = {"sound": answered(sound)}
    signal.signal(signal.SIGPROF, too_long)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MORE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name, make in mutations(sound, count):
        folder = copied(sound, scratch / "model")
        make(folder)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            told[name] = answered(folder)
        except CosError as error:
            told[name] = f"refused: {error}"
        except BaseException as error:
            told[name] = f"{type(error).__name__}: {traceback.format_exc()[-1500:]}"
        signal.setitimer(signal.ITIMER_PROF, 0)
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
