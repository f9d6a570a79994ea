"""The checkpoint behind a served model: its folder, and with it the wording and the padding colour of what is sent.

A server names its models as it likes. The folder is the one that the name leads to here (hub.local), else the `root` that vLLM
and SGLang list beside the name, where that lies on this machine. Engine, fingerprint and doctor take it from here.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core.dialogue.prompts import Profile
from cos_core.engines._messages import ServedDialogue, assumed, of_folder
from cos_core.errors import InputError
from cos_core.interfaces import Reporter
from cos_core.models import hub
from cos_core.web.addresses import check_key, checked_address
from cos_core.web.client import Client, HttpReply, ServerError, payload

SECONDS = 4.0
"""How long a server may take to list its models; listing costs it nothing."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A served model and what is known of its checkpoint.

    `folder`: the checkpoint on this machine, None where that is not known; `by_root`: the folder is the server's `root`;
    `named_profile`: the profile that the user named.
    """

    model: str
    dialogue: ServedDialogue
    folder: str | None = None
    by_root: bool = False
    named_profile: str | Profile | None = None

    @property
    def colour(self) -> str:
        return "({}, {}, {})".format(*self.dialogue.fill)

    def report(self, reporter: Reporter) -> None:
        """Says what is assumed or taken from the server: one line, or none where the name itself is a checkpoint here."""
        wording, name = self.dialogue.profile.name, self.model
        if self.by_root:
            reporter.note(f"served model {name!r}: its checkpoint is {self.folder}, says the server; wording {wording!r}")
        elif self.folder is None and self.named_profile:
            reporter.note(f"served model {name!r}: pictures are padded in CLIP's mean colour {self.colour}, which is assumed")
        elif self.folder is None:
            reporter.warn(
                f"the checkpoint behind the served model {name!r} is not known here: assumed are the wording {wording!r} "
                f"and the padding colour {self.colour}; name another wording with --profile FILE (its cos_profile.json)"
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


def of_model(model: str | Path, server: str | None, named_profile: str | Profile | None = None) -> ServedModel:
    """The served model `model` of `server`; `named_profile`: a profile to use instead of the checkpoint's own.

    Raises InputError for an address that is none, and for a profile or an image processor that cannot be read.
    """
    url, name = address(server), str(model)
    folder = _checkpoint(name)
    by_root = folder is None and bool(name) and (folder := _root(url, name)) is not None
    dialogue = of_folder(folder, named_profile) if folder else assumed(named_profile)
    return ServedModel(name, dialogue, folder, by_root, named_profile)


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
