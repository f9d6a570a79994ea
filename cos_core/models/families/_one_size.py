"""What the families share that show every picture in one size, whatever its shape."""

from __future__ import annotations

from typing import Any

from cos_core.models.families import Family


class OneSize(Family):
    """A picture is resized to the image processor's `size`, its shape not kept."""

    def resized(self, image_processor: Any, width: int, height: int) -> tuple[int, int]:
        return int(image_processor.size["width"]), int(image_processor.size["height"])

    def resized_once(self, image_processor: Any) -> bool:
        # Gemma 3 can be told to show parts of a picture, too.
        return bool(image_processor.do_resize) and not getattr(image_processor, "do_pan_and_scan", None)
