"""Relevance through two streams that attend to each other (Chefer et al. 2021, rules 5-11; the route of CoS §3.2 with LXMERT).

T text tokens and I regions. Four matrices say how much each side depends on each: R_tt (T, T), R_ii (I, I), R_ti (T, I) and
R_it (I, T), from R_tt = R_ii = 1 and R_ti = R_it = 0. Abar is rule 5 (mean over heads of the positive part of dy/dA * A, Eq. 5
of CoS), N(R) the normalisation of rules 8-9. Then, with OLD values on the right of every line:
  text layer     R_tt += Abar_tt R_tt                R_ti += Abar_tt R_ti                    (rules 6, 7; vision layer likewise)
  cross layer    R_ti += N(R_tt)^T Abar_ti N(R_ii)   R_tt += Abar_ti R_it                      (rules 10, 11)
                 R_it += N(R_ii)^T Abar_it N(R_tt)   R_ii += Abar_it R_ti
                 then its two self-attentions, each as a layer of its stream.
Language layers come first, then vision layers, then cross layers. The scores of the regions are row [CLS] of R_ti, the answer
being read from [CLS]. The transpose on the left factor stands in the authors' code and is kept.

Where this differs from others: the authors' LXMERT code divides by the sums of R - 1 as they are, so a row without relevance
gives 0/0 and every score becomes NaN; their DETR code sets NaN to 0 after the product, where one NaN has already spoiled a row
and column; lvlm-interpret divides by 1 instead. Here a row that sums to zero stays a row of zeros, which is lvlm-interpret's
value. Padding makes such rows, so batches need this. The authors skip the vision side of the last cross layer by hand; here
whatever y does not depend on has no gradient and adds nothing, which is the same. They also set R_tt[CLS, CLS] to 0 at the end,
which no region's score sees. No LRP (`use_lrp=False` in the authors' notebook). And R_tt and R_ii are kept less 1, as what they
have gained: the authors add to 1 and subtract 1 again before they divide, which in float32 leaves seven digits of the 1 and
fewer of a small gain.

Unlike one stream, row [CLS] is no linear sweep over rows, since N(R)^T asks for columns; the matrices are small and are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from cos_core.relevance.propagation import Readings, SweepSettings, mean_positive, target_score

if TYPE_CHECKING:
    from transformers import LxmertForQuestionAnswering
    from transformers.models.lxmert.modeling_lxmert import LxmertAttention, LxmertEncoder

CLS = 0
"""Position of the text token from which the answer is read."""


@dataclass(frozen=True, slots=True)
class CrossLayer:
    """Abar of the four attentions of one cross layer, None where y does not depend on it.

    `text_region`: (batch, T, I), text asking regions; `region_text`: (batch, I, T), regions asking text; `text` and `region`:
    (batch, T, T) and (batch, I, I).
    """

    text_region: torch.Tensor | None
    region_text: torch.Tensor | None
    text: torch.Tensor | None
    region: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Maps:
    """Abar of every layer, first to last: text (batch, T, T), region (batch, I, I), then the cross layers."""

    text: tuple[torch.Tensor | None, ...]
    region: tuple[torch.Tensor | None, ...]
    cross: tuple[CrossLayer, ...]

    def last(self, count: int | None) -> Maps:
        """The last `count` layers of each stream (None: all): cross layers count in both, and come last in both."""
        if count is None:
            return self
        count_alone = max(0, count - len(self.cross))
        return Maps(_tail(self.text, count_alone), _tail(self.region, count_alone), _tail(self.cross, count))


@dataclass(frozen=True, slots=True)
class Relevancies:
    """R_tt - 1 (batch, T, T), R_ii - 1 (batch, I, I), R_ti (batch, T, I), R_it (batch, I, T)."""

    text: torch.Tensor
    region: torch.Tensor
    text_region: torch.Tensor
    region_text: torch.Tensor


@dataclass(frozen=True, slots=True)
class Pairs:
    """Questions with the regions of their images, padded to one length each.

    `ids`: (batch, T) token ids, [CLS] first; `text_mask`: (batch, T) booleans, False for padding; `features`: (batch, I, d);
    `places`: (batch, I, 4), x0 y0 x1 y1 as fractions of the picture; `region_mask`: (batch, I) booleans. `answers`: (batch,)
    indices of the answers to explain, -1 for the model's own choice.
    """

    ids: torch.Tensor
    text_mask: torch.Tensor
    features: torch.Tensor
    places: torch.Tensor
    region_mask: torch.Tensor
    answers: torch.Tensor


def normalised(gained: torch.Tensor) -> torch.Tensor:
    """Rules 8-9, N(R) from R - 1 (batch, n, n): each row divided by its sum, a row that sums to zero left as it is; plus 1."""
    total = gained.sum(-1, keepdim=True)
    identity = torch.eye(gained.shape[-1], dtype=gained.dtype, device=gained.device)
    return gained / total.masked_fill(total == 0, 1) + identity


def through_text(state: Relevancies, averaged: torch.Tensor | None) -> Relevancies:
    """Rules 6 and 7 for a self-attention of the text: Abar (batch, T, T)."""
    if averaged is None:
        return state
    return replace(
        state,
        text=state.text + averaged + averaged @ state.text,
        text_region=state.text_region + averaged @ state.text_region,
    )


def through_regions(state: Relevancies, averaged: torch.Tensor | None) -> Relevancies:
    """Rules 6 and 7 for a self-attention of the regions: Abar (batch, I, I)."""
    return _turned(through_text(_turned(state), averaged))


def through_cross(state: Relevancies, layer: CrossLayer) -> Relevancies:
    """Rules 10 and 11 for both directions, from the same old values; then the layer's two self-attentions."""
    text_side = _asking(state, layer.text_region)
    region_side = _turned(_asking(_turned(state), layer.region_text))
    both = Relevancies(text_side.text, region_side.region, text_side.text_region, region_side.region_text)
    return through_regions(through_text(both, layer.text), layer.region)


