"""Pictures ahead of the model: they are decoded, and made ready for the model, in threads while it computes.

A caller bounds the open pictures by the names that it begins: annotating the next window, answering the next batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

from cos_core.errors import InputError, TransientError
from cos_core.files.images import ImageSource

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
Prepare = Callable[["Image", str], None]
"""A preparation of a picture (and its name) that may run in any thread."""


class PictureOpener(Protocol):
    """Pictures by name: an ImageSource, or OpenPictures."""

    def open(self, name: str) -> Image:
        """See ImageSource.open."""


class OpenPictures:
    """Pictures that are being read, by name; `open` reads any other name itself."""

    def __init__(self, futures: Mapping[str, Future[Image | InputError]], source: ImageSource) -> None:
        self.futures, self._source = futures, source

    def open(self, name: str) -> Image:
        """See ImageSource.open; waits until the picture has been read."""
        if name not in self.futures:
            return self._source.open(name)
        image = self.outcome(name)
        if isinstance(image, InputError):
            raise image
        return image

    def outcome(self, name: str) -> Image | InputError:
        """The picture of this name, which must be among them, or the error of reading it."""
        return self.futures[name].result()


class PictureReader:
    """Reads pictures in `threads` threads; a context manager that ends them."""

    def __init__(self, prepare: Prepare | None = None, threads: int = 1) -> None:
        self._prepare = prepare
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")

    def __enter__(self) -> PictureReader:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, names: Iterable[str], source: ImageSource, before: OpenPictures | None = None) -> OpenPictures:
        """The pictures of these names, read from now on; those that are open in `before` are not read again.

        `source` must not change until they are read.
        """
        known = before.futures if before is not None else {}
        futures = {name: known.get(name) or self._pool.submit(self._read, name, source) for name in dict.fromkeys(names)}
        return OpenPictures(futures, source)

    def _read(self, name: str, source: ImageSource) -> Image | InputError:
        try:
            image = source.open(name)
            if self._prepare is not None:
                self._prepare(image, name)
        except InputError as error:
            return error
        except MemoryError:
            return TransientError(f"there is no memory to prepare the image {name!r}")
        return image


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items in order, each after the next was fetched from `items`: work that fetching starts runs while one is used."""
    source = iter(items)
    try:
        item = next(source)
    except StopIteration:
        return
    for following in source:
        yield item
        item = following
    yield item
