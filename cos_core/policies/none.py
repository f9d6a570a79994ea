"""No Chain-of-Spot: the plain LLaVA dialogue in one pass (CoS Table 3a, first row)."""

from cos_core.interfaces import Policy


def build() -> Policy:
    return Policy(name="none", source="none", summary="no Chain-of-Spot: one pass over the whole image")