def propagated(maps: Maps, text_tokens: int, regions: int, like: torch.Tensor) -> Relevancies:
    """All layers of `maps` in their order; `like`: (batch, ...) gives batch size, dtype and device."""
    batch, sides = like.shape[0], (text_tokens, regions)
    text, text_region, region_text, region = (like.new_zeros(batch, a, b) for a in sides for b in sides)
    state = Relevancies(text, region, text_region, region_text)
    for averaged in maps.text:
        state = through_text(state, averaged)
    for averaged in maps.region:
        state = through_regions(state, averaged)
    for layer in maps.cross:
        state = through_cross(state, layer)
    return state


def explain(model: LxmertForQuestionAnswering, pairs: Pairs, settings: SweepSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Relevance of the answer to each region, (batch, I), and the index of the answer that was explained, (batch,).

    `model`: an unmodified `LxmertForQuestionAnswering` of transformers in eval mode. Padding regions score 0. One forward and
    one backward pass for the whole batch: y is a sum over questions whose gradients do not mix. Relevance is kept in float32 or
    better. `settings.last_layers`: see `Maps.last`.
    """
    with torch.enable_grad(), _recorded_attention(model) as recorded:
        logits = model(
            input_ids=pairs.ids,
            attention_mask=pairs.text_mask,
            token_type_ids=torch.zeros_like(pairs.ids),
            visual_feats=pairs.features,
            visual_pos=pairs.places,
            visual_attention_mask=pairs.region_mask,
        ).question_answering_score
        answers = torch.where(pairs.answers < 0, logits.argmax(-1), pairs.answers)
        if settings.target == "argmax":
            answers = logits.argmax(-1)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        # y is read at one place, [CLS], so the rules of one stream know what it is.
        place = torch.full_like(answers, CLS)[:, None]
        readings = Readings(place, answers[:, None], torch.ones_like(place, dtype=torch.bool))
        maps = _averaged(model, recorded, target_score(wide[:, None], readings, settings.target))
    like = torch.empty(len(answers), 0, dtype=wide.dtype, device=wide.device)
    state = propagated(maps.last(settings.last_layers), pairs.ids.shape[1], pairs.features.shape[1], like)
    return state.text_region[:, CLS], answers


# --- the model's attention maps ---

_Recorded = dict["LxmertAttention", list[torch.Tensor]]


@contextmanager
def _recorded_attention(model: LxmertForQuestionAnswering) -> Iterator[_Recorded]:
    """Keeps, per attention module, its maps (batch, heads, queries, keys) in the order in which they were computed.

    `output_attentions` gives neither the self-attentions of the cross layers nor their vision-to-language maps. In eval mode
    the dropout behind the softmax hands on the very tensor that it gets, so the hook holds what y was computed from. The graph
    starts at the embeddings of both streams: weights may be frozen.
    """
    encoder = model.lxmert.encoder
    recorded: _Recorded = {attention: [] for attention in _attentions(encoder)}
    hooks = [
        attention.dropout.register_forward_hook(lambda _module, args, _output, maps=maps: maps.append(args[0]))
        for attention, maps in recorded.items()
    ]
    hooks += [
        start.register_forward_hook(lambda _module, _args, output: output.requires_grad_(True))
        for start in (model.lxmert.embeddings, encoder.visn_fc)
    ]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def _attentions(encoder: LxmertEncoder) -> list[LxmertAttention]:
    single = [layer.attention.self for layer in (*encoder.layer, *encoder.r_layers)]
    cross = [
        attention
        for layer in encoder.x_layers
        for attention in (layer.visual_attention.att, layer.lang_self_att.self, layer.visn_self_att.self)
    ]
    return single + cross


def _averaged(model: LxmertForQuestionAnswering, recorded: _Recorded, score: torch.Tensor) -> Maps:
    """Rule 5 for every map. A cross layer asks with one module twice: first text to regions, then regions to text."""
    encoder = model.lxmert.encoder
    flat = [map_ for maps in recorded.values() for map_ in maps]
    gradients = iter(torch.autograd.grad(score, flat, allow_unused=True))
    maps: dict[LxmertAttention, list[torch.Tensor | None]] = {
        attention: [_rule_5(map_, next(gradients), score.dtype) for map_ in calls] for attention, calls in recorded.items()
    }
    cross = tuple(
        CrossLayer(*maps[layer.visual_attention.att], *maps[layer.lang_self_att.self], *maps[layer.visn_self_att.self])
        for layer in encoder.x_layers
    )
    text, region = (tuple(maps[layer.attention.self][0] for layer in layers) for layers in (encoder.layer, encoder.r_layers))
    return Maps(text, region, cross)


def _rule_5(attention: torch.Tensor, gradient: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if gradient is None else mean_positive(attention.detach().to(dtype), gradient.to(dtype))


# --- helpers ---


def _asking(state: Relevancies, averaged: torch.Tensor | None) -> Relevancies:
    """Rules 10 and 11 where the text asks the regions: Abar (batch, T, I)."""
    if averaged is None:
        return state
    return replace(
        state,
        text_region=state.text_region + normalised(state.text).mT @ averaged @ normalised(state.region),
        text=state.text + averaged @ state.region_text,
    )


def _turned(state: Relevancies) -> Relevancies:
    """The same with text and regions changing places."""
    return Relevancies(state.region, state.text, state.region_text, state.text_region)


def _tail(layers: Sequence[Any], count: int) -> tuple[Any, ...]:
    return tuple(layers[len(layers) - min(count, len(layers)) :])
