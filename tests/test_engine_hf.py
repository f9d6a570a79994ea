"""The hf engine on a tiny random float32 checkpoint, against transformers' own generate and against other batch sizes."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_llava import make_checkpoint

from cos_core.dialogue import prompts
from cos_core.engines._prefix import BufferLayer, Prefix
from cos_core.engines.hf import HfEngine, build
from cos_core.interfaces import Request
from cos_core.models import llava
from cos_core.types import Turn

PROFILE = prompts.load_profile("paper")
WORDS = ("what", "which", "colour", "digit", "shape", "is", "left", "right", "of", "the", "red", "blue", "circle", "picture")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> llava.Llava:
    return llava.load(make_checkpoint(tmp_path_factory.mktemp("tiny")), device="cpu", dtype="float32")


@pytest.fixture
def engine(loaded: llava.Llava) -> HfEngine:
    return HfEngine(loaded)


def picture(seed: int, size: tuple[int, int] = (83, 61)) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


def requests(count: int, budget: int = 11) -> list[Request]:
    """Plain and second-pass dialogues of many lengths over few pictures, some of them shared."""
    dice = random.Random(7)
    pictures = [picture(i, (40 + 13 * i, 71)) for i in range(5)]
    made = []
    for i in range(count):
        question = " ".join(dice.choices(WORDS, k=dice.randint(1, 17)))
        whole = pictures[i % 5]
        if i % 3 == 0:
            made.append(Request(prompts.dialogue(PROFILE, question, chain=False), {"full": whole}, budget))
        else:
            turns = prompts.dialogue(PROFILE, question, box_text="[0.250, 0.250, 0.750, 0.750]")
            made.append(Request(turns, {"full": whole, "roi": whole.crop((5, 5, 29, 31))}, budget))
    return made


def alike(count: int, budget: int) -> list[Request]:
    """Second-pass dialogues of one length, each about pictures of its own."""
    turns = prompts.dialogue(PROFILE, "what is it", box_text="[0.250, 0.250, 0.750, 0.750]")
    wholes = [picture(i) for i in range(count)]
    return [Request(turns, {"full": whole, "roi": whole.crop((5, 5, 29, 31))}, budget) for whole in wholes]


def ids_of(engine: HfEngine, asked: Sequence[Request]) -> list[list[int]]:
    return [list(reply.ids) for reply in engine.generate(asked)]


def prompt(engine: HfEngine, request: Request) -> tuple[torch.Tensor, tuple[Image.Image, ...]]:
    """Embeddings (1, length, hidden) of the request's dialogue, pictures in place."""
    model = engine.llava
    encoded = model.encode(request.turns)
    shown = tuple(request.images[slot] for slot in encoded.slots)
    return model.embed(torch.tensor([encoded.ids]), model.image_features(model.pixels(shown))), shown


def margin(engine: HfEngine, request: Request, ids: list[int]) -> float:
    """Difference of the two largest logits after the prompt and `ids`."""
    embeddings, _ = prompt(engine, request)
    model = engine.llava.model
    if ids:
        embeddings = torch.cat([embeddings, model.get_input_embeddings()(torch.tensor([ids]))], dim=1)
    with torch.inference_mode():
        best, second = model(inputs_embeds=embeddings).logits[0, -1].topk(2).values.tolist()
    return best - second


def assert_same(engine: HfEngine, asked: Sequence[Request], ours: list[list[int]], theirs: list[list[int]]) -> None:
    """Equal ids, save from a place on where the two best tokens were closer than 1e-4."""
    for request, a, b in zip(asked, ours, theirs, strict=True):
        if a != b:
            common = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
            assert margin(engine, request, a[:common]) < 1e-4


@pytest.mark.parametrize("batch", [2, 7, 24])
def test_a_batch_changes_no_answer(engine: HfEngine, batch: int) -> None:
    asked = requests(24)
    alone = [ids_of(engine, [request])[0] for request in asked]
    together = [ids for i in range(0, 24, batch) for ids in ids_of(engine, asked[i : i + batch])]
    assert_same(engine, asked, together, alone)
    assert len({tuple(ids) for ids in alone}) > 12, "the questions must not all have one answer, or the test shows nothing"


