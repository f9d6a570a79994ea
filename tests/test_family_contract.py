"""The contract of families, over every file in cos_core/models/families."""

from __future__ import annotations

import importlib

import family_contract
import pytest
import tiny_families
from tiny_parts import SHAPES

from cos_core.models import families
from cos_core.models.layout.families import is_llava_15

NAMES = families.names()


def test_files_and_names_are_one_to_one() -> None:
    assert len(NAMES) >= 16
    assert len({families.of_type(kind).name for kind in NAMES}) == len(NAMES)
    for kind in NAMES:
        assert families.of_type(kind) is families.of_type(kind), "one object, however often it is asked for"
        assert type(importlib.import_module(f"cos_core.models.families.{kind}").build()) is type(families.of_type(kind))
        assert families.guessed(f"someone/{kind}-7B-Instruct") == kind


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", NAMES)
def test_a_family_holds_the_contract(kind: str, shape: str) -> None:
    parts = tiny_families.BUILDERS[kind](SHAPES[shape])
    config = parts.config.to_dict()
    assert type(families.of_config(config)) is type(families.of_type(kind)), "its own config.json leads to it"
    assert families.file_name(families.type_of(config)) == kind
    assert is_llava_15(config) is (kind == "llava")
    family_contract.check(families.of_type(kind), parts.config, tiny_families.by_hand(kind, shape))
