"""One question's way through the passes under one Setting: where to look (CoS Eq. 2), the cut, the answer (CoS Eq. 3).

Knows policies, wording and crops; asks nobody itself: every step that needs a model is yielded (passes.TwoPass takes it).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cos_core.dialogue import crop_content
from cos_core.dialogue.box_grammar import BoxGrammar
from cos_core.dialogue.box_text import with_marks, write_box
from cos_core.dialogue.cropping import FALLBACKS, CropSettings, Region, fallback_region
from cos_core.dialogue.gate import MARGIN_DIGITS, Gate
from cos_core.dialogue.prompts import Profile, dialogue
from cos_core.errors import InputError, TransientError
from cos_core.files.durable import utf8
from cos_core.geometry import Box, full_box, in_frame
from cos_core.interfaces import Policy, Reply, Request, Sampling
from cos_core.types import (
    USABLE_BOXES,
    BoxDecode,
    BoxStatus,
    BoxText,
    CropContent,
    Example,
    OnBadBox,
    Prediction,
    Sample,
    Turn,
)

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Setting:
    """What decides the answers; the rest as in InferConfig.

    `fill`: the colour (RGB) in which the checkpoint pads pictures, and what a crop holds of the padding. `settings`: everything
    that decides, as plain JSON; `fingerprint` is its hash, which a resumed run must share. `seen`: the size (width, height in
    pixels) at which the model sees a picture of a given size, for profiles whose boxes are in pixels.
    """

    policy: Policy
    profile: Profile
    fill: tuple[int, int, int]
    fingerprint: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    on_bad_box: OnBadBox = "full"
    max_new_tokens: int = 128
    box_tokens: int = 48
    box_decode: BoxDecode = "free"
    seed: int = 0
    seen: Callable[[tuple[int, int]], tuple[int, int]] | None = None
    crop: CropContent = "region"
    box_text: BoxText = "written"
    global_scale: float = 1.0
    gate: Gate | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1

    @property
    def crops(self) -> CropSettings:
        """How regions are cut."""
        return CropSettings(self.profile, self.fill, self.on_bad_box)

    def seen_of(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The size at which the model sees a picture, where boxes are in its pixels; None where no box depends on it.

        Raises InputError for a picture that the model cannot be shown.
        """
        return self.seen(size) if self.seen is not None and self.profile.box_unit == "pixel" else None

    def grammar(self, seen: tuple[int, int] | None) -> BoxGrammar | None:
        """The texts that the first pass may write about a picture, one object for all pictures that share them; None: any."""
        return _grammar(self.profile, seen) if self.box_decode == "grammar" else None

    def sampling(self, example_id: str, sample: int, step: str) -> Sampling | None:
        """How the tokens of one request are drawn: a seed for each question, sample (from 0) and step ("plain", "pass1"...)."""
        if self.temperature == 0:
            return None
        digest = hashlib.sha256(utf8(f"{self.seed}:{sample}:{step}:{example_id}")).digest()
        return Sampling(self.temperature, self.top_p, int.from_bytes(digest[:4], "big"))

    def check(self) -> None:
        """Raises InputError where boxes cannot be written under this profile, or not by grammar, and for a control of the
        second picture where there is none."""
        if self.policy.source != "none":
            seen = self.seen_of((64, 64))  # of any picture: what is refused is the same for all
            write_box(full_box(self.profile.box_frame), self.profile, seen)
            self.grammar(seen)
            return
        changed = {"--crop": self.crop != "region", "--box-text": self.box_text != "written", "--gate": self.gate is not None}
        if named := [name for name, is_set in changed.items() if is_set]:
            raise InputError(f"{named[0]} is about the second pass, and --roi {self.policy.name} has none")


@lru_cache(maxsize=64)
def _grammar(profile: Profile, seen: tuple[int, int] | None) -> BoxGrammar:
    return BoxGrammar(profile, seen)


