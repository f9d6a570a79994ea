"""The checkpoint behind a served model: its folder, or at least its family, and with it the wording and the pictures sent.

A server names its models as it likes. The folder is the one that the name leads to here (hub.local), else the `root` that vLLM
and SGLang list beside the name, where that lies on this machine. Without a folder the family is the one that the user names,
else the one in the model's name. Engine, fingerprint and doctor take it from here.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core.dialogue.prompts import Profile, load_profile
from cos_core.engines._messages import ServedDialogue, assumed, of_folder
from cos_core.errors import InputError
from cos_core.interfaces import Reporter
from cos_core.models import checkpoint_files, families, hub, vision_input
from cos_core.models.families import PixelBudget
from cos_core.models.vision_input import LLAVA_15, VisionInput
from cos_core.web.addresses import check_key, checked_address
from cos_core.web.client import Client, HttpReply, ServerError, payload

SECONDS = 4.0
"""How long a server may take to list its models; listing costs it nothing."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A served model and what is known of its checkpoint.

    `folder`: the checkpoint on this machine, None where that is not known; `by_root`: the folder is the server's `root`;
    `kind`: its family (families.names), "" where that is not known; `named_profile`, `named_family`, `budget`: the user's.
    """

    model: str
    dialogue: ServedDialogue
    folder: str | None = None
    by_root: bool = False
    named_profile: str | Profile | None = None
    kind: str = LLAVA_15
    named_family: str | None = None
    budget: PixelBudget | None = None

    @property
    def vision(self) -> VisionInput | None:
        """Its vision input; None for LLaVA-1.5."""
        return self.dialogue.vision

    @property
    def colour(self) -> str:
        return "({}, {}, {})".format(*self.dialogue.fill)

    def report(self, reporter: Reporter) -> None:
        """Says what is assumed or taken from the server: one line, or none where the name itself is a checkpoint here."""
        wording, name = self.dialogue.profile.name, self.model
        unknown = f"the checkpoint behind the served model {name!r} is not known here"
        if self.by_root:
            reporter.note(f"served model {name!r}: its checkpoint is {self.folder}, says the server; wording {wording!r}")
        elif self.folder is None and self.vision is not None:
            named = self.named_profile and self.named_family
            (reporter.note if named else reporter.warn)(f"{unknown}: assumed are {self.assumptions}")
        elif self.folder is None and self.named_profile:
            reporter.note(f"served model {name!r}: pictures are padded in CLIP's mean colour {self.colour}, which is assumed")
        elif self.folder is None:
            family = "" if self.named_family else "LLaVA-1.5 (by its name; --family names another), "
            reporter.warn(
                f"{unknown}: assumed are {family}the wording {wording!r} and the padding colour {self.colour}; name another "
                "wording with --profile FILE (its cos_profile.json)"
            )
        if (words := self.server_budget_note) is not None:
            reporter.warn(words)

    @property
    def assumptions(self) -> str:
        """What is assumed of a model of another family than LLaVA-1.5 whose folder is not known, as a list in words."""
        profile, parts = self.dialogue.profile, []
        if not self.kind:
            parts.append("no family (--family names one: llava is LLaVA-1.5)")
        elif self.named_family is None:
            parts.append(f"the family {self.kind} (by its name; --family names another)")
        if not self.named_profile:
            parts.append(f"the wording {profile.name!r}")
        frame = "padded square" if profile.box_frame == "square" else "picture"
        parts.append(f"boxes in {profile.box_unit}s of the {frame}")
        if self.vision is not None and self.vision.resizes:
            sizes = "{min_pixels:,} to {max_pixels:,} pixels".format(**self.vision.budget)
            parts.append(f"pictures as its published checkpoints show them, resized here to {sizes}")
        return ", ".join(parts)

    @property
    def server_budget_note(self) -> str | None:
        """The warning that the server must be started with the run's pixel budget; None where its own includes it."""
        if self.budget is None or not self.budget.words or self.vision is None:
            return None
        of_server = vision_input.of_folder(self.folder) if self.folder else vision_input.of_family(self.kind)
        own, now = {} if of_server is None else of_server.budget, self.vision.budget
        if own.get("min_pixels", 0) <= now.get("min_pixels", 0) and now.get("max_pixels", 0) <= own.get("max_pixels", 0):
            return None
        return (
            f"pictures are sent with {now['min_pixels']} to {now['max_pixels']} pixels, and by its files the server shows "
            f"{own['min_pixels']} to {own['max_pixels']}: start it with that budget, too, or it resizes them again"
        )


