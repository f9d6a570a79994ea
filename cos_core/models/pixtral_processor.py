"""The processor of Pixtral and Mistral 3 without torchvision.

The class of this name in transformers (5.23, models/pixtral/processing_pixtral.py) is a placeholder where torchvision is
missing, although nothing but its usual image processor needs torchvision. This one writes the same tokens: for a picture of h
x w patches, h rows of w image tokens, a break token behind each row but the last, and an end token.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import ProcessorMixin


class PixtralProcessor(ProcessorMixin):
    """`patch_size`: side of a patch of the tower in pixels; `spatial_merge_size`: patches of one side that become one token."""

    text_kwargs: ClassVar[dict[str, str]] = {"return_tensors": "pt"}
    images_kwargs: ClassVar[dict[str, str]] = {"return_tensors": "pt"}

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: Any = None,
        image_token: str = "[IMG]",  # noqa: S107  (words of a vocabulary)
        image_break_token: str = "[IMG_BREAK]",  # noqa: S107
        image_end_token: str = "[IMG_END]",  # noqa: S107
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = image_token, image_break_token, image_end_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.image_break_token_id = tokenizer.convert_tokens_to_ids(image_break_token)
        self.image_end_token_id = tokenizer.convert_tokens_to_ids(image_end_token)

    @property
    def image_token_ids(self) -> list[int]:
        """The ids that stand for a picture."""
        return [self.image_token_id, self.image_break_token_id, self.image_end_token_id]

    # ProcessorMixin calls the two methods below; it has no public names for what a family does with its pictures.

    def _process_images(self, images: Any, **kwargs: Any) -> Any:
        return super()._process_images(images, **{**kwargs, "patch_size": self.patch_size * self.spatial_merge_size})

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        """The text that takes the place of a picture's image token; `image_sizes` are (height, width) in pixels as resized."""
        height, width = (
            int(side) // (self.patch_size * self.spatial_merge_size) for side in image_inputs["image_sizes"][image_idx]
        )
        rows = [self.image_token * width] * height
        return self.image_break_token.join(rows) + self.image_end_token

    @property
    def model_input_names(self) -> list[str]:
        """The names of the tensors that the model takes."""
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names, "image_sizes"]
