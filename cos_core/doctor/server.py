"""A served model: whether both passes are answered, and whether the prompts that the server computes are the local engine's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from cos_core.dialogue.box_text import write_box
from cos_core.dialogue.prompts import Profile, dialogue
from cos_core.doctor import family_prompt, prompt
from cos_core.doctor.finding import MachineFinding
from cos_core.engines import _served
from cos_core.engines._served import ServedModel
from cos_core.errors import InputError, MissingError
from cos_core.geometry import Box
from cos_core.models import llava
from cos_core.types import Turn
from cos_core.web.client import HttpReply

SECONDS = 300.0
"""Time limit of one probe: some servers load the model at the first request."""
_QUESTION = "What colour is the ball on the left?"
_SHOWN = (96, 64)
"""Width and height of the picture that is sent."""
_NAMED = 8
_LIMITED = re.compile(r"at most \d+ images?|limit[-_]mm[-_]per[-_]prompt|too many images|only (one|1|a single) image", re.I)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """`url`: the server's address up to /v1; `model`: as the server calls it; `profile`: a wording other than the
    checkpoint's own; `family`: that of a model whose checkpoint is not here.
    """

    url: str
    model: str
    profile: str | None = None
    family: str | None = None


def examine_server(config: ServerConfig) -> Iterator[MachineFinding]:
    """Findings about a server, in the order in which they are made; ends at the first that makes further ones useless.

    Raises InputError for an address that is none, and for a profile or an image processor that cannot be read.
    """
    url = _served.address(config.url)
    listing = _served.ask(url, "/models")
    reached = _reached(url, listing)
    yield reached
    if reached.level == "missing":
        return
    served = _served.of_model(config.model, url, config.profile, config.family)
    yield _wording(served)
    images, dialogues = _images(), probes(served.dialogue.profile)
    answers = []
    for number, turns in enumerate(dialogues, 1):
        body = {"model": config.model, "messages": served.dialogue.messages(turns, images)}
        reply = _served.ask(url, "/chat/completions", {**body, "max_tokens": 1, "temperature": 0, "stream": False}, SECONDS)
        if (refused := _refused(number, reply, config.model, _served.listed(listing))) is not None:
            yield refused
            return
        answers.append(prompt.Seen(_count(reply), _ids(url, body)))
    yield MachineFinding("passes", "ok", "both passes are answered, the second with two pictures")
    yield from _prompts(served, dialogues, images, answers)
    yield MachineFinding("pictures", "note", f"{_sent(served)}; tokens do not show whether the server cuts or resizes them")


def probes(profile: Profile) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    """The dialogue of either pass about a question."""
    box = write_box(Box(0.25, 0.375, 0.75, 0.625, profile.box_frame), profile, _SHOWN)
    return dialogue(profile, _QUESTION), dialogue(profile, _QUESTION, box_text=box)


def _images() -> dict[str, Image.Image]:
    """A picture and a region that are not square."""
    picture = Image.linear_gradient("L").resize(_SHOWN).convert("RGB")
    return {"full": picture, "roi": picture.crop((24, 24, 72, 40))}


def _sent(served: ServedModel) -> str:
    """How pictures are sent."""
    if served.vision is None:
        return f"sent padded to squares in the colour {served.colour}"
    return "sent in the size that the model sees" if served.vision.resizes else "sent as they are"


def _reached(url: str, listing: HttpReply) -> MachineFinding:
    if listing.status is None:
        todo = "start it, or mend --server: its address up to /v1"
        return MachineFinding("server", "missing", f"{url} is not reached: {listing.message}", todo)
    if listing.status in (401, 403):
        return _key_refused(listing)
    if 300 <= listing.status < 400:
        return MachineFinding(
            "server", "missing", f"{url} is not the server itself: {listing.message}", "name it by the address it redirects to"
        )
    models = _served.listed(listing)
    if models is None:
        message = f"{url} answers, but does not list its models (HTTP {listing.status})"
        return MachineFinding("server", "note", message, "check that the address goes up to /v1, if what follows fails")
    return MachineFinding("server", "ok", f"{url} lists {_names(models)}")


def _key_refused(reply: HttpReply) -> MachineFinding:
    sent = "the key in OPENAI_API_KEY" if _served.key() else "a request without a key"
    return MachineFinding(
        "server", "missing", f"it refuses {sent} (HTTP {reply.status})", "export OPENAI_API_KEY=... as the server wants"
    )


def _names(models: Mapping[str, Any]) -> str:
    shown = ", ".join(list(models)[:_NAMED]) + (f" and {len(models) - _NAMED} more" if len(models) > _NAMED else "")
    return shown or "no model"


def _wording(served: ServedModel) -> MachineFinding:
    of = f"padding colour {served.colour}" if served.vision is None else f"family {served.kind or 'unknown'}"
    wording = f"wording {served.dialogue.profile.name!r}, {of}"
    if served.folder is not None:
        source = " (the server says where it is)" if served.by_root else ""
        return MachineFinding("wording", "ok", f"{wording}; checkpoint {served.folder}{source}")
    if served.vision is not None:
        todo = None if served.named_family else "name its family with --family"
        unknown = f"the checkpoint of {served.model!r} is not known here"
        return MachineFinding("wording", "warning", f"{wording}; {unknown}: assumed are {served.assumptions}", todo)
    assumed = "the colour is assumed" if served.named_profile else "both are assumed"
    todo = None if served.named_profile else "name the wording with --profile FILE (the checkpoint's cos_profile.json)"
    return MachineFinding(
        "wording", "warning", f"{wording}; {assumed}: the checkpoint of {served.model!r} is not known here", todo
    )


def _refused(number: int, reply: HttpReply, model: str, models: Mapping[str, Any] | None) -> MachineFinding | None:
    """Why a pass was not answered, or None."""
    data = reply.data
    if isinstance(data, dict) and isinstance(data.get("choices"), list):
        return None
    message = reply.message or f"not a chat completion: {reply.body[:80]!r}"
    if reply.status in (401, 403):
        return _key_refused(reply)
    if "chat template" in message.lower() or "chat_template" in message.lower():
        todo = "serve a checkpoint that holds one (chat_template.jinja), or name one: vllm serve ... --chat-template FILE"
        return MachineFinding("passes", "missing", f"the served model has no chat template: {message}", todo)
    if _LIMITED.search(message):
        todo = """serve it with room for two: vllm serve ... --limit-mm-per-prompt '{"image": 2}'"""
        which = "a second picture" if number == 2 else "pictures"
        return MachineFinding("passes", "missing", f"pass {number}: the server refuses {which}: {message}", todo)
    if models is not None and model not in models and reply.status is not None:
        todo = f"name it as the server does: --model {next(iter(models), 'NAME')}"
        return MachineFinding(
            "model", "missing", f"{model!r} is not served; the server lists {_names(models)} ({message})", todo
        )
    status = "no answer" if reply.status is None else f"HTTP {reply.status}"
    return MachineFinding(
        "passes", "missing", f"pass {number} is not answered: {status}: {message}", "see the server's own log"
    )


def _count(reply: HttpReply) -> int | None:
    usage = reply.data.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count > 0 else None


def _ids(url: str, body: dict[str, Any]) -> tuple[int, ...] | None:
    """The prompt's ids, where the server has vLLM's /tokenize."""
    data = _served.ask(url.removesuffix("/v1"), "/tokenize", {**body, "add_generation_prompt": True}, SECONDS).data
    ids = data.get("tokens") if isinstance(data, dict) else None
    if not isinstance(ids, list) or not ids or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
        return None
    return tuple(ids)


def _prompts(
    served: ServedModel,
    dialogues: tuple[tuple[Turn, ...], ...],
    images: Mapping[str, Image.Image],
    seen: Sequence[prompt.Seen],
) -> Iterator[MachineFinding]:
    """Whether the prompts are the local ones, and in what they differ."""
    if served.folder is None:
        todo = "name the model as its folder is called here, or run the doctor on the server's machine"
        yield MachineFinding("prompt", "warning", "not compared: the checkpoint is not known here", todo)
        return
    if served.vision is not None and any(each.count is not None or each.ids is not None for each in seen):
        yield from family_prompt.findings(served, dialogues, images, seen)
        return
    try:
        encoder = llava.encoder(served.folder)
    except MissingError as error:
        yield MachineFinding("prompt", "warning", f"not compared: {error}")
        return
    except InputError as error:
        yield MachineFinding("prompt", "missing", str(error), "name a LLaVA checkpoint in the transformers layout")
        return
    if all(each.count is None and each.ids is None for each in seen):
        yield MachineFinding(
            "prompt", "warning", "not compared: the server tells neither token counts (usage) nor ids (/tokenize)"
        )
        return
    local = prompt.Rendering(served.dialogue.profile, dialogues)
    worded = replace(encoder, profile=served.dialogue.profile)
    here = [len(worded.encode(turns)) for turns in dialogues]
    by_ids = all(each.ids is not None for each in seen)
    if prompt.matches(local, encoder, seen):
        proof = "id by id" if by_ids else "by their number: what keeps it can go unseen without /tokenize"
        yield MachineFinding("prompt", "ok", f"{here[0]} and {here[1]} tokens, as the local engine's, {proof}")
        return
    there = [each.count if each.count is not None else len(each.ids or ()) for each in seen]
    counts = f"{there[0]} and {there[1]} tokens there, {here[0]} and {here[1]} here"
    yield MachineFinding("prompt", "missing", f"the server computes another prompt: {counts}", _ADVICE)
    reasons = prompt.explanations(local, encoder, seen)
    for explanation in reasons:
        yield MachineFinding("prompt", "missing", ("" if by_ids else "what would fit: ") + "; ".join(explanation))
    yield from _places(local, encoder, seen)
    if not reasons and not by_ids:
        yield MachineFinding(
            "prompt", "missing", "no known difference fits the counts alone; the server's log may show its prompts"
        )


_ADVICE = "serve the checkpoint's own chat_template.jinja (vllm serve ... --chat-template FILE), or name its wording: --profile"


def _places(local: prompt.Rendering, encoder: llava.LlavaEncoder, seen: Sequence[prompt.Seen]) -> Iterator[MachineFinding]:
    """Where ids first differ, pass by pass."""
    for number, (mine, theirs) in enumerate(zip(local.ids(encoder), seen, strict=True), 1):
        if theirs.ids is not None:
            texts, _ = prompt.collapsed(theirs.ids, encoder.image_token_id)
            if (parted := prompt.first_difference(mine, texts, encoder)) is not None:
                place, there, here = parted
                yield MachineFinding(
                    "prompt", "missing", f"pass {number} from token {place} on: {there!r} there, {here!r} here"
                )
