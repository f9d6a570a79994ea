"""Generation with a vision-language model through `transformers`, batched, on one CPU or GPU.

Rows of different length are padded on the left; masked positions and explicit position ids keep a row's answer independent of
its neighbours (up to rounding: kernels of another batch size add in another order, so two nearly equal logits can swap).
A picture that several requests share, or that returns in a later call, is encoded once, and a dialogue that begins as an
earlier one did continues its keys and values (_prefix.py), for as long as the caller holds the picture. Where a first-pass text
comes back in other tokens than were generated, what stands before the first difference is still used.

The decoding loop stands here, around the model's ordinary forward: the checkpoint's sampling settings (Vicuna ships
temperature 0.9) cannot leak in, each request has its own token budget, and finished rows leave the batch. A test compares its
token ids with `transformers`' `generate`. A request that is sampled (_sampling.py) draws from a generator of its own, so that
rows of both kinds stand in one batch. Under a grammar `top_p` does not apply: what is drawn from is all that the grammar lets
through, renormalised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from cos_core.engines._batch import (
    NOT_A_NUMBER,
    NOT_FINITE,
    BatchRow,
    GenerationJob,
    State,
    Texts,
    by_length,
    choices,
    chunks,
    key_heads,
    segments,
    token_bytes,
    usual_budget,
)
from cos_core.engines._constrain import TokenGrammars
from cos_core.engines._features import Features, NotEncodedError
from cos_core.engines._plain import PlainEngine
from cos_core.engines._prefix import Match, PartLayer, PrefixStore, buffer, common_length
from cos_core.engines._probe import FastEngine, run_once, tried
from cos_core.errors import InputError
from cos_core.interfaces import Engine, Reply, Request
from cos_core.models import hub
from cos_core.models.families import PixelBudget
from cos_core.models.general import GeneralModel
from cos_core.models.llava import Llava
from cos_core.models.loaded import LoadedModel
from cos_core.models.loading import load
from cos_core.models.textual import TextualModel
from cos_core.models.vocabulary import without_rows
from cos_core.system import memory
from cos_core.types import ImageSlot

if TYPE_CHECKING:
    from PIL.Image import Image

    from cos_core.dialogue.prompts import Profile

WORTH_SHARING = 16
"""Fewer common tokens than this are not computed apart for the questions of one picture."""

PREFILL_TOKENS = (1024, 4096)
"""Positions that are computed at once at most, on a CPU and on a GPU, save for one longer dialogue: what bounds activations."""


class HfEngine(FastEngine):
    """Turns dialogues into text with one loaded model. Not for use from several threads at once, `prepare` excepted.

    `reuse` False computes every dialogue from its start. `kv_budget`: bytes that keys and values may take, those of the running
    batch and those kept for later together; batches are cut to fit. None: a quarter of the available memory, on a GPU 70 %.
    `store`: another engine's, with which it then shares this budget; they do not run at once. Beside keys and values stand the
    weights, the features of pictures at hand, and the activations of PREFILL_TOKENS positions or one dialogue.
    """

    name = "hf"

    def __init__(
        self, loaded: LoadedModel, *, reuse: bool = True, kv_budget: int | None = None, store: PrefixStore | None = None
    ) -> None:
        self.loaded = loaded
        self._texts = Texts(loaded)
        self._excluded = torch.tensor(loaded.unused_rows, device=loaded.device) if loaded.unused_rows else None
        text = loaded.model.config.get_text_config()
        self._layers = int(text.num_hidden_layers)
        self._heads = key_heads(text)
        self._token_bytes = token_bytes(text, loaded.model.dtype)
        self.reuse = reuse and loaded.continues
        self.kv_budget = kv_budget or usual_budget(loaded.device)
        self._budget_is_set = kv_budget is not None
        self.kv_peak = 0
        """Most bytes of keys and values ever held at once."""
        self._store = PrefixStore(self.kv_budget // 2) if store is None else store
        # Without reuse nothing is put into the store, and the numbers of pictures mean nothing there.
        self._features = Features(loaded, on_drop=self._store.forget if self.reuse else lambda _: None)
        self._grammars = TokenGrammars(loaded, loaded.device)
        self._prefill = PREFILL_TOKENS[loaded.device.type == "cuda"]
        self.rows = memory.Allowance()
        """How many rows a batch may have, once memory has run out for more."""

    @property
    def llava(self) -> Llava:
        """The model where it is LLaVA-1.5, for those who compute with its parts; AttributeError for another family's."""
        if not isinstance(self.loaded, Llava):
            raise AttributeError("llava")
        return self.loaded

    def without_reuse(self) -> HfEngine:
        """The same weights within the same budget, every dialogue computed from its start."""
        return HfEngine(self.loaded, reuse=False, kv_budget=self.kv_budget, store=self._store)

    def make_room(self, wanted: int) -> int:
        """Leaves memory to another user of these weights, while the engine rests; how many bytes, at most `wanted`.

        That is what stays available when the budget is used up. Where this is less than `wanted`, a budget that the user did
        not set is reduced, down to half of it.
        """
        room = memory.available(self.loaded.device) - max(0, self.kv_budget - self._store.held)
        if room < wanted and not self._budget_is_set:
            reduction = min(wanted - room, self.kv_budget // 2)
            self.kv_budget, room = self.kv_budget - reduction, room + reduction
            self._store.shrink(self.kv_budget)
        return max(0, min(room, wanted))

    def release(self) -> None:
        """Drops all that is kept for later: keys and values of former dialogues, features of pictures."""
        self._store.clear()
        self._features.release()

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order.

        A request that cannot be run (a picture is missing or beyond the tower, `<image>` stands in its text, it is too long for
        the model's context or for the budget, memory runs out for it alone) gets a Reply with `error`; the others are answered.
        """
        replies: dict[int, Reply] = {}
        todo: list[GenerationJob] = []
        for place, request in enumerate(requests):
            try:
                todo.append(self._job(place, request))
            except InputError as error:
                replies[place] = Reply("", error=str(error))
        while todo:
            part = todo[: self._fitting(todo)]
            try:
                outcome = self._unless_out_of_memory(part)
            except NotEncodedError as error:
                showing = {job.place for job in part if error.picture.number in job.row.numbers}
                replies.update((place, Reply("", error=str(error))) for place in showing)
                todo = [job for job in todo if job.place not in showing]
                for job in part:
                    job.restart()
                continue
            if isinstance(outcome, str):
                self.rows.ran_out(len(part))
                if len(part) > 1:
                    continue
                failure = f"out of memory for a single request: {outcome}"
                outcome = [Reply("", tokens_in=part[0].tokens_in, error=failure, transient=True)]
            else:
                self.rows.fitted(len(part))
            replies.update(zip((job.place for job in part), outcome, strict=True))
            todo = todo[len(part) :]
        return [replies[place] for place in range(len(requests))]

    def logits(self, requests: Sequence[Request]) -> torch.Tensor:
        """The logits (requests, vocabulary) behind dialogues that run together; what was computed of them is kept, as
        `generate` keeps it. Raises InputError where one cannot be run."""
        jobs = [self._job(place, request) for place, request in enumerate(requests)]
        with torch.inference_mode():
            self._share([job.row for job in jobs])
            order = sorted(range(len(jobs)), key=lambda place: jobs[place].row.fresh)
            state = self._prompts([jobs[place].row for place in order], 0)
            if self.reuse:
                for at, place in enumerate(order):
                    self._keep(state, at, jobs[place].row, jobs[place].row.keys)
        return state.logits[torch.tensor(order).argsort()]

    def prepare(self, images: Sequence[Image]) -> None:
        """Pads, resizes and normalises pictures ahead of their use; may run in another thread than `generate`."""
        self._features.prepare(images)

    def refuses(self, crop: Image) -> bool:
        if not self.loaded.refuses_shapes:
            return False
        try:
            self._features.inputs(self._features.picture(crop, self.loaded.variant(2)))
        except InputError:
            return True
        return False

    def _job(self, place: int, request: Request) -> GenerationJob:
        slots = [part.slot for turn in request.turns for part in turn.parts if isinstance(part, ImageSlot)]
        missing = [slot for slot in slots if slot not in request.images]
        if missing:
            raise InputError(f"the dialogue shows a picture {missing[0]!r} that the request does not hold")
        variant = self.loaded.variant(len(slots))
        shown = {slot: self._features.picture(request.images[slot], variant) for slot in slots}
        prompt = self.loaded.prompt(request.turns, lambda slot: self._features.inputs(shown[slot]))
        context = self.loaded.context
        if len(prompt) + request.max_new_tokens > context:
            raise InputError(
                f"{len(prompt)} tokens and {request.max_new_tokens} new ones exceed the model's context of {context}"
            )
        grammar = None if request.grammar is None else self._grammars.of(request.grammar)
        forced = grammar.forced([])[: request.max_new_tokens] if grammar else []
        ids = np.array([*prompt.ids, *forced], dtype=np.int64)
        is_image = ids == self.loaded.image_token_id
        if ids[~is_image].max(initial=0) >= self.loaded.rows:
            raise InputError(f"the tokenizer gives the id {ids.max()}, and the model's vocabulary has {self.loaded.rows} rows")
        pictures = tuple(shown[span.slot] for span in prompt.spans)
        keys = ids.copy()
        for picture, span in zip(pictures, prompt.spans, strict=True):
            part = slice(span.start, span.stop)
            keys[part] = np.where(is_image[part], -1 - picture.number, keys[part])
        positions = self.loaded.positions(ids, lambda: [self._features.inputs(picture) for picture in pictures])
        row = BatchRow(ids, keys, positions, pictures, prompt.spans, Match())
        job = GenerationJob(place, request, len(prompt), row, grammar, len(forced), list(forced))
        job.margins = [math.inf] * len(forced)
        if job.columns * self._token_bytes > self.kv_budget:
            raise InputError(
                f"one dialogue needs {job.columns * self._token_bytes / 2**20:.0f} MiB of keys and values, "
                f"more than the budget of {self.kv_budget / 2**20:.0f} MiB (--kv-budget)"
            )
        return job

    def _fitting(self, jobs: Sequence[GenerationJob]) -> int:
        """How many of the first jobs run together: half the budget is theirs, half the store's; at least one runs."""
        longest, rows = 0, 0
        for job in jobs[: self.rows.limit]:
            longest = max(longest, job.columns)
            if rows and (rows + 1) * longest * self._token_bytes > self.kv_budget // 2:
                break
            rows += 1
        return rows

    def _unless_out_of_memory(self, jobs: Sequence[GenerationJob]) -> list[Reply] | str:
        """The replies; or, when memory ran out, the error's words, after everything was freed and the jobs were reset."""
        try:
            self._run(jobs)
            return [self._texts.reply(job) for job in jobs]
        except (RuntimeError, MemoryError, OSError) as error:
            if not memory.is_out_of_memory(error):
                raise
            self.release()
            for job in jobs:
                job.restart()
            memory.let_go(error)
            return memory.reason(error)

    def _run(self, jobs: Sequence[GenerationJob]) -> None:
        """Gives each job its continuation, likeliest or drawn, and the end mark where it comes before the budget is spent."""
        working = max(job.columns for job in jobs) * len(jobs) * self._token_bytes
        self._store.limit = max(0, self.kv_budget - working)
        self._store.shrink(self._store.limit)
        with torch.inference_mode():
            self._share([job.row for job in jobs])
            for batch in by_length(jobs, lambda job: len(job.row.ids)):
                self._answer(sorted(batch, key=lambda job: job.row.fresh))
                self.kv_peak = max(self.kv_peak, self._store.held + working)

    def _share(self, rows: Sequence[BatchRow]) -> None:
        """Computes what the questions of one picture have in common once, before the questions themselves."""
        if not self.reuse:
            return
        groups: dict[int, list[BatchRow]] = {}
        for row in rows:
            if row.numbers:
                groups.setdefault(row.numbers[0], []).append(row)
        shared: list[BatchRow] = []
        for group in groups.values():
            first = group[0]
            common = min(min(common_length(first.keys, row.keys), len(row.keys) - 1) for row in group)
            match = self._store.match(first.keys[: common + 1])
            if len(group) > 1 and common - match.length >= WORTH_SHARING:
                shared.append(first.cut(common, match))
        for batch in by_length(shared, lambda row: len(row.ids)):
            batch.sort(key=lambda row: row.fresh)
            state = self._prompts(batch, 0)
            for place, row in enumerate(batch):
                self._keep(state, place, row, row.keys)
        for row in rows:
            row.match = self._store.match(row.keys)

    def _answer(self, jobs: list[GenerationJob]) -> None:
        """Prompts, then tokens until every job has its end mark or its budget; finished rows leave at every halving."""
        state = self._prompts([job.row for job in jobs], max(job.columns - len(job.row.ids) for job in jobs))
        for job in jobs:
            job.cached = min(job.row.match.length, job.tokens_in)
        rows = list(jobs)  # which job stands in each row of the batch
        while True:
            self._choose(rows, state.logits)
            for place, job in enumerate(rows):
                if not job.done and (len(job.ids) >= job.request.max_new_tokens or self._texts.has_ended(job)):
                    job.done = True
                    if self.reuse and len(job.row.numbers) == 1:
                        fed = job.ids[job.forced_first : len(job.ids) - len(job.pending)]
                        self._keep(state, place, job.row, np.concatenate([job.row.keys, np.array(fed, dtype=np.int64)]))
            alive = [place for place, job in enumerate(rows) if not job.done]
            if not alive:
                return
            if 2 * len(alive) <= len(rows):
                # Copying keys and values costs; done at every halving, it costs less than the steps it saves.
                keep = torch.tensor(alive, device=state.mask.device)
                state.cache.batch_select_indices(keep)
                state.mask, state.positions = state.mask[keep], state.positions[keep]
                rows = [rows[place] for place in alive]
            self._step(state, [job.pending for job in rows])

    def _choose(self, rows: Sequence[GenerationJob], logits: torch.Tensor) -> None:
        """Each unfinished row's next token, and those that its grammar then leaves no choice about."""
        for job, choice in zip(rows, choices(rows, logits), strict=True):
            if choice is None:
                continue
            job.steps += 1
            token, lead = choice
            if choice is NOT_FINITE:
                job.failure, job.done = f"{NOT_A_NUMBER} in {str(self.loaded.model.dtype).removeprefix('torch.')}", True
                continue
            forced = job.grammar.forced([*job.ids, token]) if job.grammar else []
            room = job.request.max_new_tokens - len(job.ids)
            job.pending = [token, *forced][:room]
            job.ids += job.pending
            job.margins += [lead, *(math.inf for _ in forced)][:room]
            self._texts.pass_on(job)

    def _prompts(self, rows: Sequence[BatchRow], room: int) -> State:
        """Runs what is not stored of each row, a few rows at a time; leaves room for `room` more positions.

        Rows are sorted by what they compute. Each stands at the right of the buffer, stored and new positions without a gap.
        """
        device = self.loaded.device
        end = max(len(row.ids) for row in rows)
        cache = buffer(self._layers, end + room)
        like = torch.empty((len(rows), *self._heads[:1], 0, self._heads[1]), dtype=self.loaded.model.dtype, device=device)
        for layer, part in enumerate(cache.layers):
            part.start([(len(row.ids), segments(row, layer)) for row in rows], like, end)
        self._features.ahead(picture for row in rows for picture, _ in row.shown())
        logits = [self._chunk(cache, rows, first, last) for first, last in chunks(rows, self._prefill)]
        lengths = torch.tensor([[len(row.ids)] for row in rows])
        mask = (torch.arange(end) >= end - lengths).long().to(device)
        return State(cache, mask, torch.tensor([[row.last] for row in rows]).to(device), torch.cat(logits))

    def _chunk(self, cache: Cache, rows: Sequence[BatchRow], first: int, last: int) -> torch.Tensor:
        """Runs rows [first, last) and returns the logits behind each, (rows, vocabulary)."""
        device, part = self.loaded.device, rows[first:last]
        width, longest = max(row.fresh for row in part), max(len(row.ids) for row in part)
        filler = 0 if self.loaded.image_token_id else 1  # any id but the image's; the mask hides it
        whole = torch.full((len(part), longest), filler)
        positions = torch.zeros((*part[0].positions.shape[:-1], len(part), width), dtype=torch.long)
        mask = torch.zeros((len(part), longest), dtype=torch.long)
        for place, row in enumerate(part):
            whole[place, longest - len(row.ids) :] = torch.from_numpy(row.ids)
            positions[..., place, width - row.fresh :] = torch.from_numpy(row.positions[..., row.match.length :])
            mask[place, longest - len(row.ids) :] = 1
        ids = whole[:, longest - width :].clone()
        for place, row in enumerate(part):
            ids[place, : width - row.fresh] = filler
        fresh = [row.fresh for row in part]
        view = Cache(layers=[PartLayer(layer, first, last, layer.used - longest, fresh) for layer in cache.layers])
        shown = [each for row in part for each in row.shown()]
        features = self._features.of([picture for picture, _ in shown])
        return self._forward(
            view,
            mask.to(device),
            positions.to(device),
            ids.to(device),
            [(each, stored) for each, (_, stored) in zip(features, shown, strict=True)],
            whole,
        )

    def _step(self, state: State, new: Sequence[Sequence[int]]) -> None:
        """Runs the tokens just chosen, padded on the left to the longest row."""
        width = max(len(tokens) for tokens in new)
        ids = torch.tensor([[0] * (width - len(tokens)) + list(tokens) for tokens in new])
        mask = torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in new]).to(state.mask)
        state.positions = (state.positions[:, -1:] + mask.cumsum(1)).clamp(min=0)
        state.mask = torch.cat([state.mask, mask], dim=1)
        positions = state.positions if self.loaded.axes is None else state.positions.expand(self.loaded.axes, *mask.shape)
        state.logits = self._forward(state.cache, state.mask, positions, ids.to(state.mask.device))

    def _forward(
        self,
        cache: Cache,
        mask: torch.Tensor,
        positions: torch.Tensor,
        ids: torch.Tensor,
        shown: Sequence[tuple[Any, int]] = (),
        whole: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits behind each row, (rows, vocabulary); what no answer can hold is minus infinity."""
        logits = self.loaded.run(ids, shown, attention_mask=mask, position_ids=positions, past_key_values=cache, whole=whole)
        return without_rows(logits, self._excluded)

    def _keep(self, state: State, place: int, row: BatchRow, keys: np.ndarray) -> None:
        """Stores what the row has computed, so that a later one that begins alike continues it."""
        columns = state.mask[place].nonzero()[row.match.length :, 0]
        layers = [(part.keys[place, :, columns], part.values[place, :, columns]) for part in state.cache.layers]
        self._store.add(keys, row.match, layers, row.numbers)


def build(
    model: str | Path = hub.MINIATURE,
    *,
    device: str = "auto",
    dtype: str = "auto",
    profile: str | Profile | None = None,
    attention: str | None = None,
    reuse: bool = True,
    kv_budget: int | None = None,
    budget: PixelBudget | None = None,
    **_unused: Any,
) -> Engine:
    """Loads the checkpoint and returns its engine: for a family without a file, the one that answers as the model does; for
    models without a dialogue, the library's own way.

    Raises what `loading.load` raises.
    """
    loaded = load(model, profile=profile, device=device, dtype=dtype, attention=attention, budget=budget)
    if isinstance(loaded, TextualModel):
        return PlainEngine(loaded, kv_budget=kv_budget)
    if isinstance(loaded, GeneralModel) and not loaded.family.name:
        return tried(loaded, lambda: HfEngine(loaded, reuse=reuse, kv_budget=kv_budget), kv_budget)
    engine = HfEngine(loaded, reuse=reuse, kv_budget=kv_budget)
    if isinstance(loaded, GeneralModel):
        run_once(engine, loaded)
    return engine
