"""One record of a data file as Examples.

Layouts are told apart record by record: LLaVA conversations (`{id?, image?, conversations: [{from, value}]}`), LLaVA question
files (`{question_id, image?, text, category?}`), records of messages (`{images?, messages: [{role,
content}]}`), and one question a record: our own Examples (`Example.to_json`) and flat
records (`{image?, question, answer or answers?}`). A picture is named by `image` or by a similar key (IMAGE_KEYS). A record
without an id gets one by its content, which is the same in every file and order. Knows nothing of files; datasets.py reads
those.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.files.jsonl import OnProblem, Problem, decode_finite, report
from cos_core.files.text import one_line
from cos_core.types import Example, split_meta

IMAGE_MARK = "<image>"
IMAGE_KEYS = (
    "image",
    "images",
    "image_path",
    "image_paths",
    "image_file",
    "image_files",
    "image_name",
    "img",
    "imgs",
    "img_path",
    "img_file",
    "picture",
)
"""Keys that name a picture, in any case, with "-" or nothing in the place of "_"; a list has one entry."""
_BARE_KEYS = frozenset(key.replace("_", "") for key in IMAGE_KEYS)
_LAYOUT_KEYS = ("conversations", "messages", "question_id", "question", "text", "id")
_ELSEWHERE = {"query": "question", "prompt": "question", "instruction": "question", "q": "question"}
"""Keys of other tools, and the key here."""
_CONTENT = ("question", "answer", "answers", "choices", "conversations", "messages")
"""What a record without an id is named by."""
_LONGEST_PATH = 4096
_LONGEST_LITERAL = 2**16
_SPEAKERS = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}


@dataclass(slots=True)
class RecordSource:
    """Where a record came from, and the callback for its problems. `index`: its row in the whole data set; `file`: its path.

    `example_id`: the id that its problems are reported under, once it is known.
    """

    path: Path
    line: int
    index: int
    on_problem: OnProblem | None
    file: str
    example_id: str | None = None

    def problem(self, reason: str) -> None:
        report(Problem(self.path, self.line, self.example_id, reason), self.on_problem)


@dataclass(slots=True)
class IdRegistry:
    """The ids so far, and a digest of each record: equal content is a repeat, other content with the same id is renamed.

    `renamed`: whether the last record got an ending to its id.
    """

    seen: set[str] = field(default_factory=set)
    digests: set[bytes] = field(default_factory=set)
    renamed: bool = False

    def unique(self, name: str, record: Mapping[str, Any]) -> str | None:
        """`name`, or `name~digest` when other content has it already; None when this very record was there before."""
        digest = _digest(record)
        if digest in self.digests:
            return None
        self.digests.add(digest)
        self.renamed = name in self.seen
        if self.renamed:
            name = _renamed(name, digest)
        self.seen.add(name)
        return name


@dataclass(frozen=True, slots=True)
class Known:
    """The id of one record that was read before."""

    renamed: bool

    def unique(self, name: str, record: Mapping[str, Any]) -> str | None:
        return _renamed(name, _digest(record)) if self.renamed else name


def _digest(record: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).digest()[:16]


def _renamed(name: str, digest: bytes) -> str:
    return f"{name}~{digest.hex()[:8]}"


def examples_of(record: dict[str, Any], source: RecordSource, ids: IdRegistry | Known) -> list[Example]:
    """The examples of a record; what cannot be used goes to the source's `on_problem`."""
    try:
        kind = check_kind(record)
        name = _name(record, *kind.ids)
        source.example_id = name
        unique = ids.unique(name, record)
        if unique is None:
            raise InputError("the same sample was there before; dropped")
        return kind.parse(record, unique, source)
    except InputError as error:
        source.problem(str(error))
        return []


@dataclass(frozen=True, slots=True)
class RecordKind:
    """A layout of a record: `keys` tell it, `ids` name it where they are there."""

    name: str
    keys: tuple[str, ...]
    ids: tuple[str, ...]
    parse: Callable[[dict[str, Any], str, RecordSource], list[Example]]


def kind_of(record: Mapping[str, Any]) -> RecordKind | None:
    """The layout of a record; None for one that is none of them."""
    return next((kind for kind in KINDS if all(key in record for key in kind.keys)), None)