def test_equals_transformers_generate(engine: HfEngine) -> None:
    asked = requests(9)
    theirs = []
    for request in asked:
        embeddings, _ = prompt(engine, request)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
        theirs.append(
            engine.llava.model.generate(
                inputs_embeds=embeddings,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=request.max_new_tokens,
                suppress_tokens=list(engine.llava.unused_rows),
            )[0].tolist()
        )
    assert_same(engine, asked, ids_of(engine, asked), theirs)


def test_the_forward_from_pixels_gives_the_same_first_token(engine: HfEngine) -> None:
    # The model's own way (ids with image marks, pixel_values) must mean what our embeddings mean, two pictures included.
    request = requests(2)[1]
    job = engine._job(0, request)
    encoded = engine.llava.encode(request.turns)
    pixels = engine.llava.pixels([request.images[slot] for slot in encoded.slots])
    with torch.inference_mode():
        theirs = engine.llava.model(input_ids=torch.tensor([encoded.ids]), pixel_values=pixels).logits[0, -1]
        ours = engine._prompts([job.row], 0).logits[0]
    spoken = torch.isfinite(ours)
    assert (~spoken).nonzero().flatten().tolist() == list(engine.llava.unused_rows)
    assert torch.allclose(ours[spoken], theirs[spoken], atol=1e-5)


def test_each_row_has_its_own_budget_and_end_mark(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Request(r.turns, r.images, 1 + i) for i, r in enumerate(requests(6))]
    long = ids_of(engine, requests(6))
    # An end mark in the middle: declare a token that some rows write to be one.
    stop = long[5][2]
    monkeypatch.setattr(engine.llava.model.generation_config, "eos_token_id", stop)
    engine = HfEngine(engine.llava)
    for i, (got, free) in enumerate(zip(ids_of(engine, asked), long, strict=True)):
        cut = free[: free.index(stop) + 1] if stop in free else free
        assert got == cut[: 1 + i]
    reply = engine.generate(requests(6))[5]
    assert reply.finished
    assert reply.tokens_out == long[5].index(stop) + 1


def test_a_picture_is_encoded_once_while_it_lives(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = llava.Llava.image_features

    def counting(self: llava.Llava, pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return real(self, pixels)

    monkeypatch.setattr(llava.Llava, "image_features", counting)
    whole = picture(1)
    ask = Request(prompts.dialogue(PROFILE, "what is it", chain=False), {"full": whole}, 2)
    engine.generate([ask, ask, ask])
    crop = picture(2)
    engine.generate([Request(prompts.dialogue(PROFILE, "what", box_text="[0, 0, 1, 1]"), {"full": whole, "roi": crop}, 2)])
    assert sizes == [1, 1]
    del ask, whole, crop
    assert len(engine._features) == 0


class Short:
    """Raises `error` in the middle of a real forward pass, in a layer of the decoder, when more than `most` rows go through.

    `when`: on which of these occasions (None: on all). `sizes`: rows of each forward pass, `failures` of those that failed;
    `held`: prefixes, tensors of the store and buffers of batches that lived at each failure.
    """

    def __init__(self, most: int, error: Exception | None = None, when: Sequence[int] | None = None) -> None:
        self.most, self.when = most, when
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.sizes: list[int] = []
        self.failures: list[int] = []
        self.held: list[list[weakref.ref[Any]]] = []
        self.survivors: list[int] = []
        self._seen = 0

    def __call__(self, _layer: Any, args: tuple[torch.Tensor, ...]) -> None:
        if len(self.held) > len(self.survivors):
            self.survivors.append(sum(each() is not None for each in self.held[-1]))
        rows = args[0].shape[0]
        self.sizes.append(rows)
        if rows > self.most:
            self._seen += 1
            if self.when is None or self._seen - 1 in self.when:
                self.failures.append(rows)
                self.held.append(self._alive())
                raise self.error

    @staticmethod
    def _alive() -> list[weakref.ref[Any]]:
        prefixes = [each for each in gc.get_objects() if type(each) is Prefix]
        buffers = [each for each in gc.get_objects() if type(each) is BufferLayer]
        tensors = [part for each in prefixes for pair in each.layers for part in pair]
        tensors += [part for each in buffers if each.is_initialized for part in (each.keys, each.values)]
        return [weakref.ref(each) for each in [*prefixes, *buffers, *tensors]]


@contextmanager
def short_of_memory(engine: HfEngine, short: Short) -> Iterator[Short]:
    handle = engine.llava.model.model.language_model.layers[1].register_forward_pre_hook(short)
    try:
        yield short
    finally:
        handle.remove()


OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes."),
]


@pytest.mark.parametrize("error", OUT, ids=["torch", "cublas", "cpu"])
def test_memory_running_out_frees_every_prefix_and_halves_the_batch(engine: HfEngine, error: Exception) -> None:
    """Seven questions that all continue stored prefixes; the forward pass itself runs out of memory above two rows."""
    asked = alike(7, budget=3)
    first = [Request(prompts.dialogue(PROFILE, "what is it"), {"full": request.images["full"]}, 2) for request in asked]
    engine.generate(first)
    expected = engine.generate(asked)
    gc.collect()
    with short_of_memory(engine, Short(2, error)) as short:
        assert engine.generate(asked) == expected
    assert short.failures == [7, 4]
    assert len(short.held[0]) > 7 * 4, "the failed attempt must hold prefixes and buffers, or the test shows nothing"
    assert short.survivors == [0] * len(short.failures), "what the failed attempt held lives on while the next one runs"
    assert engine.rows.limit == 2
    assert max(short.sizes[short.sizes.index(short.failures[-1]) + 1 :]) == 2


def test_rows_grow_back_after_one_outlier(engine: HfEngine) -> None:
    asked = alike(8, budget=2)
    expected = engine.generate(asked)
    with short_of_memory(engine, Short(4, when=[0])) as short:
        for _ in range(4):
            assert engine.generate(asked) == expected
        assert len(short.failures) == 1
        assert engine.rows.limit == 8
        short.sizes.clear()
        assert engine.generate(asked) == expected
    assert max(short.sizes) == 8, "the remaining run goes on in batches as large as before"


def test_where_nothing_fits_each_request_fails_with_the_words_that_were_said(engine: HfEngine) -> None:
    asked = requests(3, budget=2)
    expected = engine.generate(asked)
    with short_of_memory(engine, Short(0, RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))):
        errors = [reply.error or "" for reply in engine.generate(asked)]
    assert all("memory" in error and "CUDNN_STATUS_ALLOC_FAILED" in error for error in errors)
    assert engine.generate(asked) == expected
    with short_of_memory(engine, Short(0, RuntimeError("shapes do not match"))), pytest.raises(RuntimeError, match="shapes"):
        engine.generate(asked)


