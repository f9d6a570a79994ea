"""What a backbone computes from pictures before they are needed, in other threads than the model's."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

AHEAD_BYTES = 2**30
"""What may lie ready at once; beyond that pictures are cut and resized when their turn comes."""


class Ahead(Generic[T]):
    """Values by picture, each stored until `take` or the end of its picture. For use from any thread."""

    def __init__(self, most: int = AHEAD_BYTES) -> None:
        self._most = most
        self._values: dict[int, tuple[T, int]] = {}
        self._lock = threading.Lock()
        self.held = 0
        """Bytes of the values that are stored or being computed."""

    def put(self, image: Image, size: int | Callable[[T], int], make: Callable[[], T]) -> None:
        """Keeps the value of `make()`, of `size` bytes, for the picture; does nothing where there is no room for it.

        Where only the value tells its size, it is made while there is any room, and kept if it fits.
        """
        key = id(image)
        reserved = size if isinstance(size, int) else 0
        with self._lock:
            if key in self._values or self.held + max(1, reserved) > self._most:
                return
            self.held += reserved
        try:
            value = make()
        except BaseException:
            with self._lock:
                self.held -= reserved
            raise
        with self._lock:
            taken = size if isinstance(size, int) else size(value)
            if self.held - reserved + taken > self._most:
                return
            self.held += taken - reserved
            self._values[key] = (value, taken)
        weakref.finalize(image, _forget, weakref.ref(self), key)

    def take(self, image: Image) -> T | None:
        """The picture's value, which is then no longer kept here; None where there is none."""
        return self._pop(id(image))

    def _pop(self, key: int) -> T | None:
        with self._lock:
            value, size = self._values.pop(key, (None, 0))
            self.held -= size
        return value


def _forget(ahead: weakref.ref[Ahead[T]], key: int) -> None:
    self = ahead()
    if self is not None:
        self._pop(key)
