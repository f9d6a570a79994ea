"""Asking a backbone so that a question which cannot be explained costs that question alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cos_core.errors import InputError
from cos_core.interfaces import Backbone, Relevance
from cos_core.system import memory
from cos_core.types import Example

if TYPE_CHECKING:
    from PIL.Image import Image

Groups = Sequence[tuple["Image", Sequence[Example]]]


def relevance_of_each(
    backbone: Backbone, groups: Groups, release: Callable[[], None] | None = None
) -> list[list[Relevance | str]]:
    """What the backbone finds for each question, grouped as given; where it cannot be used, or memory runs out for it, why.

    Groups that fail together are asked one by one, then their questions. `release`: frees memory that somebody else keeps for
    later; what failed is then tried once more as it was.
    """
    if not groups:
        return []
    try:
        return [list(group) for group in backbone.relevance(groups)]
    except InputError as error:
        why = str(error)
    except (RuntimeError, MemoryError, OSError) as error:
        if not memory.is_out_of_memory(error):
            raise
        why = f"out of memory for a single question: {memory.reason(error)}"
        memory.let_go(error)
        if release is not None:
            release()
            return relevance_of_each(backbone, groups)
    if len(groups) > 1:
        return [found for group in groups for found in relevance_of_each(backbone, [group])]
    ((image, asked),) = groups
    if len(asked) > 1:
        return [[found for e in asked for ((found,),) in (relevance_of_each(backbone, [(image, [e])]),)]]
    return [[why for _ in asked]]
