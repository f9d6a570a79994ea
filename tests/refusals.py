"""How tests check a refusal: the type of the error, and the facts in its message, whatever the sentence around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cos_core.errors import InputError


@contextmanager
def refused(*facts: object, kind: type[BaseException] = InputError) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """The block raises exactly `kind`, on one line, with each of `facts` in it: a path, an id, a number, a field, an option."""
    with pytest.raises(kind) as raised:
        yield raised
    message = str(raised.value)
    assert type(raised.value) is kind, repr(raised.value)
    assert "\n" not in message
    for fact in facts:
        assert str(fact) in message, message
