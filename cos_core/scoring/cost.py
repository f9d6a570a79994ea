"""What answers cost: tokens sent to a model, tokens written by it, and the FLOPs of its forward pass.

Tokens are what each pass recorded (`Prediction.tokens`). FLOPs follow from them and a few numbers of the model, which
`cos infer` records in a run's manifest (`results["flops"]`, AnswerFlops). What is assumed there:

- Every token of a pass, sent or written, goes through the model once. The second pass continues the keys and values of the
  first where `continued` says so, as engine `hf` does and prefix caches of servers do: the first pass1_in + pass1_out of its
  tokens are not computed again. The plain answer and the first pass are computed apart; an engine that keeps the beginning
  which they share computes less.
- A picture goes through the vision tower once a question, the crop once more.
- Attention is causal: the half that is masked does not count. The output embeddings count for tokens written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cos_core.models.flops import PictureFlops
from cos_core.scoring.statistics import Floats
from cos_core.types import Prediction, Sample

PLAIN, PASS_1, PASS_2 = PASSES = ("plain", "pass1", "pass2")
"""The passes, as the keys of `Prediction.tokens` begin."""
SENT, WRITTEN = slice(0, 3), slice(3, 6)
"""The columns of a token table with the tokens that each of PASSES sent, and wrote."""
WHOLE, CROPS = 6, 7
"""The columns with the pictures that are seen: the whole one (1 or 0), and crops of it."""
COLUMNS = 8

TokenTable = NDArray[np.int64]
"""(rows, COLUMNS): a row an answer, one for each sample of an answer with several."""

_FLOPS = "flops"
_NOT_MEASURED = "not_measured"


@dataclass(frozen=True, slots=True)
class AnswerFlops:
    """The numbers of a model from which the FLOPs of its answers follow.

    `position`: FLOPs of a token through the decoder; `word`: of the output embeddings, for a token that is written; `square`:
    of attention a squared length, nothing masked; `picture`: of the vision tower. `text`: tokens of each pass's prompt that
    are not those of pictures, on one question of the run (for models whose pictures have any number of tokens). `continued`:
    whether the second pass goes on from the first; `seen_again`: whether it encodes the whole picture again, as it shows it
    otherwise.
    """

    position: float
    word: float
    square: float
    picture: PictureFlops
    text: Mapping[str, int] = field(default_factory=dict)
    continued: bool = True
    seen_again: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "text": dict(self.text)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AnswerFlops:
        """The inverse of `to_json`. Raises TypeError or KeyError for anything else."""
        return cls(**{**data, "picture": PictureFlops(**data["picture"])})


def flops_record(flops: AnswerFlops | str) -> dict[str, Any]:
    """A manifest's `results["flops"]`: the model's numbers, or why they are not known."""
    return {_NOT_MEASURED: flops} if isinstance(flops, str) else flops.to_json()


def recorded_flops(results: Mapping[str, Any]) -> AnswerFlops | str:
    """What a run of `cos infer` recorded in the `results` of its manifest; a text that says why there is nothing."""
    found = results.get(_FLOPS)
    if not isinstance(found, Mapping):
        return "the run that answered did not record its model's arithmetic"
    if _NOT_MEASURED in found:
        return str(found[_NOT_MEASURED])
    try:
        return AnswerFlops.from_json(found)
    except (TypeError, KeyError):
        return "the run that answered recorded its model's arithmetic in a way that is not known here"


class Cost(NamedTuple):
    """What a question costs in the mean: tokens sent and written, and FLOPs; None where the model's arithmetic is not known."""

    sent: float
    written: float
    flops: float | None = None

    @property
    def tokens(self) -> float:
        return self.sent + self.written

    def to_json(self) -> dict[str, float | None]:
        return self._asdict()


def token_rows(prediction: Prediction) -> list[list[int]]:
    """The rows of a token table for one prediction: one, or one for each of its samples, which share the whole picture."""
    answers: Iterable[Prediction | Sample] = prediction.samples or (prediction,)
    rows = []
    for number, answer in enumerate(answers):
        sent = [answer.tokens.get(f"{name}_in", 0) for name in PASSES]
        written = [answer.tokens.get(f"{name}_out", 0) for name in PASSES]
        crop = bool(sent[2]) and answer.shown != "absent"
        rows.append([*sent, *written, int(number == 0 and any(sent)), int(crop)])
    return rows


def token_table(predictions: Iterable[Prediction]) -> TokenTable:
    """The token table of predictions, their rows one behind the other."""
    rows = [row for prediction in predictions for row in token_rows(prediction)]
    return np.array(rows, dtype=np.int64).reshape(-1, COLUMNS)


def mean_cost(table: TokenTable, questions: int, model: AnswerFlops | None = None) -> Cost:
    """The cost of a question, of `questions` whose answers are in `table`. Nan of none."""
    if not questions:
        return Cost(np.nan, np.nan, None if model is None else np.nan)
    sent, written = (float(table[:, part].sum()) / questions for part in (SENT, WRITTEN))
    return Cost(sent, written, None if model is None else float(flops_of(table, model).sum()) / questions)


def flops_of(table: TokenTable, model: AnswerFlops) -> Floats:
    """FLOPs of each row of a token table: (rows,)."""
    sent, written = table[:, SENT].astype(np.float64), table[:, WRITTEN].astype(np.float64)
    length = sent + written
    done = np.zeros_like(length)
    if model.continued:
        done[:, 2] = np.minimum(length[:, 1], sent[:, 2])
    text = model.position * (length - done) + model.square / 2 * (length**2 - done**2) + model.word * written
    return np.asarray(text.sum(axis=1) + _tower_flops(table, model))


def _tower_flops(table: TokenTable, model: AnswerFlops) -> Floats:
    """FLOPs of the vision tower for each row.

    Image tokens are what a prompt has beside `text`: those of a dialogue of one picture are the whole one's; what the second
    pass has more is the crop's. Where only the second pass was asked, both pictures count alike.
    """
    sent = table[:, SENT].astype(np.float64)
    words = np.array([model.text.get(name, 0) for name in PASSES], dtype=np.float64)
    plain, first, both = np.maximum(0.0, sent - words).T
    crops, wholes = table[:, CROPS].astype(np.float64), table[:, WHOLE].astype(np.float64)
    alone = np.where(sent[:, 0] > 0, plain, first)
    whole = np.where(sent[:, :2].any(axis=1), alone, both / (1 + crops))
    crop = np.maximum(0.0, both - whole)
    again = (sent[:, 2] > 0) * float(model.seen_again)
    return (wholes + again) * _picture(whole, model.picture) + crops * _picture(crop, model.picture)


def _picture(tokens: Floats, flops: PictureFlops) -> Floats:
    return flops.each + flops.token * tokens + flops.square * tokens**2