def check_kind(record: Mapping[str, Any]) -> RecordKind:
    """`kind_of`; raises InputError for none, with the key that was probably meant."""
    kind = kind_of(record)
    if kind is None:
        layouts = "neither a conversation, nor a question (question_id, text), nor an example (question, image, answer)"
        raise InputError(layouts + _suggestion(record, _LAYOUT_KEYS))
    return kind


def _messages(record: dict[str, Any], name: str, source: RecordSource) -> list[Example]:
    """A record of `messages` as a conversation; a system message at its beginning is left out, as the profile words that."""
    messages = _decoded(record["messages"], "messages")
    if not isinstance(messages, list):
        raise InputError("`messages` must be a list of turns")
    pictures: list[object] = []
    turns = [_turn(each, pictures) for each in messages]
    if turns and isinstance(turns[0], dict) and turns[0].get("from") == "system":
        del turns[0]
    rest = {key: value for key, value in record.items() if key != "messages"}
    if pictures:
        rest["image"] = [*([rest["image"]] if "image" in rest else []), *pictures]
    return _conversation({**rest, "conversations": turns}, name, source)


def _turn(message: object, pictures: list[object]) -> object:
    """A message as a turn of LLaVA's; of content in parts the texts, a mark for a picture, and its name in `pictures`."""
    if not isinstance(message, dict):
        return message
    role, content = (message.get(ours, message.get(theirs)) for ours, theirs in (("role", "from"), ("content", "value")))
    if isinstance(content, list):
        content = "\n".join(_part(each, pictures) for each in content)
    return {"from": role, "value": content}


def _part(part: object, pictures: list[object]) -> str:
    """One part of a message's content. Raises InputError for one that is neither text nor picture."""
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(part, dict) and kind in ("image", "image_url"):
        named = [part[key] for key in ("image", "image_url", "url", "path") if part.get(key) is not None]
        pictures += [each["url"] if isinstance(each, dict) and "url" in each else each for each in named]
        return IMAGE_MARK
    raise InputError(f"a part of a message is {one_line(str(kind), 20)!r}, which is neither text nor image")


def _conversation(record: dict[str, Any], name: str, source: RecordSource) -> list[Example]:
    turns = _decoded(record["conversations"], "conversations")
    _check_turns(turns)
    pairs = len(turns) // 2
    metas = _metas(record.get("meta"), pairs, len(turns) % 2)
    image = _image(record, turns[::2])
    dataset = _dataset(record, source)
    if len(turns) % 2:
        source.problem(f"an odd number of turns ({len(turns)}): the last question has no answer and is left out")
    renamed = record["id"] if record.get("id") is not None and str(record["id"]) != name else None
    examples = []
    for k, (steering, slices) in enumerate(metas):
        try:
            question = _text(turns[2 * k]["value"], f"turn {2 * k}")
            answer = _unmarked(turns[2 * k + 1]["value"], f"turn {2 * k + 1}")
        except InputError as error:
            source.problem(f"{error}; this question is left out")
            continue
        place = {"sample": name, "turn": k, "index": source.index, "record_id": renamed, **steering}
        example_id = f"{name}#q{k}"
        examples.append(Example(example_id, dataset, image, question, (answer,), (), slices, source.line, source.file, **place))
    return examples


def _check_turns(turns: object) -> None:
    """Raises InputError unless there are turns that alternate from human to gpt."""
    if not isinstance(turns, list) or not turns:
        raise InputError("`conversations` must be a list of turns")
    for place, turn in enumerate(turns):
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            keys = ", ".join(f"`{one_line(key, 20)}`" for key in list(turn)[:4]) if isinstance(turn, dict) else ""
            raise InputError(f"turn {place} lacks `from` or `value`" + (f"; it has {keys}" if keys else ""))
        if _SPEAKERS.get(str(turn["from"])) != place % 2:
            expected = ("human", "gpt")[place % 2]
            raise InputError(f"turn {place} is from {str(turn['from'])[:40]!r}, expected {expected!r}")


def _question(record: dict[str, Any], name: str, source: RecordSource) -> list[Example]:
    meta = {"category": record["category"]} if "category" in record else {}
    image = _image(record, ({"value": record["text"]},))
    question = _text(record["text"], "`text`")
    place = {"sample": name, "question_id": record["question_id"], "index": source.index}
    return [Example(name, _dataset(record, source), image, question, (), (), meta, source.line, source.file, **place)]


