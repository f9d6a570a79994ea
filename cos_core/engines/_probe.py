"""Whether the fast way of hf.py gives a model's own answers, tried on small pictures where its family has no file.

The fast way encodes a picture once, gives explicit positions, pads rows on the left, and continues the keys and values of a
dialogue's beginning. A model that nobody has looked at may not allow one of these. It is asked a dialogue of one picture and
one of two that continues it: in the fast way, one after the other and together, and by `model(**tensors)` on what its processor
writes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from cos_core.dialogue.prompts import dialogue
from cos_core.engines._plain import PlainEngine, TemplateInputs
from cos_core.errors import InputError
from cos_core.interfaces import Engine, Reply, Request
from cos_core.models import pretrained
from cos_core.models.devices import placed
from cos_core.system.memory import is_out_of_memory

if TYPE_CHECKING:
    from cos_core.models.general import GeneralModel
    from cos_core.models.loaded import LoadedModel


class FastEngine(Engine):
    """An engine whose ways are tried: it keeps what it computed for later, and gives its logits."""

    @abstractmethod
    def logits(self, requests: Sequence[Request]) -> torch.Tensor:
        """Logits behind each dialogue, (requests, vocabulary). Raises InputError where one cannot be run."""

    @abstractmethod
    def release(self) -> None:
        """Lets go of what it keeps for later."""


_ROOM = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 2e-2}
_ROOM_OF_BFLOAT16 = 6e-2
"""How far logits may be apart, as a share of the largest: kernels of another shape add in another order."""
_NEW_TOKENS = 4
_BOX = "[0.250, 0.250, 0.750, 0.750]"


def tried(loaded: GeneralModel, fast: Callable[[], FastEngine], kv_budget: int | None) -> Engine:
    """The engine that `fast` makes for a model of a family without a file, where it gives the model's own answers; the plain
    one where it does not, with a `remark` that says so. Where a second picture changes nothing, `one_picture` says that.

    Raises InputError where the model cannot be asked at all, and lets through what says that memory ran out.
    """
    plain = PlainEngine(loaded, kv_budget=kv_budget)
    inputs = TemplateInputs(loaded)
    one, two = _requests(loaded, _picture(0), _picture(1))
    _, other = _requests(loaded, _picture(0), _picture(2))
    with pretrained.reading(loaded.name, memory=True):
        own = [_logits(loaded, inputs, request) for request in (one, two, other)]
    one_picture = ""
    if torch.equal(own[1], own[2]):
        one_picture = f"{loaded.name} shows one picture in a dialogue (another second picture changes no logit)"
    reason = _why_plain(fast, plain, (one, two), own)
    if isinstance(reason, str):
        engine: Engine = plain
        engine.remark = (
            f"{loaded.name} is of a family without a file in cos: every dialogue is computed from its start by the library's "
            f"own generate, more slowly, because {reason}"
        )
    else:
        engine = reason
    engine.one_picture = one_picture
    return engine


def run_once(engine: FastEngine, loaded: LoadedModel) -> None:
    """Runs a loaded model of a known family on one small picture.

    Raises InputError where its own classes fail: there are sizes in config.json that no weight shows. A dialogue that is too
    long, or too large for the memory that is free, is the requests' affair.
    """
    request, _ = _requests(loaded, _picture(0), _picture(1))
    try:
        engine.logits([request])
    except InputError:
        return
    except Exception as error:  # the library's classes declare no errors
        if not is_out_of_memory(error):
            raise InputError(f"the model in {loaded.name} cannot be run: {pretrained.quoted(error)}") from error
    finally:
        engine.release()


def _why_plain(
    fast: Callable[[], FastEngine], plain: PlainEngine, requests: Sequence[Request], own: Sequence[torch.Tensor]
) -> str | FastEngine:
    """The fast engine where it answers `requests` as the model does, whose logits behind them are `own`; else why it is not
    taken, as the end of a sentence."""
    slow = plain.generate(requests)
    try:
        engine = fast()
        continued = torch.cat([engine.logits([request]) for request in requests])
        engine.release()
        together = engine.logits(requests)
        engine.release()
        answers = engine.generate(requests)
    except Exception as error:  # a class of any family can raise anything
        if is_out_of_memory(error):
            raise
        return f"its classes do not take pictures that were encoded before ({pretrained.quoted(error)})"
    engine.release()
    room = _ROOM.get(plain.loaded.model.dtype, _ROOM_OF_BFLOAT16)
    for way, logits in (("continued", continued), ("padded", together)):
        apart = max(map(_apart, logits, own))
        if not apart <= room:
            return f"the logits of dialogues that are {way} are {apart:.2g} of the largest away from its own"
    scale = max(float(row[torch.isfinite(row)].abs().max()) for row in own)
    if any(not _alike(quick, slowly, room * scale) for quick, slowly in zip(answers, slow, strict=True)):
        return "its next tokens are not those of its own"
    return engine


def _logits(loaded: GeneralModel, inputs: TemplateInputs, request: Request) -> torch.Tensor:
    """The logits (vocabulary,) behind a dialogue, by the model and its processor alone."""
    if hasattr(loaded.model.base_model, "rope_deltas"):
        loaded.model.base_model.rope_deltas = None  # Qwen's, of the call before
    with torch.inference_mode():
        tensors = {name: placed(loaded.model, value) for name, value in inputs.tensors([request]).items()}
        logits: torch.Tensor = loaded.model(**tensors).logits[0, -1]
    return logits


def _requests(loaded: LoadedModel, full: Image.Image, roi: Image.Image) -> tuple[Request, Request]:
    """Both passes of one question."""
    first = dialogue(loaded.profile, "What is this?")
    second = dialogue(loaded.profile, "What is this?", box_text=_BOX)
    return Request(first, {"full": full}, _NEW_TOKENS), Request(second, {"full": full, "roi": roi}, _NEW_TOKENS)


def _picture(number: int) -> Image.Image:
    """A picture of 96 x 72 pixels in several colours, another one for each number."""
    image = Image.new("RGB", (96, 72), (40 + 70 * number, 90, 160))
    image.paste((230, 30 + 60 * number, 40), (10 + 20 * number, 8, 40 + 20 * number, 50))
    return image


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference of two rows of logits, as a share of the largest; those that no answer takes are left out."""
    taken = torch.isfinite(ours)
    if ours.shape != theirs.shape or not bool(taken.any()) or not bool(torch.isfinite(theirs[taken]).all()):
        return math.inf
    ours, theirs = ours[taken].float(), theirs[taken].float()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))


def _alike(quick: Reply, slow: Reply, room: float) -> bool:
    """Whether two engines chose the same tokens with about the same lead, up to where the lead is too small to decide."""
    if quick.error or slow.error:
        return quick.error == slow.error
    for token, other, lead, others_lead in zip(quick.ids, slow.ids, quick.margins, slow.margins, strict=False):
        if token != other:
            return others_lead <= 2 * room
        if abs(lead - others_lead) > 2 * room and math.isfinite(lead):
            return False
    return True
