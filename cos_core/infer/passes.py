"""The two passes over a batch of questions: where to look (CoS Eq. 2), the cut, the answer (CoS Eq. 3).

Knows policies, wording and engines; nothing of files, resuming or command lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cos_core.boxtext import BoxGrammar, read_box, write_box
from cos_core.errors import InputError
from cos_core.geometry import Box, SquarePad, full_box
from cos_core.images import crop_region
from cos_core.interfaces import Engine, Policy, Reply, Request
from cos_core.prompts import Profile, dialogue
from cos_core.types import BoxStatus, Example, Prediction

if TYPE_CHECKING:
    from PIL.Image import Image

    from cos_core.infer.heat import HeatFinder

OnBadBox = Literal["full", "center", "skip"]
BoxDecode = Literal["free", "grammar"]
CENTRE = Box(0.25, 0.25, 0.75, 0.75, "image")
"""What `on_bad_box="center"` looks at: the central quarter of the area, as the policy center_crop."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What decides the answers. `fingerprint` is the hash that a resumed run must share; the rest as in InferConfig."""

    policy: Policy
    profile: Profile
    fingerprint: str = ""
    on_bad_box: OnBadBox = "full"
    max_new_tokens: int = 128
    box_tokens: int = 48
    box_decode: BoxDecode = "free"
    seed: int = 0


@dataclass(slots=True)
class _Work:
    """One question on its way through the two passes."""

    example: Example
    image: Image | None
    error: str | None = None
    box_text: str | None = None
    box: Box | None = None
    status: BoxStatus = "skipped"
    roi: Image | None = None
    answer: str | None = None
    tokens: dict[str, int] = field(default_factory=dict)


