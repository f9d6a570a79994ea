"""Greedy generation with a LLaVA-1.5-layout checkpoint through `transformers`, batched, on one CPU or GPU.

Rows of different length are padded on the left; masked positions and explicit position ids keep a row's answer independent of
its neighbours (up to rounding: kernels of another batch size add in another order, so two nearly equal logits can swap).
A picture that several requests share, or that returns in a later call, is encoded once, and a dialogue that begins as an
earlier one did continues its keys and values (_prefix.py), for as long as the caller holds the picture. Where a first-pass text
comes back in other tokens than were generated, what stands before the first difference is still used.

The decoding loop stands here, around the model's ordinary forward: the checkpoint's sampling settings (Vicuna ships
temperature 0.9) cannot leak in, each request has its own token budget, and finished rows leave the batch. A test compares its
token ids with `transformers`' `generate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from cos_core.dialogue.encoding import detokenize
from cos_core.engines._batch import (
    NOT_FINITE,
    BatchRow,
    GenerationJob,
    State,
    by_length,
    choices,
    chunks,
    key_heads,
    segments,
    stop_ids,
    token_bytes,
    usual_budget,
)
from cos_core.engines._constrain import TokenGrammar
from cos_core.engines._features import Features
from cos_core.engines._prefix import Match, PartLayer, PrefixStore, buffer, common_length
from cos_core.errors import InputError
from cos_core.interfaces import Engine, Grammar, Reply, Request
from cos_core.models import hub
from cos_core.models import llava as loader
from cos_core.models.vocabulary import without_rows
from cos_core.system import memory

if TYPE_CHECKING:
    from PIL.Image import Image

    from cos_core.dialogue.prompts import Profile

WORTH_SHARING = 16
"""Fewer common tokens than this are not computed apart for the questions of one picture."""

_NOT_FINITE = "the model's output is not a number (NaN or overflow): its weights are damaged, or too large to compute with"

PREFILL_TOKENS = (1024, 4096)
"""Positions that are computed at once at most, on a CPU and on a GPU, save for one longer dialogue: what bounds activations."""


class HfEngine(Engine):
    """Turns dialogues into text with one loaded model. Not for use from several threads at once, `prepare` excepted.

    `reuse` False computes every dialogue from its start. `kv_budget`: bytes that keys and values may take, those of the running
    batch and those kept for later together; batches are cut to fit. None: a quarter of the available memory, on a GPU 70 %.
    `store`: another engine's, with which it then shares this budget; they do not run at once. Beside keys and values stand the
    weights, the features of pictures at hand, and the activations of PREFILL_TOKENS positions or one dialogue.
    """

    name = "hf"

    def __init__(
        self, llava: loader.Llava, *, reuse: bool = True, kv_budget: int | None = None, store: PrefixStore | None = None
    ) -> None:
        self.llava = llava
        self._stop = stop_ids(llava)
        self._excluded = torch.tensor(llava.unused_rows, device=llava.device) if llava.unused_rows else None
        text = llava.model.config.get_text_config()
        self._rows = int(text.vocab_size)
        self._context = llava.context
        self._layers = int(text.num_hidden_layers)
        self._heads = key_heads(text)
        self._token_bytes = token_bytes(text, llava.model.dtype)
        self.reuse = reuse
        self.kv_budget = kv_budget or usual_budget(llava.device)
        self._budget_is_set = kv_budget is not None
        self.kv_peak = 0
        """Most bytes of keys and values ever held at once."""
        self._store = PrefixStore(self.kv_budget // 2) if store is None else store
        # Without reuse nothing is put into the store, and the numbers of pictures mean nothing there.
        self._features = Features(llava, on_drop=self._store.forget if reuse else lambda _: None)
        self._grammars: dict[Grammar, TokenGrammar] = {}
        self._prefill = PREFILL_TOKENS[llava.device.type == "cuda"]
        self.rows = memory.Allowance()
        """How many rows a batch may have, once memory has run out for more."""

    def without_reuse(self) -> HfEngine:
        """The same weights within the same budget, every dialogue computed from its start."""
        return HfEngine(self.llava, reuse=False, kv_budget=self.kv_budget, store=self._store)

    def make_room(self, wanted: int) -> int:
        """Leaves memory to another user of these weights, while the engine rests; how many bytes, at most `wanted`.

        That is what stays available when the budget is used up. Where this is less than `wanted`, a budget that the user did
        not set is reduced, down to half of it.
        """
        room = memory.available(self.llava.device) - max(0, self.kv_budget - self._store.held)
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

        A request that cannot be run (a picture is missing, `<image>` stands in its text, it is too long for the model's context
        or for the budget, memory runs out for it alone) gets a Reply with `error`; the others are answered.
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
            outcome = self._unless_out_of_memory(part)
            if isinstance(outcome, str):
                self.rows.ran_out(len(part))
                if len(part) > 1:
                    continue
                failure = f"out of memory for a single request: {outcome}"
                outcome = [Reply("", tokens_in=len(part[0].encoded), error=failure, transient=True)]
            else:
                self.rows.fitted(len(part))
            replies.update(zip((job.place for job in part), outcome, strict=True))
            todo = todo[len(part) :]
        return [replies[place] for place in range(len(requests))]

    def prepare(self, images: Sequence[Image]) -> None:
        """Pads, resizes and normalises pictures ahead of their use; may run in another thread than `generate`."""
        self._features.prepare(images)

    def _job(self, place: int, request: Request) -> GenerationJob:
        encoded = self.llava.encode(request.turns)
        missing = [slot for slot in encoded.slots if slot not in request.images]
        if missing:
            raise InputError(f"the dialogue shows a picture {missing[0]!r} that the request does not hold")
        if encoded.ids.count(self.llava.image_token_id) != len(encoded.slots) * self.llava.image_tokens:
            raise InputError("the text of the dialogue holds the image mark, which stands for a picture only")
        if len(encoded) + request.max_new_tokens > self._context:
            raise InputError(
                f"{len(encoded)} tokens and {request.max_new_tokens} new ones exceed the model's context of {self._context}"
            )
        grammar = self._grammar(request.grammar)
        forced = grammar.forced([])[: request.max_new_tokens] if grammar else []
        images = tuple(request.images[slot] for slot in encoded.slots)
        numbers = tuple(self._features.number(image) for image in images)
        ids = np.array([*encoded.ids, *forced], dtype=np.int64)
        if ids.max(initial=0) >= self._rows:
            raise InputError(f"the tokenizer gives the id {ids.max()}, and the model's vocabulary has {self._rows} rows")
        keys = ids.copy()
        keys[ids == self.llava.image_token_id] = np.repeat([-1 - n for n in numbers], self.llava.image_tokens)
        job = GenerationJob(
            place, request, encoded, BatchRow(ids, keys, images, numbers, Match()), grammar, len(forced), list(forced)
        )
        job.margins = [math.inf] * len(forced)
        if job.columns * self._token_bytes > self.kv_budget:
            raise InputError(
                f"one dialogue needs {job.columns * self._token_bytes / 2**20:.0f} MiB of keys and values, "
                f"more than the budget of {self.kv_budget / 2**20:.0f} MiB (--kv-budget)"
            )
        return job

    def _grammar(self, grammar: Grammar | None) -> TokenGrammar | None:
        if grammar is None:
            return None
        if grammar not in self._grammars:
            tokens = TokenGrammar(grammar, self.llava.tokenizer, self.llava.profile)
            tokens.index = torch.tensor(tokens.candidates, dtype=torch.long, device=self.llava.device)
            self._grammars[grammar] = tokens
        return self._grammars[grammar]

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
            return [self._reply(job) for job in jobs]
        except (RuntimeError, MemoryError, OSError) as error:
            if not memory.is_out_of_memory(error):
                raise
            self.release()
            for job in jobs:
                job.restart()
            memory.let_go(error)
            return memory.reason(error)

    def _reply(self, job: GenerationJob) -> Reply:
        if job.failure is not None:
            return Reply("", tokens_in=len(job.encoded), steps=job.steps, error=job.failure)
        return Reply(
            self._text(job).strip(),
            tokens_in=len(job.encoded),
            tokens_out=len(job.ids),
            finished=self._has_ended(job),
            cached=job.cached,
            steps=job.steps,
            ids=tuple(job.ids),
            margins=tuple(job.margins),
        )

    def _text(self, job: GenerationJob) -> str:
        if job.grammar:
            return job.grammar.text(job.ids)
        ids = job.ids[:-1] if job.ids and job.ids[-1] in self._stop else job.ids
        return detokenize(ids, self.llava.tokenizer)

    def _run(self, jobs: Sequence[GenerationJob]) -> None:
        """Gives each job its most likely continuation, the end mark included when it came before the budget was spent."""
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
                cut = BatchRow(first.ids[:common], first.keys[:common], first.images, first.numbers, match)
                pictures = int((cut.keys < 0).sum()) // self.llava.image_tokens
                cut.images, cut.numbers = cut.images[:pictures], cut.numbers[:pictures]
                shared.append(cut)
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
            job.cached = min(job.row.match.length, len(job.encoded))
        rows = list(jobs)  # which job stands in each row of the batch
        while True:
            self._choose(rows, state.logits)
            for place, job in enumerate(rows):
                if not job.done and (len(job.ids) >= job.request.max_new_tokens or self._has_ended(job)):
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
                job.failure, job.done = f"{_NOT_FINITE} in {str(self.llava.model.dtype).removeprefix('torch.')}", True
                continue
            forced = job.grammar.forced([*job.ids, token]) if job.grammar else []
            room = job.request.max_new_tokens - len(job.ids)
            job.pending = [token, *forced][:room]
            job.ids += job.pending
            job.margins += [lead, *(math.inf for _ in forced)][:room]
            if job.request.listen is not None:
                self._stream(job, job.request.listen)

    def _stream(self, job: GenerationJob, listen: Callable[[str], None]) -> None:
        """Calls `listen` with the text that is new."""
        text = self._text(job).lstrip()
        # A character of several tokens shows as a replacement mark until its last token is there.
        if not text.endswith("\N{REPLACEMENT CHARACTER}") and len(text) > job.streamed:
            listen(text[job.streamed :])
            job.streamed = len(text)

    def _has_ended(self, job: GenerationJob) -> bool:
        """Whether the text is whole: it has its end mark, or all that its grammar asks for."""
        return job.grammar.complete(job.ids) if job.grammar else bool(job.ids) and job.ids[-1] in self._stop

    def _prompts(self, rows: Sequence[BatchRow], room: int) -> State:
        """Runs what is not stored of each row, a few rows at a time; leaves room for `room` more positions.

        Rows are sorted by what they compute. Each stands at the right of the buffer, stored and new positions without a gap.
        """
        model, device = self.llava.model, self.llava.device
        end = max(len(row.ids) for row in rows)
        cache = buffer(self._layers, end + room)
        like = torch.empty((len(rows), *self._heads[:1], 0, self._heads[1]), dtype=model.dtype, device=device)
        for layer, part in enumerate(cache.layers):
            part.start([(len(row.ids), segments(row, layer)) for row in rows], like, end)
        self._features.ahead(image for row in rows for image, _ in row.shown(self.llava.image_tokens))
        logits = [self._chunk(cache, rows, first, last) for first, last in chunks(rows, self._prefill)]
        lengths = torch.tensor([[len(row.ids)] for row in rows])
        mask = (torch.arange(end) >= end - lengths).long().to(device)
        return State(cache, mask, (lengths - 1).to(device), torch.cat(logits))

    def _chunk(self, cache: Cache, rows: Sequence[BatchRow], first: int, last: int) -> torch.Tensor:
        """Runs rows [first, last) and returns the logits behind each, (rows, vocabulary)."""
        device, part = self.llava.device, rows[first:last]
        width, longest = max(row.fresh for row in part), max(len(row.ids) for row in part)
        ids = torch.full((len(part), width), 0 if self.llava.image_token_id else 1)  # any id but the image's; the mask hides it
        positions = torch.zeros((len(part), width), dtype=torch.long)
        mask = torch.zeros((len(part), longest), dtype=torch.long)
        for place, row in enumerate(part):
            ids[place, width - row.fresh :] = torch.from_numpy(row.ids[row.match.length :])
            positions[place, width - row.fresh :] = torch.arange(row.match.length, len(row.ids))
            mask[place, longest - len(row.ids) :] = 1
        ids, features = ids.to(device), self._shown(part)
        embeddings = self.llava.model.get_input_embeddings()(ids) if features is None else self.llava.embed(ids, features)
        fresh = [row.fresh for row in part]
        view = Cache(layers=[PartLayer(whole, first, last, whole.used - longest, fresh) for whole in cache.layers])
        return self._forward(view, mask.to(device), positions.to(device), inputs_embeds=embeddings)

    def _step(self, state: State, new: Sequence[Sequence[int]]) -> None:
        """Runs the tokens just chosen, padded on the left to the longest row."""
        width = max(len(tokens) for tokens in new)
        ids = torch.tensor([[0] * (width - len(tokens)) + list(tokens) for tokens in new])
        mask = torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in new]).to(state.mask)
        state.positions = (state.positions[:, -1:] + mask.cumsum(1)).clamp(min=0)
        state.mask = torch.cat([state.mask, mask], dim=1)
        state.logits = self._forward(state.cache, state.mask, state.positions, input_ids=ids.to(state.mask.device))

    def _forward(self, cache: Cache, mask: torch.Tensor, positions: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Logits behind each row, (rows, vocabulary); what no answer can hold is minus infinity."""
        logits: torch.Tensor = self.llava.model(
            **inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1]
        return without_rows(logits, self._excluded)

    def _keep(self, state: State, place: int, row: BatchRow, keys: np.ndarray) -> None:
        """Stores what the row has computed, so that a later one that begins alike continues it."""
        columns = state.mask[place].nonzero()[row.match.length :, 0]
        layers = [(part.keys[place, :, columns], part.values[place, :, columns]) for part in state.cache.layers]
        self._store.add(keys, row.match, layers, row.numbers)

    def _shown(self, rows: Sequence[BatchRow]) -> torch.Tensor | None:
        """Features of every image position that is not stored, in order: (positions, hidden)."""
        shown = [each for row in rows for each in row.shown(self.llava.image_tokens)]
        if not shown:
            return None
        features = self._features.of([image for image, _ in shown])
        return torch.cat([whole[stored:] for whole, (_, stored) in zip(features, shown, strict=True)])


def build(
    model: str | Path = hub.MINIATURE,
    *,
    device: str = "auto",
    dtype: str = "auto",
    profile: str | Profile | None = None,
    attention: str | None = None,
    reuse: bool = True,
    kv_budget: int | None = None,
    **_unused: Any,
) -> HfEngine:
    """Loads the checkpoint and returns its engine. Raises what `llava.load` raises."""
    llava = loader.load(model, profile=profile, device=device, dtype=dtype, attention=attention)
    return HfEngine(llava, reuse=reuse, kv_budget=kv_budget)
