"""What a batch is made of, and what bounds it: rows, jobs, the state of a running batch, memory and end marks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch

from cos_core.engines._constrain import TokenGrammar
from cos_core.engines._features import Picture
from cos_core.engines._prefix import Match
from cos_core.engines._sampling import Draws, drawn, draws_of
from cos_core.interfaces import Reply, Request
from cos_core.models.encoder import PictureSpan
from cos_core.system import memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from transformers.cache_utils import Cache

    from cos_core.models.loaded import LoadedModel
    from cos_core.models.textual import TextualModel

T = TypeVar("T")


@dataclass(slots=True)
class BatchRow:
    """A token sequence to run: its pictures in order, and how much of it is stored already.

    `keys`: the ids with a negative number a picture in its positions, so that equal keys mean equal keys and values;
    `positions`: position ids, (length,) or (axes, length); `pictures` and `spans`: each picture and where it stands.
    """

    ids: np.ndarray
    keys: np.ndarray
    positions: np.ndarray
    pictures: tuple[Picture, ...]
    spans: tuple[PictureSpan, ...]
    match: Match

    @property
    def fresh(self) -> int:
        """How many positions are not stored."""
        return len(self.ids) - self.match.length

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers that stand for the pictures in `keys`."""
        return tuple(picture.number for picture in self.pictures)

    @property
    def last(self) -> int:
        """The largest position id: the next token's is one more."""
        return int(self.positions.max(initial=-1))

    def shown(self) -> list[tuple[Picture, int]]:
        """Pictures that are not stored whole, each with how many of its positions are."""
        pairs = zip(self.pictures, self.spans, strict=True)
        counts = [(picture, max(0, self.match.length - span.start), span.stop - span.start) for picture, span in pairs]
        return [(picture, stored) for picture, stored, size in counts if stored < size]

    def cut(self, length: int, match: Match) -> BatchRow:
        """Its first `length` positions, with the pictures that end there."""
        shown = sum(span.stop <= length for span in self.spans)
        return BatchRow(
            self.ids[:length],
            self.keys[:length],
            self.positions[..., :length],
            self.pictures[:shown],
            self.spans[:shown],
            match,
        )


@dataclass(slots=True)
class GenerationJob:
    """A request with its prompt of `tokens_in` tokens, and what has been generated for it.

    `draws`: its random numbers, None where it takes the likeliest token each time.
    """

    place: int
    request: Request
    tokens_in: int
    row: BatchRow
    grammar: TokenGrammar | None
    forced_first: int = 0
    """How many of `ids` the grammar forces before the model is asked: they stand at the end of `row`."""
    ids: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    steps: int = 0
    cached: int = 0
    streamed: int = 0
    """Characters of the text that `request.listen` has been called with."""
    done: bool = False
    failure: str | None = None
    """Why it has no answer, although it was run."""
    draws: Draws | None = field(init=False)

    def __post_init__(self) -> None:
        self.draws = draws_of(self.request)

    def restart(self) -> None:
        """As it was before anything ran: nothing generated, nothing drawn, no hold on a stored prefix."""
        self.ids, self.margins = self.ids[: self.forced_first], self.margins[: self.forced_first]
        self.pending, self.steps, self.cached, self.done, self.failure = [], 0, 0, False, None
        self.draws = draws_of(self.request)
        self.row.match = Match()

    @property
    def columns(self) -> int:
        """Positions that answering takes at most; rows of a grammar wait for each other's forced tokens."""
        return len(self.row.ids) + self.request.max_new_tokens * (2 if self.grammar else 1)


@dataclass(slots=True)
class State:
    """A batch under way: keys and values, which columns count, the last position and the last logits of each row."""

    cache: Cache
    mask: torch.Tensor
    positions: torch.Tensor
    logits: torch.Tensor


class Generated(Protocol):
    """A request, and what has been generated for it: what the jobs of all engines have in common."""

    request: Request
    tokens_in: int
    grammar: TokenGrammar | None
    ids: list[int]
    margins: list[float]
    steps: int
    cached: int
    streamed: int
    failure: str | None


class Texts:
    """Generated tokens as text and as replies, under one model's end marks."""

    def __init__(self, loaded: LoadedModel | TextualModel) -> None:
        self._loaded, self._stop = loaded, loaded.stop_ids

    def of(self, job: Generated) -> str:
        """The text so far, without its end mark."""
        if job.grammar:
            return job.grammar.text(job.ids)
        ids = job.ids[:-1] if job.ids and job.ids[-1] in self._stop else job.ids
        return self._loaded.text(ids)

    def has_ended(self, job: Generated) -> bool:
        """Whether the text is whole: it has its end mark, or all that its grammar asks for."""
        return job.grammar.complete(job.ids) if job.grammar else bool(job.ids) and job.ids[-1] in self._stop

    def pass_on(self, job: Generated) -> None:
        """Calls the request's `listen`, where it has one, with the text that is new."""
        if job.request.listen is None:
            return
        text = self.of(job).lstrip()
        # A character of several tokens shows as a replacement mark until its last token is there.
        if not text.endswith("\N{REPLACEMENT CHARACTER}") and len(text) > job.streamed:
            job.request.listen(text[job.streamed :])
            job.streamed = len(text)

    def reply(self, job: Generated) -> Reply:
        """The reply of a job that was run."""
        if job.failure is not None:
            return Reply("", tokens_in=job.tokens_in, steps=job.steps, error=job.failure)
        return Reply(
            self.of(job).strip(),
            tokens_in=job.tokens_in,
            tokens_out=len(job.ids),
            finished=self.has_ended(job),
            cached=job.cached,
            steps=job.steps,
            ids=tuple(job.ids),
            margins=tuple(job.margins),
            ended=bool(job.ids) and job.ids[-1] in self._stop,
        )