@dataclass(slots=True)
class QuestionState:
    """One question, or one sample of it, on its way through the passes.

    `image`: the picture, from which regions are cut; `view`: the whole picture as the model is shown it; `other`: another
    question's picture with its name, for swapped regions.
    """

    example: Example
    image: Image | None
    view: Image | None = None
    other: tuple[str, Image | InputError] | None = None
    sample: int = 0
    seen: tuple[int, int] | None = None
    error: str | None = None
    transient: bool = False
    box_text: str | None = None
    box: Box | None = None
    status: BoxStatus = "skipped"
    crop: Image | None = None
    shown: str | None = None
    answer: str | None = None
    plain: str | None = None
    margin: float | None = None
    gate: Any = None
    tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PassRequest:
    """A step of a question: one request. Steps with the same `shared` key get the reply to the first of them.

    `per_picture`: what is shared belongs to the picture and is kept for its later questions, and counts in the tokens of the
    question that asked. Otherwise it is the same request in several arms, and counts in each.
    """

    request: Request
    shared: Hashable = None
    per_picture: bool = False


@dataclass(frozen=True, slots=True)
class Locate:
    """A step of a question: the area of its picture on which a plain answer rests."""

    example: Example
    image: Image
    answer: str


@dataclass(frozen=True, slots=True)
class PassReply:
    """The reply to a PassRequest; `first`: it was computed for this question, not for another one that shares it."""

    reply: Reply
    first: bool = True


Step = PassRequest | Locate
StepResult = PassReply | Box | str | None
"""A PassReply for a PassRequest; for a Locate the area, None when nothing stands out, or a text that says what failed."""
Steps = Generator[Step, Any, None]
"""One question's way through the passes: yields each Step and is sent its StepResult."""


