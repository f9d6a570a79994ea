"""What loading for training reads, in which numbers, and how much memory it takes; what is said when memory runs out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_llava import make_checkpoint
from training_worker import watched
from training_world import config, log_of, make_world

from cos_core.errors import CosError, InputError, MissingError
from cos_core.training import inputs, loading, runtime
from cos_core.training.config import TrainConfig

MEBI = 2**20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def loaded(made: TrainConfig) -> Any:
    start = inputs.start_checkpoint(made)
    return loading.load(made, start, inputs.encoder_of(made, start)).model


def types(model: Any, learnt: bool) -> set[str]:
    return {str(weight.dtype).removeprefix("torch.") for weight in model.parameters() if weight.requires_grad == learnt}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_frozen_base_is_in_the_arithmetics_numbers_and_what_is_trained_in_float32(
    world: Path, tmp_path: Path, dtype: str
) -> None:
    whole = loaded(config(world, tmp_path, dtype=dtype))
    assert types(whole, learnt=True) == types(whole, learnt=False) == {"float32"}
    adapted = loaded(config(world, tmp_path, dtype=dtype, lora=4, train_projector=True))
    assert types(adapted, learnt=False) == {dtype}
    assert types(adapted, learnt=True) == {"float32"}
    learnt = {name.split(".")[-3] for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert {"lora_A", "lora_B"} < learnt, "and the projector"


def test_deepspeed_gets_the_numbers_that_it_casts_to(world: Path, tmp_path: Path) -> None:
    """A file that leaves the arithmetic to itself (no section "bf16") is one that casts nothing."""
    (tmp_path / "own.json").write_text('{"zero_optimization": {"stage": 2}}')
    for deepspeed, dtype, held in (
        ("zero2", "bfloat16", "bfloat16"),
        ("zero3", "bfloat16", "bfloat16"),
        ("zero3", "float32", "float32"),
        (str(tmp_path / "own.json"), "bfloat16", "float32"),
        (None, "bfloat16", "float32"),
    ):
        assert runtime.weights(config(world, tmp_path, deepspeed=deepspeed, dtype=dtype)) == held


def test_qlora_builds_no_float32_model(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="4-bit weights need the package of that name; make setup installs it")
    import torch

    loads: list[dict[str, int]] = []
    moves: list[str] = []
    with watched(moves, loads):
        adapted = loaded(config(world, tmp_path, lora=4, qlora=True))
    assert [set(count) for count in loads] == [{"torch.bfloat16", "torch.uint8"}], "read once, and never in float32"
    packed = [name for name, weight in adapted.named_parameters() if weight.dtype == torch.uint8]
    assert len(packed) == 2 * 7, "seven linear layers in each of two blocks"
    assert all("language_model" in name for name in packed)
    assert not [move for move in moves if move.startswith(("Llava", "Llama", "CLIP"))]


READ = """
import json, sys, threading, time
import torch, transformers
from cos_core.models import llava

def anonymous():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon:"))

llava.read_network(sys.argv[1], dtype=torch.float32)  # imports and thread pools count as before
where, kind = sys.argv[2], getattr(torch, sys.argv[3])
peak, over = [0], threading.Event()
def look():
    while not over.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)
watcher = threading.Thread(target=look)
before = anonymous()
watcher.start()
model = llava.read_network(where, dtype=kind)
over.set()
watcher.join()
print(json.dumps([peak[0] - before, sum(p.numel() * p.element_size() for p in model.parameters())]))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 MB of float32 in some files, under a configuration of the real classes."""
    from transformers import LlavaForConditionalGeneration

    where = make_checkpoint(tmp_path_factory.mktemp("large") / "model", hidden=1024, layers=7, num_attention_heads=8)
    LlavaForConditionalGeneration.from_pretrained(where).save_pretrained(where, max_shard_size="100MB")
    (where / "model.safetensors").unlink()
    assert len(list(where.glob("*.safetensors"))) >= 3
    return where


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.0), ("bfloat16", 0.9)])
def test_no_second_copy_while_loading(world: Path, large: Path, dtype: str, least: float) -> None:
    """At no time more than 1.3 times what the model takes in the end.

    What counts is memory of the process's own; pages of the files, which the system takes back when it needs them, do not. On a
    CPU weights that are stored as they are held stay such pages until they are changed.
    """
    done = subprocess.run(
        [sys.executable, "-c", READ, str(world / "model"), str(large), dtype], capture_output=True, text=True, check=True
    )
    grown, size = json.loads(done.stdout)
    assert size > (280 if dtype == "float32" else 140) * MEBI
    assert size * least <= grown < size * 1.3


def test_a_model_read_straight_to_its_device_trains_as_any_other(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, by a device map, here to the CPU: the Trainer must not take it for one over several devices."""
    import torch
    from transformers import LlavaForConditionalGeneration

    from cos_core import training
    from cos_core.interfaces import SilentReporter
    from cos_core.models import llava

    read, asked = llava.read_network, list[Any]()
    from_pretrained = LlavaForConditionalGeneration.from_pretrained

    def heard(*args: Any, **options: Any) -> Any:
        asked.append(options.get("device_map"))
        return from_pretrained(*args, **options)

    def straight(*args: Any, **options: Any) -> Any:
        return read(*args, **{**options, "device": torch.device("cpu")})

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", heard)
    for lora in (None, 4):
        with monkeypatch.context() as patch:
            training.run(config(world, tmp_path / f"as-ever-{lora}", lora=lora), SilentReporter())
            patch.setattr(llava, "read_network", straight)
            training.run(config(world, tmp_path / f"straight-{lora}", lora=lora), SilentReporter())
        assert asked == [None, None, {"": torch.device("cpu")}, None], "the second and the last are read to write the result"
        asked.clear()
        plain, mapped = (log_of(tmp_path / f"{way}-{lora}") for way in ("as-ever", "straight"))
        assert [record["loss"] for record in mapped] == [record["loss"] for record in plain]


