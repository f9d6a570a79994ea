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
    """The relevance of each question, grouped as given; where the backbone cannot be used, or memory runs out, the reason.

    Groups that fail together are asked one by one, then their questions. `release`: frees memory that an engine keeps for
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
        return [relevance for group in groups for relevance in relevance_of_each(backbone, [group])]
    ((image, examples),) = groups
    if len(examples) > 1:
        return [[relevance for e in examples for ((relevance,),) in (relevance_of_each(backbone, [(image, [e])]),)]]
    return [[why for _ in examples]]
