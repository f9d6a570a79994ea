"""A checkpoint's processor: chat template, tokenizer and image processor in one object of `transformers`, with Pillow alone.

`AutoProcessor` is not asked. Where torchvision is installed it takes torchvision's image processors, so that answers would
depend on what else is there (pixels differ by 1 to 2 grey levels). Where torchvision is missing it refuses every processor
that can also read videos, because transformers has video processors for torchvision only. The same classes are built here
from the same files, with nothing in the place of the video part. Folders that the full processors had saved were loaded so:
ids, masks and grids were equal, and pixels were bit-equal to those of Pillow's image processors there. No code of a
checkpoint is run, nothing is fetched.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from cos_core.errors import InputError
from cos_core.files.jsonl import kind_of
from cos_core.files.text import one_line
from cos_core.models import checkpoint_files, pretrained

NAMED_IN = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""The files that name the processor's class, in the order in which `AutoProcessor` asks them."""
TEMPLATES = ("chat_template.jinja", "chat_template.json")
AUDIO = "audio_tokenizer_config.json"
"""A file by which transformers would load a model of that name from elsewhere."""


def processor(where: str | Path) -> Any:
    """The processor of a checkpoint's folder (a `transformers.ProcessorMixin`), for text and pictures.

    Raises InputError where the folder's files cannot be read, where the processor is none of this version of transformers or
    takes no pictures, and where its image processor exists for torchvision only or does not work with Pillow.
    """
    import transformers

    folder = Path(where)
    cls = pictures_only(processor_class(folder))
    fields = cls.get_attributes()
    if "image_processor" not in fields or "tokenizer" not in fields:
        raise InputError(
            f"cannot use the checkpoint {folder}: its {cls.__name__} is not for text and pictures; name a vision-language model"
        )
    if "audio_tokenizer" in (checkpoint_files.settings(folder, NAMED_IN[0]) or {}) or (folder / AUDIO).exists():
        raise InputError(
            f"cannot use the checkpoint {folder}: its processor brings a model for sound, which cos does not load; name one "
            "for text and pictures"
        )
    for name in TEMPLATES:
        checkpoint_files.regular(folder, name, checkpoint_files.PLAIN_LIMITS[name])
    parts = [_part(folder, cls, field) for field in fields]
    with pretrained.reading(folder), _without_needless_packages(cls):
        options, _ = transformers.ProcessorMixin.get_processor_dict(str(folder), local_files_only=True)
        result = cls.from_args_and_dict(parts, options)
        _try(folder, result)
    if not isinstance(result.chat_template, str | dict | None):
        raise InputError(
            f"cannot use the checkpoint {folder}: its chat template is {kind_of(result.chat_template)} and no text"
        )
    return result


def processor_class(folder: Path) -> Any:
    """The class of a folder's processor, by the name in its files, else by its model type. Raises InputError."""
    import transformers

    for file in NAMED_IN:
        name = (checkpoint_files.settings(folder, file) or {}).get("processor_class")
        if isinstance(name, str) and name:
            break
    else:
        config = pretrained.any_configuration(folder)
        if type(config) not in transformers.PROCESSOR_MAPPING:
            raise InputError(
                f"cannot use the checkpoint {folder}: its files name no processor, and transformers {transformers.__version__} "
                f"has none for the model type {one_line(config.model_type)}; save the processor's files beside the weights"
            )
        name = transformers.PROCESSOR_MAPPING[type(config)].__name__
    if name == "PixtralProcessor":
        from cos_core.models.pixtral_processor import PixtralProcessor

        return PixtralProcessor
    cls = getattr(transformers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.ProcessorMixin)):
        raise InputError(
            f"cannot use the checkpoint {folder}: its processor {one_line(name)} is not one of transformers "
            f"{transformers.__version__}, and cos runs no code of a checkpoint; a later transformers may have it"
        )
    return cls


class NoVideo:
    """Stands where a processor has its video processor. Each of its settings is None: processors copy some of them."""

    model_input_names: tuple[str, ...] = ()
    _auto_class = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


@functools.cache
def pictures_only(cls: Any) -> Any:
    """A processor class that takes a NoVideo for its `video_processor`; a class without one as it is."""
    if "video_processor" not in cls.get_attributes():
        return cls

    class PicturesOnly(cls):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if isinstance(argument, NoVideo):
                return NoVideo
            return super().check_argument_for_proper_class(argument_name, argument)

        def to_dict(self) -> dict[str, Any]:
            return {name: value for name, value in super().to_dict().items() if not isinstance(value, NoVideo)}

    PicturesOnly.__name__, PicturesOnly.__qualname__, PicturesOnly.__module__ = cls.__name__, cls.__qualname__, cls.__module__
    return PicturesOnly


