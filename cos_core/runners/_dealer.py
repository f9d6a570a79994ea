"""Portions to several workers and their results back in order, whoever dies meanwhile.

At most QUEUE portions lie with a worker and AHEAD a worker are read before the first unfinished one is done, so memory is
bounded by both. A worker that dies is started again and its portions are done again. A portion under which DEATHS workers
died is cut in halves, down to single examples; one that still kills is given up and recorded (Job.lost).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Protocol

import cos_core
from cos_core.errors import CosError, InputError
from cos_core.interfaces import Job, Reporter

QUEUE = 2
AHEAD = 4
DEATHS = 2
STARTS = 3
"""Times that a worker may die before it is ready."""
GIVEN_UP = 3
"""Examples that may be given up before any portion is finished: then it is not the examples."""

_HERE = "of this machine"
DECIDING = ("torch", "transformers", "tokenizers", "numpy", "pillow")
"""Packages whose versions may change a result."""


def versions() -> Mapping[str, str]:
    """Of cos and of the packages that may change a result, as far as they are installed: part of what a worker is."""
    found = {"cos": cos_core.__version__}
    for name in DECIDING:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has started; `about`: what it is (Worker.about); `where`: its node, "" on this machine."""

    about: Mapping[str, Any]
    where: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """The results of the oldest portion that lies with a worker."""

    results: list[Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker raised an error that is the user's to mend; one that could not start says its `versions` too."""

    error: CosError
    where: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Died:
    """A worker is gone, with all that lay with it."""

    why: str


Said = Ready | Done | Refused | Died


class Team(Protocol):
    """Workers by number, from 0, wherever they live."""

    size: int

    def begin(self, place: int) -> None:
        """Starts the worker of this place, also again after it died; it will say Ready, Refused or Died."""

    def send(self, place: int, portion: Any) -> None:
        """Gives a portion to a worker that is ready; it will say Done, Refused or Died."""

    def listen(self) -> Sequence[tuple[int, Said]]:
        """What was said, (place, what); waits until there is something."""

    def close(self) -> None:
        """Ends all workers; `begin` may follow."""


@dataclass(slots=True, eq=False)
class _Piece:
    """A portion, or a part of one that was cut; `slot` holds the pieces of one portion in order."""

    portion: Any
    slot: list[_Piece]
    deaths: int = 0
    results: list[Any] | None = None


@dataclass(slots=True)
class _State:
    """What the dealer knows of one worker."""

    ready: bool = False
    starts: int = 0
    gone: bool = False
    held: deque[_Piece] = field(default_factory=deque)


class Dealer:
    """A Runner over a Team. Its workers start with the first question asked of it and live until it is closed."""

    def __init__(self, job: Job, team: Team, reporter: Reporter) -> None:
        self._job, self._team, self._reporter = job, team, reporter
        self._states: list[_State] = []
        self._waiting: deque[_Piece] = deque()
        self._about: Mapping[str, Any] | None = None
        self._first = ""
        self._finished = self._given_up = 0

    def __enter__(self) -> Dealer:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; a later `map` starts new ones."""
        self._team.close()
        self._states, self._about = [], None
        self._waiting.clear()

    @property
    def about(self) -> Mapping[str, Any]:
        """What every worker is; waits for the first. Raises what starting a worker raises."""
        self._begin()
        while self._about is None:
            self._listen()
        return self._about

    def map(self, portions: Iterable[Any]) -> Generator[Any]:
        """The results of every portion, in order. Raises what a worker refuses with, and CosError when none can live."""
        self._begin()
        source = iter(portions)
        slots: deque[list[_Piece]] = deque()
        done = False
        try:
            while not done:
                for portion in itertools.islice(source, max(0, AHEAD * self._team.size - len(slots))):
                    slot: list[_Piece] = []
                    slot.append(_Piece(portion, slot))
                    slots.append(slot)
                    self._waiting.append(slot[0])
                done = not slots
                if not done:
                    self._deal()
                    self._listen()
                while slots and all(piece.results is not None for piece in slots[0]):
                    for piece in slots.popleft():
                        yield from piece.results or ()
        finally:
            # Stopped in the middle: what is still under way would answer the next call.
            if slots:
                self.close()

    def _begin(self) -> None:
        if not self._states:
            self._states = [_State() for _ in range(self._team.size)]
            for place in range(self._team.size):
                self._team.begin(place)

    def _deal(self) -> None:
        while self._waiting:
            free = [p for p, state in enumerate(self._states) if state.ready and len(state.held) < QUEUE]
            if not free:
                return
            place = min(free, key=lambda p: len(self._states[p].held))
            piece = self._waiting.popleft()
            self._states[place].held.append(piece)
            self._team.send(place, piece.portion)

    def _listen(self) -> None:
        for place, said in self._team.listen():
            state = self._states[place]
            if isinstance(said, Done):
                state.held.popleft().results = said.results
                self._finished += 1
            elif isinstance(said, Ready):
                self._compare(said)
                state.ready, state.starts = True, 0
            elif isinstance(said, Refused):
                # A worker of other versions may fail in any way; then that is what there is to say.
                self._compare_versions(said.versions, said.where)
                raise type(said.error)(f"{said.error} (on the worker {said.where})") if said.where else said.error
            else:
                self._bury(place, said.why)

    def _compare(self, said: Ready) -> None:
        """Every worker must be what the first one is, and what this process is; else results would depend on who made them."""
        self._compare_versions(said.about.get("versions", {}), said.where)
        if self._about is None:
            self._about, self._first = said.about, said.where
        elif said.about != self._about:
            differ = ", ".join(sorted(n for n in self._about if said.about.get(n) != self._about[n]))
            raise InputError(
                f"the worker {said.where or _HERE} is not what the one {self._first or _HERE} is: other {differ}; "
                "give every node the same model and files"
            )

    def _compare_versions(self, theirs: Mapping[str, str], where: str) -> None:
        ours = versions() if self._about is None else self._about.get("versions", {})
        # A driver may lack what only workers need.
        asked = set(ours) if self._about is None else ours.keys() | theirs.keys()
        if other := [n for n in sorted(asked) if theirs and ours.get(n) != theirs.get(n)]:
            here = "here" if self._about is None else self._first or _HERE
            told = ", ".join(f"{n} {theirs.get(n, 'missing')} there and {ours.get(n, 'missing')} {here}" for n in other)
            raise InputError(f"the worker {where or _HERE} has other versions: {told}; install the same everywhere")

    def _bury(self, place: int, why: str) -> None:
        state = self._states[place]
        if not state.ready:
            state.starts += 1
            if state.starts >= STARTS:
                state.gone = True
                if all(each.gone for each in self._states):
                    raise CosError(f"no worker lives long enough to begin: it {why}; what was finished is kept")
                self._reporter.warn(f"worker {place + 1} died {STARTS} times before it could begin ({why}); the others go on")
                return
        elif state.held:
            self._reporter.warn(f"worker {place + 1} {why}; what lay with it is done again")
        state.ready = False
        guilty = state.held[0] if state.held else None
        self._waiting.extendleft(reversed(state.held))
        state.held.clear()
        if guilty is not None:
            guilty.deaths += 1
            if guilty.deaths >= DEATHS:
                self._isolate(guilty, why)
        self._team.begin(place)

    def _isolate(self, guilty: _Piece, why: str) -> None:
        self._waiting.remove(guilty)
        parts = self._job.split(guilty.portion)
        if len(parts) > 1:
            pieces = [_Piece(part, guilty.slot) for part in parts]
            at = guilty.slot.index(guilty)
            guilty.slot[at : at + 1] = pieces
            self._waiting.extendleft(reversed(pieces))
            return
        guilty.results = [self._job.lost(guilty.portion, f"the worker {why} on it, {DEATHS} times")]
        self._given_up += 1
        if self._given_up >= GIVEN_UP and not self._finished:
            raise CosError(f"every worker dies at its work: it {why}; what was finished is kept")
