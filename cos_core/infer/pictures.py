"""Pictures ahead of the model: while one batch is answered, the next one's pictures are decoded, padded and resized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from cos_core.errors import InputError, TransientError
from cos_core.files.images import ImageSource
from cos_core.types import Example

if TYPE_CHECKING:
    from PIL.Image import Image

Prepare = Callable[[Sequence["Image"]], None]


class PictureReader:
    """Opens the pictures of one batch after another; one that the next batch also needs is not decoded again.

    `prepare`: what else the engine can do with a picture beforehand. A context manager: its one thread ends with it.
    """

    def __init__(self, source: ImageSource, prepare: Prepare | None = None) -> None:
        self._source = source
        self._prepare = prepare
        self._open: dict[str, Future[Image | InputError]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    def __enter__(self) -> PictureReader:
        return self

    def __exit__(self, *_error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def beside(self, batch: Sequence[Example], after: Sequence[Example] = ()) -> list[tuple[Example, Image | InputError]]:
        """Each example with its picture, or with why there is none; begins to read those of the batch `after` it."""
        names = dict.fromkeys(example.image or "" for example in [*batch, *after])
        self._open = {name: self._open.get(name) or self._thread.submit(self._read, name) for name in names}
        return [(example, self._open[example.image or ""].result()) for example in batch]

    def _read(self, name: str) -> Image | InputError:
        try:
            image = self._source.open(name)
            if self._prepare is not None:
                self._prepare([image])
        except InputError as error:
            return error
        except MemoryError:
            return TransientError(f"there is no memory to prepare the image {name!r}")
        return image