def _part(folder: Path, cls: Any, field: str) -> Any:
    """What the processor class gets for one of its parts, read from the folder. Raises InputError."""
    import transformers

    if field == "image_processor":
        return settled(cls, image_processor(folder))
    if field == "video_processor":
        return NoVideo()
    if "tokenizer" in field:
        # A second one, as InstructBLIP's for its Q-Former, lies in a folder of its name.
        own = folder / field
        at = str(own if field != "tokenizer" and own.is_dir() else folder)
        if cls.__name__ != "PixtralProcessor":
            return pretrained.tokenizer(at)
        # As transformers does: tokenizer_config.json of published ones names LlamaTokenizer, and tokenizer.json is another.
        with pretrained.reading(folder):
            return transformers.PreTrainedTokenizerFast.from_pretrained(at, local_files_only=True, trust_remote_code=False)
    if field == "feature_extractor":
        with pretrained.reading(folder):
            return transformers.AutoFeatureExtractor.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    raise InputError(f"cannot use the checkpoint {folder}: its {cls.__name__} needs a {field}, which cos does not know")


def image_processor(folder: Path) -> Any:
    """The folder's image processor, which works with Pillow. Raises InputError, also where it is torchvision's only."""
    import transformers
    from transformers.image_processing_backends import TorchvisionBackend

    config = checkpoint_files.settings(folder, "processor_config.json") or {}
    image = config.get("image_processor") or checkpoint_files.settings(folder, "preprocessor_config.json") or {}
    if not image:
        raise InputError(
            f"{folder} does not say how pictures are prepared: it has neither of {' and '.join(NAMED_IN[:2])} with settings of "
            "an image processor; save its processor beside the weights"
        )
    named = image.get("image_processor_type") if isinstance(image, dict) else None
    name = named.removesuffix("Fast") if isinstance(named, str) else "its image processor"
    only_torchvision = InputError(
        f"cannot use the checkpoint {folder}: transformers {transformers.__version__} has {one_line(name)} for torchvision "
        "only; cos reads pictures with Pillow, so that answers do not depend on what is installed; take a model of another "
        "family"
    )
    # Where torchvision is missing, such a class is a placeholder. (A class with a Pillow form is not looked up: that warns.)
    if not hasattr(transformers, f"{name}Pil") and getattr(getattr(transformers, name, None), "is_dummy", False):
        raise only_torchvision
    result = pretrained.image_processor(str(folder))
    if isinstance(result, TorchvisionBackend):
        raise only_torchvision
    return result


def settled(cls: Any, image_processor: Any) -> Any:
    """An image processor with what its processor's class sets at each call whatever the files say: InternVL's cuts tiles.

    Whoever asks the settings how a picture is shown then hears what is done.
    """
    for name, value in getattr(cls, "images_kwargs", {}).items():
        if name in image_processor.to_dict():
            setattr(image_processor, name, value)
    return image_processor


def published(settings: Mapping[str, Any]) -> Any:
    """An image processor of Family.published, for a checkpoint whose files are not here."""
    import transformers

    options = dict(settings)
    return getattr(transformers, options.pop("image_processor_type"))(**options)


def chat_template(folder: Path) -> str | None:
    """The text of a folder's chat template; None where it has none. Raises InputError for a file that cannot be read."""
    import transformers

    with pretrained.reading(folder):
        settings, _ = transformers.ProcessorMixin.get_processor_dict(str(folder), local_files_only=True)
    of_tokenizer = checkpoint_files.settings(folder, "tokenizer_config.json") or {}
    named = settings.get("chat_template") or of_tokenizer.get("chat_template")
    if isinstance(named, list):  # older files list several
        named = {each.get("name"): each.get("template") for each in named if isinstance(each, dict)}
    text = named.get("default") if isinstance(named, dict) else named
    return text if isinstance(text, str) else None


@contextmanager
def _without_needless_packages(cls: Any) -> Iterator[None]:
    """Inside the block, SmolVLM's processor can be made without num2words.

    It spells how many frames a video has with that package and refuses to be made without it, although pictures need no such
    words. Nothing public leaves the package out: the name in its module is set to what passes for "it is installed".
    """
    module = importlib.import_module(cls.__module__)
    if getattr(module, "num2words", str) is not None:
        yield
        return
    with mock.patch.object(module, "num2words", str):
        yield


def _try(folder: Path, made: Any) -> None:
    """Raises InputError for a processor that breaks over a picture, as Fuyu's does with Pillow in transformers 5.23.

    One with a chat template is tried with dialogues by those who ask the model. What the class says itself about this picture
    and this text (a ValueError) is no defect.
    """
    import transformers
    from PIL import Image

    if made.chat_template is not None:
        return
    try:
        made(images=[Image.new("RGB", (64, 48), (90, 120, 30))], text=["a"], return_tensors="pt")
    except (TypeError, AttributeError) as error:
        raise InputError(
            f"cannot use the checkpoint {folder}: its {type(made).__name__} does not work with Pillow in transformers "
            f"{transformers.__version__} ({pretrained.quoted(error)}); take a model of another family"
        ) from error
    except ValueError:
        return
