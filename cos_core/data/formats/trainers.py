"""Training files in the documented layouts of LLaMA-Factory, ms-swift, TRL and verl, all of the dialogues of `dialogues`.

llama-factory  JSON Lines, "sharegpt" with OpenAI's roles: `messages` with `<image>` marks and `images`; and an entry in the
               dataset_info.json beside it (data/README.md of LLaMA-Factory)
ms-swift       JSON Lines, `messages`, `images` and `objects`: `<bbox>` stands for a box, which is given in pixels and written
               as the trained model writes it (Custom-dataset.md of ms-swift)
trl            parquet, `messages` with contents in parts and `images`, which `datasets` decodes (dataset_formats.md of TRL)
verl           parquet, `data_source`, `prompt`, `images`, `ability`, `reward_model`, `extra_info` (prepare_data.rst and
               examples/data_preprocess/geo3k.py of verl)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from cos_core.data.formats.dialogues import Dialogue, Maker, prompt
from cos_core.data.formats.parquet_files import Rows
from cos_core.errors import InputError
from cos_core.files.durable import atomic_write
from cos_core.files.jsonl import decode, encode_line
from cos_core.system.arrow import pyarrow

DATASET_INFO = "dataset_info.json"


def write(file: BinaryIO, dialogues: Iterable[Dialogue], maker: Maker) -> int:
    """The whole file, a row a dialogue, as they come; returns their number."""
    if maker.format in ("trl", "verl"):
        return _write_rows(file, dialogues, maker)
    record: Callable[[Dialogue, Maker], dict[str, Any]] = _swift if maker.format == "ms-swift" else _llama_factory
    count = 0
    for each in dialogues:
        file.write(encode_line(record(each, maker)))
        count += 1
    return count


def _llama_factory(each: Dialogue, maker: Maker) -> dict[str, Any]:
    return {"id": each.example.id, "messages": maker.flat(each.turns), "images": list(each.pictures)}


def _swift(each: Dialogue, maker: Maker) -> dict[str, Any]:
    objects = {"ref": [], "bbox": [each.pixels], "bbox_type": "real", "image_id": [0]}
    return {**_llama_factory(each, maker), "objects": objects}


def info_entry(out: Path) -> dict[str, Any]:
    """The description of the file `out` for LLaMA-Factory's dataset_info.json."""
    return {
        "file_name": out.name,
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    }


def read_info(out: Path) -> dict[str, Any]:
    """The dataset_info.json beside `out`, empty where there is none. Raises InputError for one that cannot be added to."""
    path = out.parent / DATASET_INFO
    try:
        known = decode(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read, so nothing is added to it: {error}") from None
    if not isinstance(known, dict):
        raise InputError(f"{path} is no JSON object, so nothing is added to it")
    return known


def add_info(out: Path) -> None:
    """Adds the entry of `out`, named after it, to the dataset_info.json beside it; other entries stay."""
    known = {**read_info(out), out.stem: info_entry(out)}
    atomic_write(out.parent / DATASET_INFO, json.dumps(known, indent=2, ensure_ascii=False) + "\n")


def _write_rows(file: BinaryIO, dialogues: Iterable[Dialogue], maker: Maker) -> int:
    schema, record = (_trl_schema(), _trl) if maker.format == "trl" else (_verl_schema(), _verl)
    with Rows(file, schema) as rows:
        for each in dialogues:
            rows.add(record(each, maker, rows.count))
    return rows.count


def _trl(each: Dialogue, maker: Maker, _place: int) -> dict[str, Any]:
    images = [{"bytes": None, "path": path} for path in each.pictures]
    return {"id": each.example.id, "messages": maker.messages(each.turns), "images": images}


def _trl_schema() -> Any:
    """Pictures are files that `datasets` opens: the metadata `huggingface` says that `images` are pictures.

    The other columns it takes from the Arrow types (`Features.from_arrow_schema`).
    """
    arrow = pyarrow()
    text = arrow.string()
    part, image = arrow.struct([("type", text), ("text", text)]), arrow.struct([("bytes", arrow.binary()), ("path", text)])
    message = arrow.struct([("role", text), ("content", arrow.list_(part))])
    features = {"images": {"feature": {"_type": "Image"}, "_type": "Sequence"}}
    columns = [("id", text), ("messages", arrow.list_(message)), ("images", arrow.list_(image))]
    return arrow.schema(columns, {b"huggingface": json.dumps({"info": {"features": features}}).encode()})


def _verl(each: Dialogue, maker: Maker, place: int) -> dict[str, Any]:
    example = each.example
    return {
        "data_source": example.dataset,
        "prompt": maker.flat(prompt(each.turns)),
        "images": [{"image": path} for path in each.pictures],
        "ability": "visual-question-answering",
        "reward_model": {"style": "rule", "ground_truth": each.answer},
        "extra_info": {
            "split": str(example.meta.get("split", "train")),
            "index": place,
            "id": example.id,
            "question": example.question,
            "answer": each.answer,
            "answers": list(example.answers),
            "box": list(each.box.corners),
        },
    }


def _verl_schema() -> Any:
    arrow = pyarrow()
    text = arrow.string()
    extra = [(name, text) for name in ("split", "id", "question", "answer")]
    extra += [("index", arrow.int64()), ("answers", arrow.list_(text)), ("box", arrow.list_(arrow.float64()))]
    return arrow.schema(
        [
            ("data_source", text),
            ("prompt", arrow.list_(arrow.struct([("role", text), ("content", text)]))),
            ("images", arrow.list_(arrow.struct([("image", text)]))),
            ("ability", text),
            ("reward_model", arrow.struct([("style", text), ("ground_truth", text)])),
            ("extra_info", arrow.struct(extra)),
        ]
    )
