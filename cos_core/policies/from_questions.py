"""The region is asked for with all questions of the image (CoS Table 3a, "ROI from questions"): one box an image."""

from cos_core.interfaces import Policy


def build() -> Policy:
    return Policy(
        name="from_questions", source="model", asks="all", summary="the model's region for all questions of the image"
    )