def _example(record: dict[str, Any], name: str, source: RecordSource) -> list[Example]:
    choices = _texts(record.get("choices"), "choices")
    answers = _answers(record, choices)
    ((steering, slices),) = _metas([{} if (meta := _decoded(record.get("meta"), "meta")) is None else meta], 1)
    if "id" not in record and "question_id" in record:
        steering = {"question_id": record["question_id"], **steering}
    image = _image(record, ({"value": record["question"]},))
    question = _text(record["question"], "`question`")
    dataset = _dataset(record, source)
    return [Example(name, dataset, image, question, answers, choices, slices, source.line, source.file, **steering)]


def _name(record: Mapping[str, Any], *keys: str) -> str:
    """The id under the first of `keys` that the record has, else one by its content.

    Raises InputError for an id that is none, and for a key that differs from one of `keys` in capitals only.
    """
    key = next((key for key in keys if key in record), None)
    if key is None:
        if capitals := next((each for each in record if each.lower() in keys), None):
            raise InputError(f"the sample lacks `{keys[0]}`; `{one_line(capitals)}`: did you mean `{capitals.lower()}`?")
        return f"by-content-{_digest(_content(record)).hex()[:16]}"
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(f"`{key}` must be a text or a whole number")
    _check_unicode(str(value), f"`{key}`")
    return str(value)