class QuestionSteps:
    """The steps of questions under one Setting.

    `siblings`: all questions of each image, by its name, for the policy that asks with all of them; `listen` is called with
    each new piece of an answer, of several samples the first; `finds`: the regions come from plain answers (Locate) instead of
    the policy; `refuses`: whether the model cannot be shown a crop. Raises InputError where the setting cannot be.
    """

    def __init__(
        self,
        setting: Setting,
        siblings: Mapping[str, Sequence[str]],
        listen: Callable[[str], None] | None,
        finds: bool,
        refuses: Callable[[Image], bool],
    ) -> None:
        setting.check()
        self.setting, self._crops = setting, setting.crops
        self._policy, self._profile = setting.policy, setting.profile
        self._siblings, self._listen, self._finds, self._refuses = siblings, listen, finds, refuses
        self._first_pass = (
            *(self._policy.source, self._policy.asks, self._profile, setting.global_scale, setting.box_tokens),
            *(setting.box_decode, setting.temperature, setting.top_p, setting.seed),
        )
        """What decides a first pass, beside the question and the model."""

    def steps(self, state: QuestionState) -> Steps:
        """A question's way: where to look, the crop, the answer; ends early with `state.error`."""
        if state.image is None or state.view is None:
            return
        gate = self.setting.gate
        if gate is not None and gate.plain_first:
            yield from self._ask_plain(state, state.view)
            if state.error is not None or not gate.opens_at_margin(state.margin or 0.0):
                self._keep_plain(state)
                return
        yield from self._find_region(state, state.image, state.view)
        if state.error is not None:
            return
        if gate is not None and not gate.opens_at_area(state.box.area if state.box else 0.0):
            yield from self._ask_plain(state, state.view)
            self._keep_plain(state)
            return
        if gate is not None:
            state.gate = "open"
        self._replace_crop(state, state.image)
        if state.error is None:
            yield from self._ask_question(state, state.view)

    def _find_region(self, state: QuestionState, image: Image, view: Image) -> Steps:
        """The region, by the policy, and its crop."""
        if self._policy.source == "none":
            return
        try:
            state.seen = self.setting.seen_of(image.size)
        except InputError as error:
            state.error = str(error)
            return
        if self._policy.source == "model":
            yield from self._ask_where(state, image, view)
        elif self._finds:
            yield from self._find_box(state, image, view)
        else:
            self._use_fixed_box(state, image)

    def _first_turns(self, example: Example) -> dict[str, Any]:
        """What Inst.1 asks about, as keyword arguments of `dialogue`, the same for both passes."""
        suffix = {"suffix": example.suffix or ""}
        if self._policy.asks != "all":
            return {"asks": self._policy.asks, **suffix}
        return {"asks": "all", "all_questions": self._siblings.get(example.image or "", ()), **suffix}

    def _request(self, state: QuestionState, step: str, turns: tuple[Turn, ...], view: Image, **more: Any) -> Request:
        images = {"full": view} if state.crop is None or step != "pass2" else {"full": view, "roi": state.crop}
        sampling = self.setting.sampling(state.example.id, state.sample, step)
        return Request(turns, images, more.pop("tokens", self.setting.max_new_tokens), sampling=sampling, **more)

    def _ask_plain(self, state: QuestionState, view: Image) -> Steps:
        """The answer of one pass, and its margin where a gate needs it."""
        turns = dialogue(self._profile, state.example.question, chain=False, suffix=state.example.suffix or "")
        margins = self.setting.gate is not None and self.setting.gate.kind != "area"
        answered: PassReply = yield PassRequest(self._request(state, "plain", turns, view, margins=margins))
        reply = answered.reply
        _count(state, "plain", reply)
        if reply.error is not None:
            state.error, state.transient = f"plain answer: {reply.error}", reply.transient
        elif margins and reply.margin is None:
            state.error = "plain answer: the engine does not say how sure it is, so that no gate can decide by a margin"
        else:
            state.plain = reply.text
            state.margin = None if reply.margin is None or not margins else round(reply.margin, MARGIN_DIGITS)

    def _keep_plain(self, state: QuestionState) -> None:
        """Lets the plain answer stand: the gate is closed."""
        if state.error is not None or state.plain is None:
            return
        state.gate, state.answer, state.crop = "closed", state.plain, None
        if self._listen is not None:
            self._listen(state.plain)

    def _ask_where(self, state: QuestionState, image: Image, view: Image) -> Steps:
        """Pass 1 (CoS Eq. 2): the text of the box; asked once an image by policies that do not look at the question."""
        turns = dialogue(self._profile, state.example.question, **self._first_turns(state.example))
        per_picture = self._policy.asks != "single"
        # What belongs to the picture takes its seed from the picture, whichever question asks first.
        name = (state.example.image or "") if per_picture else state.example.id
        sampling, grammar = self.setting.sampling(name, state.sample, "pass1"), self.setting.grammar(state.seen)
        request = Request(turns, {"full": view}, self.setting.box_tokens, grammar, sampling=sampling)
        answered: PassReply = yield PassRequest(request, (name, state.sample, self._first_pass), per_picture)
        if answered.first or not per_picture:
            _count(state, "pass1", answered.reply)
        if answered.reply.error is not None:
            _fail(state, 1, answered.reply)
            return
        state.box_text = with_marks(answered.reply.text, self._profile)
        region = self._crops.region(state.box_text, image, state.seen)
        state.status = region.status
        self._crop(state, image, region)

    def _use_fixed_box(self, state: QuestionState, image: Image) -> None:
        """Instead of pass 1: the policy's box."""
        try:
            box = self._policy.fixed_box(state.example, self.setting.seed)
        except InputError as error:
            state.error = str(error)
            return
        self._look_at(state, image, box)

    def _find_box(self, state: QuestionState, image: Image, view: Image) -> Steps:
        """Instead of pass 1: a plain answer, and the area of the picture that it rests on."""
        turns = dialogue(self._profile, state.example.question, chain=False)
        answered: PassReply = yield PassRequest(self._request(state, "pass1", turns, view))
        _count(state, "pass1", answered.reply)
        if answered.reply.error is not None:
            _fail(state, 1, answered.reply)
            return
        if not answered.reply.text:
            state.error = "pass 1: the plain answer is empty, there is nothing to explain"
            return
        area: Box | str | None = yield Locate(state.example, view, answered.reply.text)
        if isinstance(area, str):
            state.error = f"pass 1: {area}"
            return
        box = area or FALLBACKS[self.setting.on_bad_box]
        if box is None:
            state.error = "no area of the picture stands out; skipped as asked"
            return
        self._look_at(state, image, box)

    def _look_at(self, state: QuestionState, image: Image, box: Box) -> None:
        """Takes a box that the model did not write, as the model would have written it: rounded as its text is.

        The status stays "skipped": it says nothing about the model.
        """
        state.box_text = write_box(in_frame(box, self._profile.box_frame, image.size), self._profile, state.seen)
        self._crop(state, image, self._crops.region(state.box_text, image, state.seen))

    def _crop(self, state: QuestionState, image: Image, region: Region) -> None:
        """Cuts the region that the box text names, or that stands in for it, from the picture."""
        state.box = region.box
        if region.area is None:
            text = (state.box_text or "")[:80]
            state.error = f"no usable box in the first pass ({region.status}): {text!r}; skipped as asked"
            return
        state.crop = self._crops.cut(image, region.area)
        if state.status in USABLE_BOXES and self._refuses(state.crop):
            # As good as no area: no model can be shown a line of pixels.
            state.status = "degenerate"
            self._crop(state, image, fallback_region("degenerate", self.setting.on_bad_box))

    def _replace_crop(self, state: QuestionState, image: Image) -> None:
        """Puts in the crop's place what the setting shows instead of it (dialogue/crop_content.py)."""
        content = self.setting.crop
        if state.crop is None or state.box is None or content == "region":
            return
        name, other = state.other or (None, None)
        if content == "swap":
            if name is None or other is None:
                state.error = "a swapped region needs another question's picture, and there is none"
                return
            if isinstance(other, InputError):
                state.error, state.transient = f"the picture to swap with: {other}", isinstance(other, TransientError)
                return
            state.crop = crop_content.swapped(state.crop.size, self._crops.cut(other, state.box))
        elif content == "black":
            state.crop = crop_content.black(state.crop.size)
        elif content == "noise":
            state.crop = crop_content.noise(state.crop.size, image, self.setting.seed, state.example.id)
        else:
            state.crop = None
        state.shown = crop_content.shown_words(content, name)

    def _ask_question(self, state: QuestionState, view: Image) -> Steps:
        """Pass 2 (CoS Eq. 3), or the only pass of the plain dialogue."""
        chain, question = self._policy.source != "none", state.example.question
        if chain and self.setting.box_text == "none":
            turns = dialogue(self._profile, question, chain=False, region=True, suffix=state.example.suffix or "")
        else:
            first, region = self._first_turns(state.example), state.crop is not None
            turns = dialogue(self._profile, question, chain=chain, box_text=state.box_text, region=region, **first)
        step = "pass2" if chain else "pass1"
        listen = self._listen if state.sample == 0 else None  # the pieces of several answers at once are no text
        answered: PassReply = yield PassRequest(self._request(state, step, turns, view, listen=listen))
        _count(state, step, answered.reply)
        if answered.reply.error is None:
            state.answer = answered.reply.text
        else:
            _fail(state, 2 if chain else 1, answered.reply)


