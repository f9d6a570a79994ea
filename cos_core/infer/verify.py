"""Does reuse leave the answers as they are? The same requests, with and without it, on the model at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cos_core.infer.config import InferConfig
from cos_core.infer.passes import TwoPass
from cos_core.infer.questions import questions
from cos_core.infer.settings import build_engine, finder, note_served, setting
from cos_core.infer.work import QuestionBatch, answers
from cos_core.interfaces import Engine, Reply, Reporter, Request


@dataclass(slots=True)
class _Compared(Engine):
    """An engine that asks two, returns the replies of `reusing`, and notes where those of `plain` differ."""

    reusing: Engine
    plain: Engine
    replies: int = 0
    flips: list[dict[str, Any]] = field(default_factory=list)
    name: str = "compared"

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        ours = self.reusing.generate(requests)
        # One by one and from the start: neither neighbours nor stored keys can have a part in it.
        theirs = [self.plain.generate([request])[0] for request in requests]
        for a, b in zip(ours, theirs, strict=True):
            self.replies += 1
            if a.ids != b.ids or a.error != b.error:
                self.flips.append(_flip(a, b))
        return ours


def _flip(ours: Reply, theirs: Reply) -> dict[str, Any]:
    pairs = enumerate(zip(ours.ids, theirs.ids, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(ours.ids), len(theirs.ids)))
    margins = [reply.margins[place] for reply in (ours, theirs) if place < len(reply.margins)]
    return {"token": place, "margin": min(margins, default=None), "reused": ours.text, "plain": theirs.text}


def verify(config: InferConfig, count: int, reporter: Reporter) -> dict[str, Any]:
    """Asks the first `count` questions with reuse in batches and without it one by one.

    Returns how many replies were compared (two a question) and every one whose token ids differ, with the place of the first
    difference and the lead of the best logit there: near 0, rounding decided. Raises InputError as a run does.
    """
    resolved = setting(config)
    note_served(config, reporter)
    data = questions(replace(config, limit=count), reporter)
    examples, size = data.examples, config.batch_size
    reusing = build_engine(replace(config, reuse=True))
    # One set of weights, and one budget, serve both.
    plain = reusing.without_reuse() or build_engine(replace(config, reuse=False))
    engine = _Compared(reusing, plain)
    chain = TwoPass(engine, resolved, data.siblings, finder=finder(config, reusing))
    portions = [QuestionBatch((config,), examples[start : start + size]) for start in range(0, len(examples), size)]
    done = 0
    for predictions in answers(chain, portions, engine):
        done += len(predictions)
        reporter.progress("verify", done, len(examples), f"{len(engine.flips)} differ")
    return {"questions": len(examples), "replies": engine.replies, "flips": engine.flips}
