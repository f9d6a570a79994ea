"""The region is asked for without a question (CoS Table 3a, "ROI from image"): one box an image, reused for its questions."""

from cos_core.interfaces import Policy


def build() -> Policy:
    return Policy(
        name="from_image", source="model", asks="image", summary="the model's region for the image, no question asked"
    )
