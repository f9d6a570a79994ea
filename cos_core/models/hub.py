"""One way to a checkpoint: a folder, a hub id (`owner/name`, `owner/name@revision`) or `miniature` becomes one local folder.

Everything after this sees the folder alone: weights, profile, fingerprint, the annotator's record, conversion and saving. A hub
id is downloaded into the hub's cache, or looked up there when offline mode is on or the hub cannot be reached.
"""

from __future__ import annotations

import difflib
import hashlib
import sys
from pathlib import Path
from typing import Any

from cos_core.errors import InputError, MissingError
from cos_core.files import assets
from cos_core.files.durable import utf8
from cos_core.files.text import first_line, one_line
from cos_core.models.checkpoint_files import weight_files
from cos_core.system.extras import install
from cos_core.web.client import Client

MINIATURE = "miniature"

_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""What of a repository is downloaded: settings, tokenizer and weights; no code, no other framework's weights."""
_IGNORED = ["*/*"]
"""Folders inside a repository hold adapters, other formats and logs."""

_DECIDING = (".json", ".safetensors", ".model", ".txt", ".bin")
_NOT_DECIDING = (
    # A run's own records hold times and paths: the same weights trained twice are the same checkpoint.
    "manifest.json",
    "run.json",
    "pretrain.json",
    "trainer_state.json",
    "training_args.bin",
    "cos_annotator.json",
    # Templates are for servers; the profile decides what is asked here.
    "chat_template.json",
)

_resolved: dict[tuple[str, bool], str] = {}


def resolve(model: str | Path, *, pickles: bool = False) -> str:
    """The local folder of a model argument; a path that is a folder, and `miniature`, need no network.

    `pickles`: a repository without safetensors may be taken with its `.bin` files, for readers that load no code from them. A
    process that asks again gets the folder of its first answer, so that one run never sees two revisions. Raises InputError for
    a name that is neither a folder nor a hub id, or that the hub does not know; MissingError when the hub is needed and cannot
    be reached, or holds back a gated model.
    """
    name = str(model)
    if name == MINIATURE:
        return str(assets.miniature_checkpoint())
    if _is_folder(name):
        return name
    folder = _resolved.get((name, pickles))
    if folder is None or not Path(folder).is_dir():
        folder = _resolved[name, pickles] = _downloaded(name, pickles)
    return folder


def local(model: str | Path) -> str | None:
    """The local folder of a model argument where it is here already, a hub id's newest cached copy included; else None."""
    name = str(model)
    if name == MINIATURE or _is_folder(name):
        return resolve(name)
    if (name, False) in _resolved:
        return _resolved[name, False]
    try:
        return _snapshot(name, pickles=False, local_only=True)
    except (InputError, MissingError, ImportError):
        return None


