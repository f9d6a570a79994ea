"""Files of pictures: the file that a name in the data means, and its bytes. images.py decodes them.

Names, and links in picture folders, come from untrusted data. A name outside the picture folder is refused; a link that leads
out of it is followed with `PictureFolder.follow_links`, and in the cache of the Hugging Face hub, where links lead to `blobs`
of the same repository.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from cos_core.errors import InputError, TransientError
from cos_core.files.text import is_encodable, one_line

MAX_FILE_BYTES = 2**29
_SHOWN_PATH = 400
_FOR_GOOD = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
"""Error numbers of a path that stays unusable whatever is mounted or copied."""
_REPOSITORY = re.compile(r"(?:models|datasets|spaces)--.+")


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """A folder of pictures; `follow_links`: whether links in it may lead out of it."""

    path: Path
    follow_links: bool = False


Root = PictureFolder | Path | None
"""The folder that the names of pictures start from; links out of a plain path are refused; None: names are whole paths."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture's encoded file: its bytes, and its path for messages."""

    path: Path
    data: bytes


def folder(path: Path | None, follow_links: bool) -> PictureFolder | None:
    """The two settings of a stage as one; None without a folder."""
    return None if path is None else PictureFolder(path, follow_links)


def image_path(root: Root, relative: str) -> Path:
    """The file that `relative` names under `root`, links resolved; without a root, the path `relative` itself, resolved.

    Raises InputError for a path that is absolute, climbs out of the root, or is linked out of it where links are not followed.
    """
    try:
        if root is None:
            return Path(relative).resolve()
        inside = root if isinstance(root, PictureFolder) else PictureFolder(Path(root))
        base = inside.path.resolve()
        path = (base / relative).resolve()
        absolute = Path(relative).is_absolute()
        if not absolute and path.is_relative_to(base):
            return path
        # As text: behind a link, `..` would climb from where the link leads.
        plain = os.path.normpath(relative)
        linked = (base / plain).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"the image path {_quoted(relative)} cannot be used: {error}") from None
    leaves = f"the image path {_quoted(relative)} leaves the image folder {one_line(inside.path)}"
    if absolute or plain == ".." or plain.startswith("../"):
        raise InputError(f"{leaves}; give the folder it really lies in")
    if inside.follow_links or _in_hub_cache(base, linked):
        return linked
    raise InputError(f"{leaves} by a link; give --follow-links if the links in that folder are your own")


def _in_hub_cache(base: Path, target: Path) -> bool:
    """Whether both lie in one repository of the hub's cache: snapshots/<commit>/x is a link to blobs/<digest> there."""
    for place in (base, *base.parents):
        repository = place.parent.parent
        if place.parent.name == "snapshots" and _REPOSITORY.fullmatch(repository.name):
            return target.is_relative_to(repository / "blobs")
    return False


@dataclass(slots=True)
class Listing:
    """The files in a folder and its subfolders: paths relative to it, with `/`, sorted.

    `links`: linked folders that were not entered; `closed`: folders without permission to read; `unnameable`: files whose
    names are not UTF-8, as Python escapes them.
    """

    files: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    unnameable: list[str] = field(default_factory=list)


_LEFT_BY_SYSTEMS = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"))


def listed(folder: Path, follow_links: bool, output: Path | None = None) -> Listing:
    """The files of a folder, but for hidden ones and those that other systems leave behind (`._x.jpg`, `Thumbs.db`).

    Linked folders are entered with `follow_links`, each folder once. `output`: a file to leave out, with the files beside it
    whose names begin with its name.
    """
    listing = Listing()
    output_path = Path(os.path.realpath(output)) if output is not None else None
    entered: set[str] = set()
    pending, linked = [""], list[str]()
    while pending or linked:
        # Linked folders come last, so that a folder reached both ways is listed under its own name.
        inside = pending.pop() if pending else linked.pop(0)
        if (real := os.path.realpath(folder / inside)) in entered:
            continue
        entered.add(real)
        try:
            entries = sorted(os.scandir(real), key=lambda entry: entry.name)
        except OSError:
            listing.closed.append(inside or str(folder))
            continue
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if entry.name.startswith(".") or entry.name.lower() in _LEFT_BY_SYSTEMS:
                continue
            if entry.is_dir():
                (pending if not entry.is_symlink() else linked if follow_links else listing.links).append(name)
            elif output_path is None or not _beside(Path(entry.path), output_path):
                (listing.files if is_encodable(name) else listing.unnameable).append(name)
    listing.files.sort()
    return listing


