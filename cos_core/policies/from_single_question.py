"""Chain-of-Spot proper (CoS Table 3a, last row; Eq. 2-3): the region is asked for with the one question to be answered."""

from cos_core.interfaces import Policy


def build() -> Policy:
    return Policy(name="from_single_question", source="model", summary="the model's region for the question (Chain-of-Spot)")