# What is said when memory runs out


class Gone(RuntimeError):
    """As torch says it on a GPU."""


Gone.__name__ = "OutOfMemoryError"


@pytest.mark.parametrize(
    ("changes", "devices", "named", "not_named"),
    [
        (
            {"batch_size": 16, "global_batch": 1024},
            8,
            ["--batch-size 8 (a step stays 1024 samples)", "--gradient-checkpointing", "--deepspeed zero3,", "--lora 128"],
            ["--qlora", "offload"],
        ),
        ({"batch_size": 3, "global_batch": None}, 2, ["--batch-size 1 --global-batch 6 (a step stays 6"], []),
        ({"gradient_checkpointing": True, "deepspeed": "zero2"}, 8, ["--deepspeed zero3,"], ["--gradient-checkpointing"]),
        ({"deepspeed": "zero3"}, 8, ["--deepspeed zero3_offload"], []),
        ({"deepspeed": "zero3_offload", "lora": 8}, 8, ["--batch-size"], ["--deepspeed", "--lora", "--qlora"]),
        ({"lora": 8}, 1, ["--qlora", "--deepspeed zero3_offload"], ["--lora 128"]),
        ({"lora": 8, "qlora": True, "batch_size": 1, "gradient_checkpointing": True}, 1, ["--max-length"], ["--deepspeed"]),
    ],
)
def test_out_of_memory_says_what_takes_less(
    world: Path, tmp_path: Path, changes: dict[str, Any], devices: int, named: list[str], not_named: list[str]
) -> None:
    made = config(world, tmp_path, **changes)
    with pytest.raises(InputError) as told, loading.advice(made, devices, "training"):
        raise Gone("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    text = str(told.value)
    assert text.startswith(
        "memory ran out while training (CUDA out of memory. Tried to allocate 2.00 GiB); it takes less with "
    )
    assert all(words in text for words in named), text
    assert not any(words in text for words in not_named), text
    assert told.value.exit_code == 3


def test_other_errors_are_not_taken_for_it(world: Path, tmp_path: Path) -> None:
    for error in (RuntimeError("shapes do not match"), CosError("no"), KeyError("x")):
        with pytest.raises(type(error)), loading.advice(config(world, tmp_path), 1, "training"):
            raise error


def test_a_step_that_does_not_fit_ends_the_run_with_that_sentence(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a checkpoint, which is kept and gone on from; memory runs out for real, by a demand that no machine can meet."""
    import torch

    from cos_core import training
    from cos_core.interfaces import SilentReporter
    from cos_core.training import resume_points
    from cos_core.training.trainer import ChainTrainer

    step = ChainTrainer.training_step

    def hungry(self: ChainTrainer, *args: Any, **options: Any) -> Any:
        if self.state.global_step == 2:
            torch.empty(2**60, dtype=torch.uint8)
        return step(self, *args, **options)

    made = config(world, tmp_path / "out", save_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(ChainTrainer, "training_step", hungry)
        with pytest.raises(InputError, match=r"memory ran out while training .*--batch-size 1 --global-batch 2"):
            training.run(made, SilentReporter())
    last = resume_points.last_whole(tmp_path / "out" / "checkpoints")
    assert last is not None
    assert resume_points.step_of(last) == 2
    assert training.run(made, SilentReporter()).results["steps"] == 4


# A GPU without bfloat16


class Card:
    """What torch says of a GPU, by its compute capability."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, major: int) -> None:
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))


@pytest.mark.parametrize(
    ("major", "dtype", "arithmetic"),
    [
        (7, "auto", "float16"),
        (7, "float32", "float32"),
        (8, "auto", "bfloat16"),
        (8, "bfloat16", "bfloat16"),
        (9, "float32", "float32"),
    ],
)
def test_arithmetic_on_a_gpu(monkeypatch: pytest.MonkeyPatch, major: int, dtype: Any, arithmetic: str) -> None:
    Card(monkeypatch, major)
    made = TrainConfig(Path("d"), Path("i"), "m", Path("o"), dtype=dtype)
    assert runtime.arithmetic(made) == arithmetic
    on_cpu = TrainConfig(Path("d"), Path("i"), "m", Path("o"), dtype=dtype, device="cpu")
    assert runtime.arithmetic(on_cpu) == ("bfloat16" if dtype == "bfloat16" else "float32")


def test_bfloat16_asked_for_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch, 7)
    with pytest.raises(MissingError, match="Tesla V100 has no bfloat16; dtype 'auto' takes float16"):
        runtime.require(TrainConfig(Path("d"), Path("i"), "m", Path("o"), dtype="bfloat16"))