def fingerprint(folder: str | Path) -> str:
    """16 hex digits that change with the settings, the tokenizer or the weights in a checkpoint's folder.

    Every file counts that can decide an answer: all but pictures, logs, texts for people and what _NOT_DECIDING names. Small
    files count whole; of a large one, its size, its first megabyte and 4 KiB at 1024 even distances: fast on 14 GB, and a
    fine-tuned layer cannot hide between the samples. Raises InputError when a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(Path(folder).iterdir()):
            if path.suffix in _DECIDING and path.name not in _NOT_DECIDING and path.is_file():
                _sample(path, digest)
    except OSError as error:
        raise InputError(f"the checkpoint {folder} cannot be read: {error.strerror}: {error.filename}") from None
    return digest.hexdigest()[:16]


def name_fingerprint(name: str | Path) -> str:
    """16 hex digits for a model that is known by its name alone, as one behind a server."""
    return hashlib.sha256(utf8(str(name))).hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """16 hex digits that change with a model that is one file, read in part as `fingerprint` reads large ones.

    Raises InputError when it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        _sample(path, digest)
    except OSError as error:
        raise InputError(f"the model {path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:16]


def _sample(path: Path, digest: Any) -> None:
    size = path.stat().st_size
    digest.update(utf8(f"{path.name}:{size}:"))
    with path.open("rb") as file:
        digest.update(file.read(1 << 20))
        for place in range(1 << 20, size, max(4096, size // 1024)):
            file.seek(place)
            digest.update(file.read(4096))


def _downloaded(name: str, pickles: bool) -> str:
    try:
        import huggingface_hub
    except ImportError as error:
        needs = f"a model from the hub needs the extra 'model': {install('model')}"
        raise MissingError(f"there is no folder {name}, and {needs} ({error})") from None
    repository, _ = _parts(name)
    if "/" not in repository and _meant(repository):
        raise InputError(f"there is no folder {name}{_meant(repository)}")
    # One short question first: asked file by file, a hub that cannot be reached takes about a minute.
    url = huggingface_hub.hf_hub_url(repository, "config.json")
    offline = huggingface_hub.is_offline_mode() or not Client(url, timeout=5).exists()
    return _snapshot(name, pickles, local_only=offline)


def _snapshot(name: str, pickles: bool, local_only: bool) -> str:
    """The folder of a repository's revision in the cache, downloaded unless `local_only`."""
    import huggingface_hub
    from huggingface_hub import errors

    repository, revision = _parts(name)
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    options: dict[str, Any] = {"revision": revision, "ignore_patterns": _IGNORED, "local_files_only": local_only}
    try:
        folder = huggingface_hub.snapshot_download(repository, allow_patterns=_PATTERNS, **options)
        if pickles and not any(Path(folder).glob("*.safetensors")):
            folder = huggingface_hub.snapshot_download(repository, allow_patterns=[*_PATTERNS, "*.bin"], **options)
    except errors.GatedRepoError:
        raise MissingError(f"the model {name} is gated: accept its terms on the hub and log in (hf auth login)") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"there is no folder {name}{_meant(name)}, and no model of that name on the hub (or it is private)"
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(f"the model {repository} has no revision {revision!r}") from None
    except errors.LocalEntryNotFoundError:
        why = "offline mode is on" if huggingface_hub.is_offline_mode() else "the model hub cannot be reached"
        advice = f"download it where there is a network: hf download {name.replace('@', ' --revision ')}"
        raise MissingError(f"there is no folder {name}{_meant(name)}, and {why}; give a folder, or {advice}") from None
    except (errors.HfHubHTTPError, OSError) as error:
        raise MissingError(f"the model {name} could not be downloaded: {first_line(error)}") from None
    except (ValueError, TypeError, KeyError, AssertionError):
        raise MissingError(
            f"the model {name} could not be downloaded: the hub's answer is not what its library expects"
        ) from None
    lacking = _lacking(Path(folder))
    if lacking:
        raise MissingError(
            f"the model {name}, as it lies in the hub's cache, lacks {lacking}; give a folder, or download it whole"
        )
    return str(folder)


def _parts(name: str) -> tuple[str, str | None]:
    """(owner/name, revision) of a hub id. Raises InputError for what is none."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repository, _, revision = name.partition("@")
    try:
        validate_repo_id(repository)
    except HFValidationError:
        repository = ""
    if not repository or name.startswith((".", "/", "~")) or repository.count("/") > 1:
        raise InputError(f"there is no folder {one_line(name)}{_meant(name)}, and it is no hub id (owner/name) either")
    return repository, revision or None


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # longer than a name can be, or with a NUL in it
        return False


def _meant(name: str) -> str:
    """A question behind a name that is nearly that of the shipped model; what has a slash is something else."""
    return f" (did you mean {MINIATURE!r}?)" if difflib.get_close_matches(name.lower(), [MINIATURE], cutoff=0.7) else ""


def _lacking(folder: Path) -> str | None:
    """The first file that a cached checkpoint should have and does not, as a download that was cut off leaves it."""
    if not (folder / "config.json").is_file():
        return "config.json"
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        # The name of the one file, or of a pickle, is its reader's affair.
        whole = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
        return None if whole else "weights (safetensors)"
    try:
        weight_files(folder)
    except InputError as error:
        return f"some of its weights ({error})"
    return None