class TwoPass:
    """Answers batches of questions under one Setting; keeps the box texts of policies that ask once an image."""

    def __init__(
        self,
        engine: Engine,
        setting: Setting,
        siblings: Mapping[str, Sequence[str]] | None = None,
        listen: Callable[[str], None] | None = None,
        finder: HeatFinder | None = None,
    ) -> None:
        """`siblings`: all questions of each image, by its name, for the policy that asks with all of them; `listen` hears the
        answer's text as it comes; `finder` gives the regions instead of the policy, from plain answers.
        """
        self._engine = engine
        self._finder = finder
        self._listen = listen
        self._setting = setting
        self._policy, self._profile = setting.policy, setting.profile
        self._siblings = siblings or {}
        self._image_texts: dict[str, str] = {}
        self._grammar = BoxGrammar(setting.profile) if setting.box_decode == "grammar" else None

    def predict(self, batch: Sequence[tuple[Example, Image | InputError]]) -> list[Prediction]:
        """One Prediction an example, in order; `seconds` is the batch's wall time divided by its size."""
        start = time.perf_counter()
        work = [
            _Work(example, None, error=str(image)) if isinstance(image, InputError) else _Work(example, image)
            for example, image in batch
        ]
        if self._policy.source == "model":
            self._ask_where(work)
        elif self._finder is not None:
            self._find_box(work, self._finder)
        elif self._policy.source in ("fixed", "gold"):
            self._give_box(work)
        if self._policy.source != "none":
            self._cut(work)
        self._ask_question(work)
        seconds = (time.perf_counter() - start) / max(1, len(work))
        return [self._prediction(item, seconds) for item in work]

    def _first_turns(self, example: Example) -> dict[str, Any]:
        """What Inst.1 asks about, as keyword arguments of `dialogue`, the same for both passes."""
        suffix = {"suffix": str(example.meta.get("suffix", ""))}
        if self._policy.asks != "all":
            return {"asks": self._policy.asks, **suffix}
        return {"asks": "all", "all_questions": self._siblings.get(example.image or "", ()), **suffix}

    def _ask_where(self, work: Sequence[_Work]) -> None:
        """Pass 1 (CoS Eq. 2): the raw text of the box; asked once an image by policies that do not look at the question."""
        shared = self._policy.asks != "single"
        asking: dict[str, _Work] = {}
        for item in work:
            key = item.example.image or "" if shared else item.example.id
            if item.error is None and key not in self._image_texts:
                asking.setdefault(key, item)
        requests = [
            Request(
                dialogue(self._profile, item.example.question, **self._first_turns(item.example)),
                {"full": item.image},
                self._setting.box_tokens,
                self._grammar,
            )
            for item in asking.values()
            if item.image is not None
        ]
        replies = dict(zip(asking, self._engine.generate(requests), strict=True)) if requests else {}
        for key, reply in replies.items():
            _count(asking[key], "pass1", reply)
            if shared and reply.error is None:
                self._image_texts[key] = reply.text
        for item in work:
            if item.error is not None:
                continue
            key = item.example.image or "" if shared else item.example.id
            if shared and key in self._image_texts:
                item.box_text = self._image_texts[key]
            elif replies[key].error is None:
                item.box_text = replies[key].text
            else:
                item.error = f"pass 1: {replies[key].error}"

    def _give_box(self, work: Sequence[_Work]) -> None:
        """Instead of pass 1: a given box, written as the model would have written it."""
        for item in work:
            if item.image is None:
                continue
            try:
                box = self._policy.fixed_box(item.example, self._setting.seed)
            except InputError as error:
                item.error = str(error)
                continue
            item.box_text = write_box(SquarePad(*item.image.size).to_square(box), self._profile)

    def _find_box(self, work: Sequence[_Work], finder: HeatFinder) -> None:
        """Instead of pass 1: a plain answer, and the area of the picture that it rests on, written as a box."""
        asked = [(item, item.image) for item in work if item.error is None and item.image is not None]
        requests = [
            Request(dialogue(self._profile, item.example.question, chain=False), {"full": image}, self._setting.max_new_tokens)
            for item, image in asked
        ]
        replies = self._engine.generate(requests) if requests else []
        explained = []
        for (item, image), reply in zip(asked, replies, strict=True):
            _count(item, "pass1", reply)
            if reply.error is not None or not reply.text:
                item.error = f"pass 1: {reply.error or 'the plain answer is empty, there is nothing to explain'}"
            else:
                explained.append((item, image, reply.text))
        boxes = finder.find([(item.example, image, text) for item, image, text in explained]) if explained else []
        for (item, image, _), found in zip(explained, boxes, strict=True):
            box = found or {"full": full_box("image"), "center": CENTRE, "skip": None}[self._setting.on_bad_box]
            if box is None:
                item.error = "no area of the picture stands out; skipped as asked"
                continue
            item.box_text = write_box(SquarePad(*image.size).to_square(box), self._profile)

    def _cut(self, work: Sequence[_Work]) -> None:
        """Reads each box text and cuts the region that it names, or that stands in for it, from the picture."""
        for item in work:
            if item.error is not None or item.image is None or item.box_text is None:
                continue
            square, status = read_box(item.box_text, self._profile)
            area: Box | None = square
            if square is not None:
                try:
                    item.box = SquarePad(*item.image.size).to_image(square)
                except InputError:  # it lies wholly in the padding: nothing of the picture is left in it
                    square, status = None, "degenerate"
            if square is None:
                area = item.box = {"full": full_box("image"), "center": CENTRE, "skip": None}[self._setting.on_bad_box]
            # A given box was not asked for; how it reads says nothing about the model.
            item.status = status if self._policy.source == "model" else "skipped"
            if area is None:
                item.error = f"no usable box in the first pass ({status}): {item.box_text[:80]!r}; skipped as asked"
                continue
            item.roi = crop_region(item.image, area, self._profile.crop_from)

    def _ask_question(self, work: Sequence[_Work]) -> None:
        """Pass 2 (CoS Eq. 3), or the only pass of the plain dialogue."""
        chain = self._policy.source != "none"
        asked = [item for item in work if item.error is None]
        requests = []
        for item in asked:
            turns = dialogue(
                self._profile,
                item.example.question,
                chain=chain,
                box_text=item.box_text,
                **self._first_turns(item.example),
            )
            images = {"full": item.image, "roi": item.roi}
            requests.append(
                Request(
                    turns,
                    {slot: image for slot, image in images.items() if image},
                    self._setting.max_new_tokens,
                    listen=self._listen,
                )
            )
        for item, reply in zip(asked, self._engine.generate(requests) if requests else [], strict=True):
            _count(item, "pass2" if chain else "pass1", reply)
            if reply.error is None:
                item.answer = reply.text
            else:
                item.error = f"pass {2 if chain else 1}: {reply.error}"

    def _prediction(self, item: _Work, seconds: float) -> Prediction:
        return Prediction(
            example_id=item.example.id,
            answer=item.answer,
            box=item.box,
            box_text=item.box_text,
            box_status=item.status,
            policy=self._policy.name,
            profile=self._profile.name,
            question=item.example.question,
            image=item.example.image,
            tokens=item.tokens,
            seconds=round(seconds, 6),
            fingerprint=self._setting.fingerprint,
            error=item.error,
        )


def _count(item: _Work, which: str, reply: Reply) -> None:
    item.tokens |= {f"{which}_in": reply.tokens_in, f"{which}_out": reply.tokens_out}
    if reply.steps:
        # What was cached depends on the neighbours in the batch; a record holds only what a second run would repeat.
        item.tokens[f"{which}_steps"] = reply.steps