def _beside(path: Path, output: Path) -> bool:
    return path.name.startswith(output.name) and os.path.realpath(path.parent) == str(output.parent)


def read_file(root: Root, relative: str) -> ImageFile:
    """The file behind a picture, not decoded.

    Raises TransientError when it is not there or cannot be read (a mount, a copy under way), InputError for a name that leaves
    the root and for what is no file, empty or too large.
    """
    path = image_path(root, relative)
    check_file(path)
    try:
        return ImageFile(path, path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from None
    except MemoryError:
        raise TransientError(f"there is no memory to read the image {shown(path)}") from None


def check_file(path: Path) -> None:
    """Raises TransientError or InputError for a file that `read_file` would not read."""
    try:
        info = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(info.st_mode):
        raise InputError(f"the image {shown(path)} is not a file")
    if info.st_size == 0:
        raise InputError(f"the image {shown(path)} is empty")
    if info.st_size > MAX_FILE_BYTES:
        raise InputError(f"the image {shown(path)} is too large: {info.st_size >> 20} MiB (limit {MAX_FILE_BYTES >> 20})")


def unreadable(path: Path, error: OSError) -> InputError:
    """The InputError for a picture's file that cannot be opened: a TransientError, unless the path itself is unusable."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return TransientError(f"there is no image {shown(path)}")
    kind = InputError if error.errno in _FOR_GOOD else TransientError
    return kind(f"the image {shown(path)} cannot be read: {error.strerror}")


def shipped(root: Root, names: Iterable[str]) -> dict[str, ImageFile | InputError]:
    """Name -> file, or the error of one that cannot be read, for an ImageSource in another process."""
    files: dict[str, ImageFile | InputError] = {}
    for name in names:
        try:
            files[name] = read_file(root, name)
        except InputError as error:
            files[name] = error
    return files


Shipped = Mapping[str, ImageFile | InputError]


def first_existing(root: Root, names: Iterable[str], most: int = 100) -> str | None:
    """The first of `names` whose file exists, of the first `most`; the argument of `check_visible` in workers."""
    for name in islice(names, most):
        try:
            if image_path(root, name).is_file():
                return name
        except (InputError, OSError):
            continue
    return None


def check_visible(root: Root, seen: str | None) -> None:
    """Raises InputError when this worker has no file for `seen`, a picture that exists for the driver (None: no check)."""
    if seen is not None and not image_path(root, seen).is_file():
        where = root.path if isinstance(root, PictureFolder) else root
        raise InputError(
            f"a worker cannot see the image {_quoted(seen)} in {where}; "
            "put it on a file system that all nodes share, or give --ship-images"
        )


def check_folder(root: Path | None) -> None:
    """Raises InputError when the folder of pictures is missing, empty or no folder."""
    if root is None:
        return
    try:
        empty = next(os.scandir(root), None) is None
    except NotADirectoryError:
        raise InputError(f"{shown(root)} is no folder of images") from None
    except OSError as error:
        raise InputError(f"there is no folder of images at {shown(root)} ({error.strerror})") from None
    if empty:
        raise InputError(f"the folder of images {shown(root)} is empty; is it mounted?")


def shown(path: Path) -> str:
    """A path for a message, on one line."""
    return one_line(path, _SHOWN_PATH)


def _quoted(name: str) -> str:
    return repr(name[:200])
