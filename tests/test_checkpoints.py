"""What a checkpoint's files say of it: read without loading the model, equal to what the loaded model says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from cos_core.errors import InputError
from cos_core.files import assets
from cos_core.models import checkpoint_info, pixels

CLIP = (122, 116, 104)


def folder_with(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("files", "colour"),
    [
        ({"preprocessor_config": {"image_mean": [0.5, 0.25, 1.0]}}, (127, 63, 255)),
        ({"processor_config": {"image_processor": {"image_mean": [0.5, 0.25, 0.0]}}}, (127, 63, 0)),
        # The nested settings come first; a processor file without them leaves the word to the other file.
        (
            {
                "processor_config": {"image_processor": {"image_mean": [0.1, 0.1, 0.1]}},
                "preprocessor_config": {"image_mean": [0.9, 0.9, 0.9]},
            },
            (25, 25, 25),
        ),
        ({"processor_config": {"patch_size": 14}, "preprocessor_config": {"image_mean": [0.9, 0.9, 0.9]}}, (229, 229, 229)),
        ({"preprocessor_config": {"do_resize": True}}, CLIP),
    ],
)
def test_the_padding_colour_is_what_the_loaded_processor_gives(tmp_path: Path, files: dict, colour: tuple[int, int, int]):
    for settings in files.values():
        (settings.get("image_processor", settings) if "patch_size" not in settings else {})["image_processor_type"] = (
            "CLIPImageProcessor"
        )
    folder = folder_with(tmp_path / "m", config={"model_type": "llava"}, **files)
    assert checkpoint_info.fill_of(folder) == colour
    assert pixels.padding_colour(transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")) == colour


def test_the_miniature_pads_with_its_own_grey():
    assert checkpoint_info.fill_of(assets.miniature_checkpoint()) == (140, 140, 140)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"processor_config": {"patch_size": 14}},
        {"preprocessor_config": "not json"},
        {"preprocessor_config": [1, 2]},
        {"preprocessor_config": {"image_mean": 0.5}},
        {"preprocessor_config": {"image_mean": [0.5, 0.5]}},
        {"preprocessor_config": {"image_mean": [0.5, 0.5, "grey"]}},
        {"preprocessor_config": {"image_mean": [0.5, 0.5, True]}},
        {"preprocessor_config": {"image_mean": [124, 116, 104]}},
        {"preprocessor_config": '{"image_mean": [0.5, 0.5, NaN]}'},
    ],
)
def test_a_folder_that_names_no_usable_colour_is_refused(tmp_path: Path, files: dict):
    folder = folder_with(tmp_path / "m", **files)
    with pytest.raises(InputError, match=str(folder)):
        checkpoint_info.fill_of(folder)


def test_the_padding_colour_needs_no_torch():
    code = (
        "import sys; from cos_core.models.checkpoint_info import fill_of;"
        "from cos_core.files.assets import miniature_checkpoint as m;"
        "fill_of(m()); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=7200)