def segments(row: BatchRow, layer: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What is stored of the row in one layer, in order."""
    match = row.match
    return match.prefix.segments(layer, match.length) if match.prefix is not None and match.length else []


def chunks(rows: Sequence[BatchRow], tokens: int) -> list[tuple[int, int]]:
    """Cuts rows, sorted by what they compute, into runs [first, last) of at most `tokens` positions, or of one row."""
    widths = [row.fresh for row in rows]
    cuts = [0]
    for i, width in enumerate(widths):
        first = cuts[-1]
        if i > first and ((i + 1 - first) * width > tokens or width > 1.25 * widths[first] + 16):
            cuts.append(i)
    return list(itertools.pairwise([*cuts, len(rows)]))


def by_length(items: Sequence[T], length: Callable[[T], int]) -> list[list[T]]:
    """Items in batches of like length, so that little padding is computed."""
    batches: list[list[T]] = []
    for item in sorted(items, key=length):
        if not batches or length(item) > 1.5 * length(batches[-1][0]) + 32:
            batches.append([])
        batches[-1].append(item)
    return batches


def key_heads(config: PreTrainedConfig) -> tuple[int, int]:
    """How many heads the keys have, and the width of one."""
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    return heads, int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def token_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values that one position takes in all layers."""
    heads, width = key_heads(config)
    return 2 * int(config.num_hidden_layers) * heads * width * dtype.itemsize


def usual_budget(device: torch.device) -> int:
    """Bytes of keys and values by default: 70 % of a GPU's available memory, a quarter of the system's."""
    room = memory.available(device)
    return int(0.7 * room) if device.type == "cuda" else max(2**28, room // 4)


NOT_FINITE = (-1, math.nan)
"""Instead of a token and its lead: the model's numbers are NaN or infinite."""

NOT_A_NUMBER = "the model's output is not a number (NaN or overflow): its weights are damaged, or too large to compute with"
"""What a reply without an answer says then."""


def choices(rows: Sequence[GenerationJob], logits: torch.Tensor) -> list[tuple[int, float] | None]:
    """For each unfinished row its next token, and the lead of the best logit over the second; `logits` (rows, vocabulary).

    The token is the likeliest, or drawn where the request is sampled; the lead is that of the logits as they are, whatever was
    drawn. Of a row with a grammar, both are of what the grammar lets through. All that is needed comes from the device in one
    transfer, whatever the number of rows: each one waits for everything that the device was given before. A row whose highest
    logit is no finite number, as a NaN among them is, gets NOT_FINITE: nothing can be chosen there.
    """
    tables: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = {}
    for job in rows:
        name = None if job.grammar is None else id(job.grammar)
        if job.done or name in tables:
            continue
        if job.grammar is None:
            tables[name] = _taken(rows, logits), logits.float().topk(2, dim=-1).values
        else:
            scores = logits.index_select(1, job.grammar.index).float()
            tables[name] = scores.sort(dim=-1, descending=True, stable=True)
    parts = [part for table in tables.values() for part in table]
    # Exact: indices and float32 numbers fit in float64.
    on_cpu = iter(torch.cat([part.double() for part in parts], dim=1).cpu().split([part.shape[1] for part in parts], dim=1))
    numbers = {name: (next(on_cpu).tolist(), next(on_cpu).tolist()) for name in tables}

    def choice(place: int, job: GenerationJob) -> tuple[int, float] | None:
        if job.done:
            return None
        if job.grammar is None:
            (taken,), (first, second) = (table[place] for table in numbers[None])
            return (int(taken), first - second) if math.isfinite(first) else NOT_FINITE
        scores, order = (table[place] for table in numbers[id(job.grammar)])
        if not scores or not math.isfinite(scores[0]):
            return NOT_FINITE
        drawn_order = None if job.draws is None else job.draws.order(scores)
        return job.grammar.choose(job.ids, [int(i) for i in order], scores, drawn_order)

    return [choice(place, job) for place, job in enumerate(rows)]


def _taken(rows: Sequence[GenerationJob], logits: torch.Tensor) -> torch.Tensor:
    """For each row the likeliest token, (rows, 1), or a drawn one where an unfinished row without a grammar is sampled."""
    taken = logits.argmax(-1, keepdim=True)
    sampled = [(place, job.draws) for place, job in enumerate(rows) if job.draws and not job.done and not job.grammar]
    if sampled:
        places = torch.tensor([place for place, _ in sampled]).to(logits.device)
        taken[places] = drawn(logits[places], [draws for _, draws in sampled])
    return taken
