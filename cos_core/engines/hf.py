"""Greedy generation with a LLaVA-1.5-layout checkpoint through `transformers`, batched, on one CPU or GPU.

Rows of different length are padded on the left; masked positions and explicit position ids keep a row's answer independent of
its neighbours (up to rounding: kernels of another batch size add in another order, so two nearly equal logits can swap).
A picture that several requests share, or that returns in a later call, is encoded once, for as long as the caller holds it.

The decoding loop is this module's own, around the model's ordinary forward: the checkpoint's sampling settings (Vicuna ships
temperature 0.9) cannot leak in, each request has its own token budget, and finished rows leave the batch. A test compares its
token ids with `transformers`' `generate`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_core import llava as loader
from cos_core.encoding import Encoded
from cos_core.errors import InputError
from cos_core.interfaces import Reply, Request

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class _Job:
    """A request made ready: its place among the replies, token ids, and one picture a slot."""

    place: int
    encoded: Encoded
    images: tuple[Image, ...]
    budget: int


class HfEngine:
    """Turns dialogues into text with one loaded model. Not for use from several threads at once."""

    name = "hf"

    def __init__(self, llava: loader.Llava) -> None:
        self._llava = llava
        self._stop = _stop_ids(llava)
        self._context = int(llava.model.config.get_text_config().max_position_embeddings)
        self._features: dict[int, torch.Tensor] = {}
        self._rows: int | None = None
        """Most rows that a batch may have, once memory has run out for more."""

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order.

        A request that cannot be run (a picture is missing, `<image>` stands in its text, it is longer than the model's context,
        memory runs out for it alone) gets a Reply with `error`; the others are answered.
        """
        replies: dict[int, Reply] = {}
        todo: list[_Job] = []
        for place, request in enumerate(requests):
            try:
                todo.append(self._job(place, request))
            except InputError as error:
                replies[place] = Reply("", error=str(error))
        while todo:
            part = todo[: self._rows or len(todo)]
            answered = self._unless_out_of_memory(part)
            if answered is None and len(part) > 1:
                self._rows = (len(part) + 1) // 2
                continue
            failure = Reply("", tokens_in=len(part[0].encoded), error="out of memory for a single request")
            replies.update(zip((job.place for job in part), answered or [failure], strict=True))
            todo = todo[len(part) :]
        return [replies[place] for place in range(len(requests))]

    def _job(self, place: int, request: Request) -> _Job:
        encoded = self._llava.encode(request.turns)
        missing = [slot for slot in encoded.slots if slot not in request.images]
        if missing:
            raise InputError(f"the dialogue shows a picture {missing[0]!r} that the request does not hold")
        if encoded.ids.count(self._llava.image_token_id) != len(encoded.slots) * self._llava.image_tokens:
            raise InputError("the text of the dialogue holds the image mark, which stands for a picture only")
        if len(encoded) + request.max_new_tokens > self._context:
            raise InputError(
                f"{len(encoded)} tokens and {request.max_new_tokens} new ones exceed the model's context of {self._context}"
            )
        return _Job(place, encoded, tuple(request.images[slot] for slot in encoded.slots), request.max_new_tokens)

    def _unless_out_of_memory(self, jobs: Sequence[_Job]) -> list[Reply] | None:
        import torch

        try:
            return self._run(jobs)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _run(self, jobs: Sequence[_Job]) -> list[Reply]:
        replies = []
        for job, ids in zip(jobs, self._greedy(jobs), strict=True):
            finished = bool(ids) and ids[-1] in self._stop
            text = self._llava.tokenizer.decode(
                ids[:-1] if finished else ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            replies.append(Reply(text.strip(), tokens_in=len(job.encoded), tokens_out=len(ids), finished=finished))
        return replies

    def _greedy(self, jobs: Sequence[_Job]) -> list[list[int]]:
        """The most likely continuation of each job, its end mark included when it came before the budget was spent."""
        import torch
        from transformers import DynamicCache

        model = self._llava.model
        generated: list[list[int]] = [[] for _ in jobs]
        with torch.inference_mode():
            embeddings, mask = self._batch(jobs)  # (rows, length, hidden), (rows, length)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            cache = DynamicCache(config=model.config.get_text_config())
            rows = list(range(len(jobs)))  # which job stands in each row of the batch
            step: dict[str, torch.Tensor] = {"inputs_embeds": embeddings}
            while rows:
                logits = model(
                    **step,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]  # (rows, vocabulary)
                chosen = logits.argmax(-1)
                for job, token in zip(rows, chosen.tolist(), strict=True):
                    if not self._over(generated[job], jobs[job].budget):
                        generated[job].append(token)
                alive = [i for i, job in enumerate(rows) if not self._over(generated[job], jobs[job].budget)]
                if not alive:
                    break
                if 2 * len(alive) <= len(rows):
                    # Copying keys and values costs; done at every halving, it costs less than the steps it saves.
                    keep = torch.tensor(alive, device=mask.device)
                    cache.batch_select_indices(keep)
                    mask, positions, chosen = mask[keep], positions[keep], chosen[keep]
                    rows = [rows[i] for i in alive]
                mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
                positions = positions[:, -1:] + 1
                step = {"input_ids": chosen[:, None]}
        return generated

    def _over(self, ids: list[int], budget: int) -> bool:
        return len(ids) >= budget or (bool(ids) and ids[-1] in self._stop)

    def _batch(self, jobs: Sequence[_Job]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (rows, length, hidden) with the pictures in place, and the mask (rows, length): 0 on the padding, left."""
        import torch

        length = max(len(job.encoded) for job in jobs)
        padding = 0 if self._llava.image_token_id != 0 else 1  # any id but the image's; the mask hides it
        ids = torch.full((len(jobs), length), padding)
        mask = torch.zeros((len(jobs), length), dtype=torch.long)
        for row, job in enumerate(jobs):
            ids[row, length - len(job.encoded) :] = torch.tensor(job.encoded.ids)
            mask[row, length - len(job.encoded) :] = 1
        ids, mask = ids.to(self._llava.device), mask.to(self._llava.device)
        pictures = [image for job in jobs for image in job.images]
        if not pictures:
            return self._llava.model.get_input_embeddings()(ids), mask
        return self._llava.embed(ids, self._image_features(pictures)), mask

    def _image_features(self, pictures: Sequence[Image]) -> torch.Tensor:
        """(pictures, image_tokens, hidden), each distinct picture encoded once."""
        import torch

        new = {id(image): image for image in pictures if id(image) not in self._features}
        if new:
            encoded = self._llava.image_features(self._llava.pixels(list(new.values())))
            for (key, image), features in zip(new.items(), encoded, strict=True):
                self._features[key] = features
                # The entry goes when the picture does, so an id can never mean another picture.
                weakref.finalize(image, self._features.pop, key, None)
        return torch.stack([self._features[id(image)] for image in pictures])


def build(
    model: str | Path = loader.MINIATURE,
    *,
    device: str = "auto",
    dtype: str = "auto",
    profile: str | None = None,
    attention: str | None = None,
    **_unused: Any,
) -> HfEngine:
    """Loads the checkpoint and returns its engine. Raises what `llava.load` raises."""
    return HfEngine(loader.load(model, profile=profile, device=device, dtype=dtype, attention=attention))


def _stop_ids(llava: loader.Llava) -> frozenset[int]:
    """The ids that end an answer: the tokenizer's and the model's end tokens, and the profile's end mark if it is one token."""
    configured = llava.model.generation_config.eos_token_id
    ids = {llava.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    mark = llava.tokenizer(llava.profile.turn_end, add_special_tokens=False)["input_ids"] if llava.profile.turn_end else []
    if len(mark) == 1:
        ids.add(mark[0])
    return frozenset(int(i) for i in ids if i is not None)


def _is_out_of_memory(error: BaseException) -> bool:
    """torch raises OutOfMemoryError on a GPU and a bare RuntimeError with these words when a CPU allocation fails."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