def _content(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record asks and answers: the keys that other columns of a table, such as a row number, do not change."""
    return {name: record[name] for name in (*_CONTENT, *picture_keys(tuple(record))) if record.get(name) is not None}


def _dataset(record: Mapping[str, Any], source: RecordSource) -> str:
    value = record.get("dataset")
    return value if isinstance(value, str) and value else source.path.stem


def _image(record: Mapping[str, Any], questions: Sequence[Mapping[str, Any]]) -> str | None:
    """The record's picture; None when it names none. `questions`: turns, each with its `value`.

    Raises InputError for several, for a key that names none though it stands there with a text, and for none where a question
    has the mark of one: such a sample is no text-only one.
    """
    keys = picture_keys(tuple(record))
    image = record.get("image")
    if keys == ("image",) and type(image) is str and image and not image.isspace():
        # The usual record, in a file of millions.
        return _checked(image)
    paths = list(dict.fromkeys(path for key in keys for path in _paths(record[key], key)))
    if len(paths) > 1:
        raise InputError(f"the record names {len(paths)} pictures ({', '.join(map(one_line, paths[:3]))}); a sample has one")
    if paths:
        return _checked(paths[0])
    if any(isinstance(turn["value"], str) and IMAGE_MARK in turn["value"] for turn in questions):
        hint = f"; `{one_line(keys[0], 20)}` is {_empty(record[keys[0]])}" if keys else _suggestion(record, IMAGE_KEYS)
        raise InputError(f"the text says {IMAGE_MARK}, but the record names no picture (`image`){hint}")
    empty = next((key for key in keys if isinstance(record[key], str)), None)
    if empty is not None:
        raise InputError(f"`{empty}` must be one path, and is empty")
    return None


@lru_cache(256)
def picture_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a record's keys that name a picture; most records of a file have the same keys."""
    return tuple(key for key in keys if key.lower().replace("-", "").replace("_", "") in _BARE_KEYS)


def _checked(path: str) -> str:
    """A picture's name. Raises InputError for text that names none."""
    if len(path) > _LONGEST_PATH:
        raise InputError(f"the picture's name has {len(path):,} characters (pictures inside the data are not read: save them)")
    _check_unicode(path, "the picture's name")
    return path


def _paths(value: object, key: str) -> list[str]:
    """The paths that a value names; a picture as the library `datasets` writes it is `{"path": ..., "bytes": null}`."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, list):
        return [path for part in value if not isinstance(part, list) or _refuse(key) for path in _paths(part, key)]
    if isinstance(value, dict) and isinstance(value.get("path"), str) and not value.get("bytes"):
        return _paths(value["path"], key)
    return _refuse(key, value)


def _refuse(key: str, value: object = ()) -> list[str]:
    inside = " (pictures inside the data are not read: save them as files)" if isinstance(value, dict) else ""
    raise InputError(f"`{one_line(key, 20)}` must be one path{inside}")


def _empty(value: object) -> str:
    return "null" if value is None else "empty"


def _suggestion(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """The end of a message about a missing key: the record's key that is closest to one of `names`; "" without any."""
    for key in record:
        if "question" in names and (ours := _ELSEWHERE.get(key.lower())) is not None:
            return f"; if `{key}` is the {ours}: --columns {ours}={key}"
        close = difflib.get_close_matches(key.lower(), names, 1, 0.75) if len(key) < 40 and key not in names else []
        if close:
            return f"; `{one_line(key)}`: did you mean `{close[0]}`?"
    return ""


def _text(value: object, where: str) -> str:
    """The text of a turn without image marks. Raises InputError when it is no text or nothing is left of it."""
    if not isinstance(value, str):
        raise InputError(f"{where} is not a text")
    _check_unicode(value, where)
    if IMAGE_MARK in value:
        # Again and again: taking one mark out can join the pieces of another.
        while IMAGE_MARK in value:
            value = value.replace(IMAGE_MARK, "")
        value = value.strip()
    if not value.strip():
        raise InputError(f"{where} is empty")
    return value


def _unmarked(value: object, where: str) -> str:
    """The text of an answer, which has no image mark: the model would read a picture there. Raises InputError."""
    if isinstance(value, str) and IMAGE_MARK in value:
        raise InputError(f"{where}, an answer, says {IMAGE_MARK}, which only a question can")
    return _text(value, where)


def _answers(record: Mapping[str, Any], choices: tuple[str, ...]) -> tuple[str, ...]:
    """The texts of `answers`, else of `answer`. Raises InputError for a number where there are choices: it may be a place."""
    key = "answers" if record.get("answers") is not None else "answer"
    answers = _texts(record.get(key), key)
    if choices and isinstance(record.get(key), int) and answers[0] not in choices:
        raise InputError(f"`{key}` is the number {answers[0]} beside `choices`: give the text of the choice")
    return answers


def _texts(value: object, key: str) -> tuple[str, ...]:
    """The texts of one value or of a list; an answer may be `{"answer": text}`, as in VQA's files."""
    value = _decoded(value, key) if key != "answer" else value
    values = () if value is None else value if isinstance(value, list | tuple) else (value,)
    texts = (each.get("answer") if isinstance(each, Mapping) else each for each in values)
    return tuple(_unmarked(_number_text(each), f"`{key}`") for each in texts)


def _number_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _decoded(value: object, key: str) -> Any:
    """The list or object that a cell of a table holds as JSON, or as Python writes it; any other value as it is."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        return decode_finite(value.encode())
    except ValueError:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return ast.literal_eval(value) if len(value) <= _LONGEST_LITERAL else value
        raise InputError(f"`{key}` begins as a list or an object and is none") from None


def _metas(metas: object, count: int, unanswered: int = 0) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The steering fields and the slices of each question (types.split_meta); no `meta` at all gives empty ones.

    It may have more objects for `unanswered` questions.
    """
    if metas is None:
        return [({}, {}) for _ in range(count)]
    if isinstance(metas, list) and len(metas) == count + unanswered:
        metas = metas[:count]
    if not isinstance(metas, list) or len(metas) != count:
        raise InputError(f"`meta` must be a list with one object a question ({count})")
    for meta in metas:
        if not isinstance(meta, dict):
            raise InputError("`meta` must hold objects")
        _check_values(meta)
    return [split_meta(meta) for meta in metas]


def _check_values(value: object) -> None:
    """Raises InputError for what of `meta` no JSON file could keep: NaN, an infinite number."""
    if isinstance(value, dict):
        for part in value.values():
            _check_values(part)
    elif isinstance(value, list):
        for part in value:
            _check_values(part)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"`meta` holds {value}, which is no number of JSON")


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half a Unicode character (a lone surrogate)") from None


KINDS = (
    RecordKind("LLaVA conversations", ("conversations",), ("id",), _conversation),
    RecordKind("messages", ("messages",), ("id",), _messages),
    RecordKind("LLaVA questions", ("question_id", "text"), ("question_id",), _question),
    RecordKind("one question a record", ("question",), ("id", "question_id"), _example),
)
"""The first that fits a record holds."""
