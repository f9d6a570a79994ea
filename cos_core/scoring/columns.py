"""Questions and scores by the million in little memory: columns and packed rows; a record is made on access.

The classes replace lists and dictionaries of records: sequences of `Example` or `Score`, and mappings by id.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from cos_core.errors import InputError
from cos_core.files.jsonl import OnProblem, Problem, encode_line, object_of, raw_lines, report
from cos_core.geometry import Box
from cos_core.types import STEERING_NAMES, Example, Score, steering_of

T = TypeVar("T")
_TEXTS = 1 << 17
"""How many distinct texts a column stores once each; beyond that, only equal neighbours share one."""


class IdColumn:
    """The ids of rows in their order. The dictionary that finds an id's place is made when it is first needed."""

    __slots__ = ("_places", "names")

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._places: dict[str, int] | None = None

    def places(self) -> dict[str, int]:
        """The place of each id; of one that stands twice, the last."""
        if self._places is None:
            self._places = {name: place for place, name in enumerate(self.names)}
        return self._places

    def forget(self) -> None:
        """Frees the dictionary; it is made again when it is needed."""
        self._places = None

    def unique(self) -> bool:
        """Whether no id stands twice."""
        return len(self.places()) == len(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.places()


class Following:
    """Collects ids one by one; ids that equal those of `known`, in its order, take no memory."""

    __slots__ = ("_known", "_names", "count")

    def __init__(self, known: IdColumn | None = None) -> None:
        self._known = known
        self._names: list[str] | None = None if known is not None else []
        self.count = 0

    def add(self, name: str) -> None:
        names, known, count = self._names, self._known, self.count
        self.count += 1
        if names is None and known is not None:
            if count < len(known.names) and known.names[count] == name:
                return
            names = self._names = known.names[:count]
        if names is not None:
            place = known.places().get(name) if known is not None else None
            names.append(name if place is None or known is None else known.names[place])

    def ids(self) -> IdColumn:
        """The ids so far: `known` itself when they are exactly its ids."""
        if self._names is None and self._known is not None:
            return self._known if self.count == len(self._known) else IdColumn(self._known.names[: self.count])
        return IdColumn(self._names or [])


class ById(Mapping[str, T], Generic[T]):
    """Rows by their id; `rows` may create each one on access."""

    __slots__ = ("ids", "rows")

    def __init__(self, ids: IdColumn, rows: Sequence[T]) -> None:
        self.ids = ids
        self.rows = rows

    def __getitem__(self, name: str) -> T:
        return self.rows[self.ids.places()[name]]

    def __contains__(self, name: object) -> bool:
        return name in self.ids

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids.places())

    def __len__(self) -> int:
        return len(self.ids.places())


class Texts:
    """Stores equal texts once."""

    __slots__ = ("_known", "_last")

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._last: dict[str, str] = {}

    def shared(self, text: Any, column: str = "") -> Any:
        """A stored text equal to `text`, else `text` itself; a value that is no text is returned unchanged."""
        if type(text) is not str:
            return text
        earlier = self._known.get(text)
        if earlier is not None:
            return earlier
        if len(self._known) < _TEXTS:
            self._known[text] = text
            return text
        if self._last.get(column) == text:
            return self._last[column]
        self._last[column] = text
        return text