def test_room_is_made_in_the_budget(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: of 100 units 70 are the engine's; who wants 40 beside it gets them, and the engine keeps 60."""
    unit = 2**20
    monkeypatch.setattr("cos_core.system.memory.available", lambda _: 100 * unit)
    monkeypatch.setattr("cos_core.engines.hf.usual_budget", lambda _: 70 * unit)
    ours = HfEngine(engine.llava)
    assert ours.make_room(30 * unit) == 30 * unit
    assert ours.kv_budget == 70 * unit
    assert ours.make_room(40 * unit) == 40 * unit
    assert ours.kv_budget == 60 * unit
    assert ours.make_room(500 * unit) == 70 * unit, "half of the budget is the engine's in any case"
    assert ours.kv_budget == 30 * unit
    named = HfEngine(engine.llava, kv_budget=90 * unit)
    assert named.make_room(40 * unit) == 10 * unit
    assert named.kv_budget == 90 * unit, "what the user named stays"


def test_two_engines_that_verify_each_other_share_one_budget(engine: HfEngine) -> None:
    asked = requests(6, budget=3)
    token = engine._token_bytes
    ours = HfEngine(engine.llava, kv_budget=1500 * token)
    plain = ours.without_reuse()
    expected = [engine.without_reuse().generate([request])[0].ids for request in asked]
    for _ in range(2):
        assert [reply.ids for reply in ours.generate(asked)] == expected
        assert ours._store.held > 0
        for request, ids in zip(asked, expected, strict=True):
            (reply,) = plain.generate([request])
            assert reply.ids == ids
            assert reply.cached == 0
    assert max(ours.kv_peak, plain.kv_peak) <= 1500 * token
    assert plain.kv_peak > plain.kv_budget // 2, "what the other engine keeps counts, too"


def test_what_cannot_run_is_an_error_and_the_rest_is_answered(engine: HfEngine) -> None:
    good = requests(1, budget=3)[0]
    turns = prompts.dialogue(PROFILE, "what", box_text="[0, 0, 1, 1]")
    no_crop = Request(turns, {"full": picture(0)}, 3)
    marked = Request(prompts.dialogue(PROFILE, "what is <image> here", chain=False), {"full": picture(0)}, 3)
    long = Request(prompts.dialogue(PROFILE, "x" * 2100, chain=False), {"full": picture(0)}, 3)
    replies = engine.generate([no_crop, good, marked, long])
    assert "'roi'" in (replies[0].error or "")
    assert replies[1].error is None
    assert "image mark" in (replies[2].error or "")
    assert "context" in (replies[3].error or "")
    assert engine.generate([]) == []


def test_a_dialogue_without_pictures(engine: HfEngine) -> None:
    reply = engine.generate([Request((Turn("user", ("hello",)),), {}, 4)])[0]
    assert reply.error is None
    assert reply.tokens_out <= 4


def test_sampling_settings_of_a_checkpoint_do_not_matter(tmp_path: Path) -> None:
    where = make_checkpoint(tmp_path / "m")
    plain = build(where, device="cpu").generate(requests(3))
    config = where / "generation_config.json"
    config.write_text('{"do_sample": true, "temperature": 0.9, "top_p": 0.6, "eos_token_id": [2], "pad_token_id": 0}')
    assert build(where, device="cpu").generate(requests(3)) == plain


def test_activations_are_bounded_by_the_positions_computed_at_once(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests(24, budget=3)
    expected = engine.generate(asked)
    seen: list[tuple[int, int]] = []
    real = HfEngine._forward

    def watched(
        self: HfEngine, cache: Any, mask: torch.Tensor, positions: torch.Tensor, ids: torch.Tensor, *rest: Any
    ) -> torch.Tensor:
        seen.append((ids.shape[0], ids.shape[1] if rest else 1))
        return real(self, cache, mask, positions, ids, *rest)

    monkeypatch.setattr(HfEngine, "_forward", watched)
    narrow = HfEngine(engine.llava)
    narrow._prefill = 331
    assert [r.ids for r in narrow.generate(asked)] == [r.ids for r in expected]
    assert all(rows * width <= 331 or rows == 1 for rows, width in seen)
    assert max(rows for rows, width in seen if width > 1) > 1


def test_pictures_are_resized_beside_the_model(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first row is computed, the last one's picture is still to come: the model does not wait for all of them."""
    waiting, seen = threading.Event(), list[str]()
    real_pixels, real_forward = llava.Llava.pixels, HfEngine._forward

    def pixels(self: llava.Llava, images: Sequence[Image.Image]) -> torch.Tensor:
        seen.append(threading.current_thread().name)
        if len(seen) == 5:
            assert waiting.wait(7200), "the model waits for the last picture before it begins with the first"
        return real_pixels(self, images)

    def forward(self: HfEngine, *inputs: Any, **named: Any) -> torch.Tensor:
        waiting.set()
        return real_forward(self, *inputs, **named)

    monkeypatch.setattr(llava.Llava, "pixels", pixels)
    monkeypatch.setattr(HfEngine, "_forward", forward)
    monkeypatch.setattr(engine, "_prefill", 1)
    turns = prompts.dialogue(PROFILE, "what", chain=False)
    replies = engine.generate([Request(turns, {"full": picture(i)}, 2) for i in range(5)])
    assert [reply.error for reply in replies] == [None] * 5
    assert all(name.startswith("pixels") for name in seen)


SHORT_OF_MEMORY = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import torch
from test_engine_hf import build, requests
torch.set_num_threads(1)
engine = build(sys.argv[2], device="cpu", kv_budget=2**34)
asked = requests(64, budget=3)
engine.generate(asked[:2])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 80 * 2**20,) * 2)
halved = []
class Watched(type(engine.rows)):
    def ran_out(self, size):
        halved.append(size)
        super().ran_out(size)
engine.rows = Watched()
replies = engine.generate(asked)
print(min(halved), sum(r.error is None for r in replies))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space")
def test_a_process_that_runs_out_of_memory_halves_its_batches(tmp_path: Path) -> None:
    """64 questions want about 200 MiB of keys and values, and 80 are to be had."""
    where = make_checkpoint(tmp_path / "m", hidden=256, layers=6)
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(Path(__file__).parent), str(where)],
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows, answered = done.stdout.split()[-2:]
    assert int(answered) == 64
    assert 1 < int(rows) <= 64