def initial_state(example: Example, image: Image | InputError, view: Image | None = None, **more: Any) -> QuestionState:
    """A question before its first step; it ends at once where there is no picture. `view`: see QuestionState."""
    if isinstance(image, InputError):
        return QuestionState(example, None, error=str(image), transient=isinstance(image, TransientError), **more)
    return QuestionState(example, image, image if view is None else view, **more)


def prediction_of(states: Sequence[QuestionState], setting: Setting, seconds: float = 0.0) -> Prediction:
    """The record of a question from all of its samples; one that failed makes the question fail."""
    failed = next((state for state in states if state.error is not None), None)
    first = failed or states[0]
    samples = tuple(
        [Sample(each.answer, each.box, each.box_text, each.status, each.tokens, each.shown) for each in states]
        if len(states) > 1 and failed is None
        else []
    )
    which = f"sample {first.sample + 1} of {len(states)}: " if failed is not None and len(states) > 1 else ""
    return Prediction(
        example_id=first.example.id,
        answer=first.answer,
        box=first.box,
        box_text=first.box_text,
        box_status=first.status,
        policy=setting.policy.name,
        profile=setting.profile.name,
        question=first.example.question,
        image=first.example.image,
        tokens=first.tokens,
        seconds=round(seconds, 6),
        fingerprint=setting.fingerprint,
        error=None if first.error is None else which + first.error,
        transient=first.transient,
        shown=first.shown,
        plain=first.plain,
        margin=first.margin,
        gate=first.gate,
        samples=samples,
    )


def failed_prediction(example: Example, setting: Setting, why: str) -> Prediction:
    """The record of a question that was never answered."""
    return prediction_of([QuestionState(example, None, error=why)], setting)


def _fail(state: QuestionState, number: int, reply: Reply) -> None:
    """The question ends with pass `number`, which gave no answer."""
    state.error, state.transient = f"pass {number}: {reply.error}", reply.transient


def _count(state: QuestionState, name: str, reply: Reply) -> None:
    state.tokens |= {f"{name}_in": reply.tokens_in, f"{name}_out": reply.tokens_out}
    if reply.steps:
        # What was cached depends on the neighbours in the batch; a record holds only what a second run would repeat.
        state.tokens[f"{name}_steps"] = reply.steps