class _Sequence(Sequence[T]):
    """Base of this module's sequences: slices are lists, and equality is that of the records."""

    @abstractmethod
    def _row(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        if isinstance(place, slice):
            return [self._row(number) for number in range(*place.indices(len(self)))]
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(f"there is no row {place}")
        return self._row(number)

    def __iter__(self) -> Iterator[T]:
        return map(self._row, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Packed:
    """Rows of plain values, packed one behind the other; a row comes back as a list.

    A row that cannot be packed (half characters, numbers beyond 64 bits) is stored unpacked.
    """

    __slots__ = ("_data", "_ends", "_pack", "_unpack", "_unpackable")

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("q", [0])
        self._unpackable: dict[int, tuple[Any, ...]] = {}
        self._pack = msgspec.msgpack.Encoder().encode
        self._unpack = msgspec.msgpack.Decoder(list).decode

    def append(self, row: tuple[Any, ...]) -> None:
        try:
            self._data += self._pack(row)
        except (UnicodeEncodeError, OverflowError, TypeError, ValueError):
            self._unpackable[len(self)] = row
        self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> list[Any]:
        if place in self._unpackable:
            return list(self._unpackable[place])
        row: list[Any] = self._unpack(self._data[self._ends[place] : self._ends[place + 1]])
        return row


_Shape = tuple[str, str | None, tuple[str, ...]]
"""The values that many questions share: data set, file, keys of `meta`."""
_FIRST = 6
"""The index of a row's first steering value; those of `meta` follow."""
_META = _FIRST + len(STEERING_NAMES)
_ASKED, _SUFFIX, _GOLD, _TARGETS = (_FIRST + STEERING_NAMES.index(name) for name in ("asked", "suffix", "gold", "targets"))


class Examples(_Sequence[Example]):
    """Questions, packed; the values of `meta` must be plain JSON. `steering`: the fields of types.STEERING that any has."""

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        self._names: list[str] = []
        self._rows = Packed()
        self._layouts: dict[_Shape, int] = {}
        self._shapes: list[_Shape] = []
        self._unused = list(range(len(STEERING_NAMES)))
        self._ids: IdColumn | None = None
        for example in examples:
            self.append(example)

    def append(self, example: Example) -> None:
        shape = (example.dataset, example.file, tuple(example.meta))
        layout = self._layouts.get(shape)
        if layout is None:
            layout = self._layouts[shape] = len(self._shapes)
            self._shapes.append(shape)
        steering = steering_of(example)
        self._unused = [place for place in self._unused if steering[place] is None]
        parts = (layout, example.image, example.question, example.answers, example.choices, example.line)
        self._rows.append((*parts, *steering, *example.meta.values()))
        self._names.append(example.id)
        self._ids = None

    @property
    def ids(self) -> IdColumn:
        if self._ids is None:
            self._ids = IdColumn(self._names)
        return self._ids

    @property
    def steering(self) -> Set[str]:
        return {name for place, name in enumerate(STEERING_NAMES) if place not in self._unused}

    def __len__(self) -> int:
        return len(self._names)

    def _row(self, place: int) -> Example:
        row = self._rows[place]
        dataset, file, keys = self._shapes[row[0]]
        if row[_GOLD] is not None:
            row[_GOLD] = _box(row[_GOLD])
        if row[_TARGETS] is not None:
            row[_TARGETS] = tuple([(x, y) for x, y in row[_TARGETS]])
        meta = dict(zip(keys, row[_META:], strict=True))
        _, image, question, answers, choices, line = row[:_FIRST]
        texts = self._names[place], dataset, image, question, tuple(answers), tuple(choices)
        return Example(*texts, meta, line, file, *row[_FIRST:_META])

    def asked(self) -> Iterator[tuple[str, str | None, str, Sequence[str], str | None]]:
        """(id, image, question, answers, suffix) of each, without the record around it."""
        for place, name in enumerate(self._names):
            row = self._rows[place]
            yield name, row[1], row[2], row[3], row[_SUFFIX]

    def question(self, place: int) -> str:
        """The question at `place`: its `asked`, else its text."""
        row = self._rows[place]
        return str(row[2] if row[_ASKED] is None else row[_ASKED])


def _box(value: Any) -> Box:
    """A box from its packed form (an object of its fields), or the box itself."""
    return value if isinstance(value, Box) else Box(**value)


def ids_of(examples: Sequence[Example]) -> IdColumn:
    """The ids of the questions, in order."""
    return examples.ids if isinstance(examples, Examples) else IdColumn([example.id for example in examples])


ScoreTexts = tuple[str | None, str | None, str | None]
"""A score's texts: extracted, expected, note."""


class Scores(_Sequence[Score]):
    """Scores as columns, equal texts stored once. `known`: ids that the scores are expected to have, in order."""

    def __init__(self, scores: Iterable[Score] = (), known: IdColumn | None = None) -> None:
        self._following = Following(known)
        self._ids: IdColumn | None = None
        self._values = array("d")
        self._odd: dict[int, Any] = {}
        self._texts = Texts()
        self._text_columns: dict[str, list[Any]] = {name: [] for name in ("extracted", "expected", "note")}
        self._put_texts = [column.append for column in self._text_columns.values()]
        self._groups: dict[str, list[Any]] = {}
        self._puts: list[list[tuple[Callable[[Any], None], str | None]]] = []
        self._layouts: dict[tuple[str, ...], int] = {}
        self._keys: list[tuple[str, ...]] = []
        self._layout = array("I")
        for score in scores:
            self.append(score)

    @classmethod
    def of(cls, scores: Sequence[Score], known: IdColumn | None = None) -> Scores:
        """`scores` themselves when they are columns already."""
        return scores if isinstance(scores, cls) else cls(scores, known)

    def append(self, score: Score) -> None:
        self.add(score.example_id, score.value, (score.extracted, score.expected, score.note), score.groups)

    def add(self, example_id: str, value: float, texts: ScoreTexts, groups: Mapping[str, str]) -> None:
        """Appends a score by its parts; `texts`: extracted, expected, note."""
        if type(value) is not float:
            self._odd[len(self._values)] = value
        try:
            self._values.append(value)
        except OverflowError:
            self._values.append(float("inf"))
        shared = self._texts.shared
        for put, text in zip(self._put_texts, texts, strict=True):
            put(text if text is None else shared(text))
        keys = tuple(groups)
        layout = self._layouts.get(keys)
        if layout is None:
            layout = self._new_layout(keys)
        self._layout.append(layout)
        for put, key in self._puts[layout]:
            put(None if key is None else shared(groups[key], key))
        self._following.add(example_id)
        self._ids = None

    def _new_layout(self, keys: tuple[str, ...]) -> int:
        for key in keys:
            if key not in self._groups:
                self._groups[key] = [None] * len(self._layout)
        self._layouts[keys] = len(self._keys)
        self._keys.append(keys)
        # A layout writes into every column: its own values, and None where it has none.
        self._puts = [[(c.append, k if k in layout else None) for k, c in self._groups.items()] for layout in self._keys]
        return self._layouts[keys]

    @property
    def ids(self) -> IdColumn:
        if self._ids is None:
            self._ids = self._following.ids()
        return self._ids

    def by_id(self) -> ById[Score]:
        return ById(self.ids, self)

    def values(self) -> list[float]:
        """Each score's value, an int as an int."""
        result: list[Any] = self._values.tolist()
        for place, value in self._odd.items():
            result[place] = value
        return result

    def value_array(self) -> NDArray[np.float64]:
        return np.array(self._values, dtype=np.float64)

    def text_column(self, name: str) -> list[str | None]:
        """The column `extracted`, `expected` or `note`."""
        return self._text_columns[name]

    def group(self, key: str) -> list[str | None]:
        """Each score's group of the name `key`; None where it has none."""
        return self._groups.get(key) or [None] * len(self)

    def groups_of(self, place: int) -> dict[str, str]:
        return {key: self._groups[key][place] for key in self._keys[self._layout[place]]}

    def value(self, place: int) -> float:
        return self._odd.get(place, self._values[place]) if self._odd else self._values[place]

    def lines(self, start: int, stop: int) -> bytes:
        """The scores from `start` to before `stop` as JSON Lines."""
        columns = (column[start:stop] for column in self._text_columns.values())
        rows = zip(self.ids.names[start:stop], range(start, stop), *columns, strict=True)
        try:
            return _encode_lines([Score(name, self.value(n), x, y, self.groups_of(n), note) for name, n, x, y, note in rows])
        except (UnicodeEncodeError, OverflowError):
            # A lone surrogate in an id or an answer: msgspec does not encode it.
            return b"".join(encode_line(self._row(place).to_json()) for place in range(start, stop))

    def take(self, places: Sequence[int]) -> Scores:
        """The scores at `places`, in that order."""
        if len(places) == len(self) and all(place == number for number, place in enumerate(places)):
            return self
        result = Scores()
        result._ids = IdColumn([self.ids.names[place] for place in places])
        result._following.count = len(places)
        result._values = array("d", map(self._values.__getitem__, places))
        result._odd = {n: self._odd[place] for n, place in enumerate(places) if place in self._odd} if self._odd else {}
        result._text_columns = {name: [column[place] for place in places] for name, column in self._text_columns.items()}
        result._groups = {name: [column[place] for place in places] for name, column in self._groups.items()}
        result._layouts, result._keys = self._layouts, self._keys
        result._layout = array("I", map(self._layout.__getitem__, places))
        return result

    def __len__(self) -> int:
        return len(self._values)

    def _row(self, place: int) -> Score:
        extracted, expected, note = (column[place] for column in self._text_columns.values())
        return Score(self.ids.names[place], self.value(place), extracted, expected, self.groups_of(place), note)


_encode_lines = msgspec.json.Encoder().encode_lines
_quick_score = msgspec.json.Decoder(Score).decode


def read_scores(path: Path, on_problem: OnProblem | None = None, known: IdColumn | None = None) -> Scores:
    """The scores of a file of JSON Lines. `known`: ids that they probably have, in order.

    A line that holds none goes to `on_problem`; without one it raises InputError.
    """
    scores = Scores(known=known)
    for number, _, _, line in raw_lines(path, on_problem):
        try:
            row = _quick_score(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            record = object_of(path, number, line, on_problem)
            if record is None:
                continue
            try:
                scores.append(Score.from_json(record))
            except InputError as error:
                report(Problem(path, number, None, str(error)), on_problem)
        else:
            scores.add(row.example_id, row.value, (row.extracted, row.expected, row.note), row.groups)
    return scores


def reusable(scores: Iterable[Score]) -> Sequence[Score]:
    """The scores as a sequence that can be read more than once: `Scores` itself, others as a list."""
    return scores if isinstance(scores, Scores) else list(scores)


def values(scores: Iterable[Score]) -> list[float]:
    """Each score's value."""
    return scores.values() if isinstance(scores, Scores) else [score.value for score in scores]


def value_array(scores: Iterable[Score]) -> NDArray[np.float64]:
    """`values` as floats: (scores,)."""
    return scores.value_array() if isinstance(scores, Scores) else np.array([score.value for score in scores], dtype=np.float64)


def text_column(scores: Iterable[Score], name: str) -> list[str | None]:
    """Each score's `extracted`, `expected` or `note`, by the field's name."""
    return scores.text_column(name) if isinstance(scores, Scores) else [getattr(score, name) for score in scores]


def group(scores: Iterable[Score], key: str) -> list[str | None]:
    """Each score's group of the name `key`, None where it has none."""
    return scores.group(key) if isinstance(scores, Scores) else [score.groups.get(key) for score in scores]


def names(scores: Iterable[Score]) -> list[str]:
    """Each score's example id."""
    return scores.ids.names if isinstance(scores, Scores) else [score.example_id for score in scores]


def at_places(scores: Sequence[Score], places: Sequence[int]) -> Sequence[Score]:
    """The scores at `places`; `Scores` when `scores` are."""
    if isinstance(scores, Scores):
        return scores.take(places)
    return [scores[place] for place in places]
