"""Pictures ahead of the model: those of the next window are decoded, and prepared by the backbone, while this one's are asked.

At most two windows' pictures are open at once, three where a runner says beforehand which portion follows. What the backbone
keeps of them is bounded by itself (backbones/_ahead.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from cos_core.errors import InputError, TransientError
from cos_core.files.images import ImageSource
from cos_core.system import worker_process

if TYPE_CHECKING:
    from PIL.Image import Image

Prepare = Callable[["Image", str], None]


class Opened:
    """Some pictures that are being read, as an ImageSource; any other is read when it is asked for."""

    def __init__(self, pictures: Mapping[str, Future[Image | InputError]], source: ImageSource) -> None:
        self._pictures, self._source = pictures, source

    def open(self, name: str) -> Image:
        """See ImageSource.open; waits until the picture has been read."""
        if name not in self._pictures:
            return self._source.open(name)
        image = self._pictures[name].result()
        if isinstance(image, InputError):
            raise image
        return image


class WindowReader:
    """Begins to read pictures in as many threads as this process may have beside its model."""

    def __init__(self, prepare: Prepare | None = None, threads: int | None = None) -> None:
        self._prepare = prepare
        self._pool = ThreadPoolExecutor(threads or worker_process.feeders(), thread_name_prefix="pictures")

    def begin(self, names: Sequence[str], source: ImageSource) -> Opened:
        """The pictures of these names, which are read from now on; `source` is not to change meanwhile."""
        return Opened({name: self._pool.submit(self._read, name, source) for name in dict.fromkeys(names)}, source)

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