def address(server: str | None) -> str:
    """The server's address up to /v1, without a slash at its end: the one given, else $OPENAI_BASE_URL. Raises InputError."""
    url = server or os.environ.get("OPENAI_BASE_URL", "")
    if not url:
        raise InputError("the engine 'openai' needs the server's address: --server http://localhost:8000/v1")
    try:
        return checked_address(url)
    except InputError as error:
        raise InputError(f"{error}; give --server http://localhost:8000/v1, or the like") from None


def key() -> str | None:
    """The key that servers are sent: $OPENAI_API_KEY. Raises InputError, without the key, for one that cannot be sent."""
    secret = os.environ.get("OPENAI_API_KEY") or None
    check_key(secret, "the key in OPENAI_API_KEY")
    return secret


def of_model(
    model: str | Path,
    server: str | None,
    named_profile: str | Profile | None = None,
    named_family: str | None = None,
    budget: PixelBudget | None = None,
) -> ServedModel:
    """The served model `model` of `server`; `named_profile`: a profile to use instead of the checkpoint's own; `named_family`:
    its family, where its folder is not known.

    Raises InputError for an address that is none, for a profile or an image processor that cannot be read, for a family that is
    not the folder's, and for a pixel budget that the family does not have.
    """
    url, name = address(server), str(model)
    folder = _checkpoint(name)
    by_root = folder is None and bool(name) and (folder := _root(url, name)) is not None
    if folder is not None:
        check_family(folder, named_family)
        dialogue = of_folder(folder, named_profile, budget)
        kind = LLAVA_15 if dialogue.vision is None else dialogue.vision.kind
    else:
        kind = _kind(name, named_profile, named_family)
        dialogue = assumed(named_profile, kind, budget)
    return ServedModel(name, dialogue, folder, by_root, named_profile, kind, named_family, budget)


def check_family(folder: str, named_family: str | None) -> None:
    """Raises InputError for the name of another family than the folder's."""
    if named_family is None:
        return
    kind = families.type_of(checkpoint_files.settings(Path(folder), checkpoint_files.CONFIG) or {})
    if families.file_name(kind) != named_family:
        raise InputError(f"--family {named_family}: {folder} is of the family {kind}, by its config.json; leave --family out")


def _kind(name: str, named_profile: str | Profile | None, named_family: str | None) -> str:
    """The family of a model that is known by its name alone; "" where the name does not say."""
    if named_family is not None:
        return named_family
    if (guessed := families.guessed(name)) is not None:
        return guessed
    # A wording with roles of its own is LLaVA's.
    profile = named_profile if isinstance(named_profile, Profile) else load_profile(named_profile) if named_profile else None
    return LLAVA_15 if profile is not None and profile.roles == "profile" else ""


def listed(reply: HttpReply) -> dict[str, str | None] | None:
    """Model -> its `root`, as a reply to GET /models lists them; None where the reply is no such list."""
    data = reply.data
    entries = data.get("data") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        return None
    known = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    return {entry["id"]: root if isinstance(root := entry.get("root"), str) else None for entry in known}


def ask(url: str, path: str, body: dict[str, Any] | None = None, seconds: float = SECONDS) -> HttpReply:
    """One request to `path` of a server, a POST of `body` or a GET. Never raises for what the server does."""
    try:
        return Client(url, key(), seconds).request(path, None if body is None else payload(body))
    except ServerError as error:
        return HttpReply(error.status, message=str(error))


def _checkpoint(name: str) -> str | None:
    """The folder that a name leads to here, where it holds a checkpoint."""
    try:
        folder = hub.local(name) if name else None
        return folder if folder and (Path(folder) / "config.json").is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


@functools.cache
def _root(url: str, model: str) -> str | None:
    """The folder that the server lists as the model's root, where it is here. Asked once, so that a run sees one answer."""
    root = (listed(ask(url, "/models")) or {}).get(model)
    return _checkpoint(root) if root and root != model else None
