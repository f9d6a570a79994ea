"""Distributes portions over several workers and returns their results in order, also when workers die.

At most QUEUE portions lie with a worker, and AHEAD a worker are read before the first unfinished one is done: both bound the
memory. A worker that dies is started again, and its portions are done again. A portion at which DEATHS workers died is divided
in halves, down to single examples; an example at which that many died again fails and is recorded (Job.lost).
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
FAILED = 3
"""Examples that may fail so before any portion is finished; then the run ends, since the cause is not in the examples."""

_LOCAL = "of this machine"
DECIDING = ("torch", "transformers", "tokenizers", "numpy", "pillow")
"""Packages whose versions may change a result."""


def versions() -> Mapping[str, str]:
    """Package -> version, for cos and for those of DECIDING that are installed; must be equal on all workers of a run."""
    installed = {"cos": cos_core.__version__}
    for name in DECIDING:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has started. `about`: its Worker.about and `versions`; `where`: its node, "" on this machine."""

    about: Mapping[str, Any]
    where: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """The results of the oldest portion that lies with a worker."""

    results: list[Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker raised an error that the user can mend; one that could not start sends its `versions`, too."""

    error: CosError
    where: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Died:
    """A worker ended, and what lay with it is lost. `why`: the rest of a sentence that begins with the worker."""

    why: str


WorkerEvent = Ready | Done | Refused | Died


class Team(Protocol):
    """Workers by number, from 0, wherever they run."""

    size: int

    def begin(self, place: int) -> None:
        """Starts the worker of this number, also again after it died; a Ready, Refused or Died of it follows."""

    def send(self, place: int, portion: Any) -> None:
        """Gives a portion to a worker that is ready; a Done, Refused or Died of it follows."""

    def listen(self) -> Sequence[tuple[int, WorkerEvent]]:
        """(number of the worker, event) in the order of their coming; waits until there is one."""

    def close(self) -> None:
        """Ends all workers; `begin` may follow."""


@dataclass(slots=True, eq=False)
class _Piece:
    """A portion, or a part of one that was divided; `siblings` holds the pieces of one portion in order, itself included."""

    portion: Any
    siblings: list[_Piece]
    deaths: int = 0
    results: list[Any] | None = None


@dataclass(slots=True)
class _WorkerState:
    """What the dealer knows of one worker. `starts`: failed ones in a row; `given_up`: it is not started again."""

    ready: bool = False
    starts: int = 0
    given_up: bool = False
    pieces: deque[_Piece] = field(default_factory=deque)
    """What lies with it, oldest first."""


class Dealer:
    """A Runner over a Team. Its workers start with the first question asked of it and live until it is closed."""

    def __init__(self, job: Job, team: Team, reporter: Reporter) -> None:
        self._job, self._team, self._reporter = job, team, reporter
        self._workers: list[_WorkerState] = []
        self._waiting: deque[_Piece] = deque()
        self._about: Mapping[str, Any] | None = None
        self._first_node = ""
        self._finished = self._failed = 0

    def __enter__(self) -> Dealer:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; a later `map` starts new ones."""
        self._team.close()
        self._workers, self._about = [], None
        self._waiting.clear()

    @property
    def about(self) -> Mapping[str, Any]:
        """Worker.about, equal for all workers; waits for the first. Raises what starting a worker raises."""
        self._begin()
        while self._about is None:
            self._handle_events()
        return self._about

    def map(self, portions: Iterable[Any]) -> Generator[Any]:
        """The results of every portion, in order. Raises what a worker refuses with, CosError when none can live."""
        self._begin()
        source = iter(portions)
        unfinished: deque[list[_Piece]] = deque()
        done = False
        try:
            while not done:
                for portion in itertools.islice(source, max(0, AHEAD * self._team.size - len(unfinished))):
                    pieces: list[_Piece] = []
                    pieces.append(_Piece(portion, pieces))
                    unfinished.append(pieces)
                    self._waiting.append(pieces[0])
                done = not unfinished
                if not done:
                    self._deal()
                    self._handle_events()
                while unfinished and all(piece.results is not None for piece in unfinished[0]):
                    for piece in unfinished.popleft():
                        yield from piece.results or ()
        finally:
            # Stopped in the middle: what is still under way would answer the next call.
            if unfinished:
                self.close()

    def _begin(self) -> None:
        if not self._workers:
            self._workers = [_WorkerState() for _ in range(self._team.size)]
            for place in range(self._team.size):
                self._team.begin(place)

    def _deal(self) -> None:
        """Gives waiting pieces to the workers with the least to do."""
        while self._waiting:
            free = [place for place, worker in enumerate(self._workers) if worker.ready and len(worker.pieces) < QUEUE]
            if not free:
                return
            place = min(free, key=lambda place: len(self._workers[place].pieces))
            piece = self._waiting.popleft()
            self._workers[place].pieces.append(piece)
            self._team.send(place, piece.portion)

    def _handle_events(self) -> None:
        for place, event in self._team.listen():
            worker = self._workers[place]
            if isinstance(event, Done):
                worker.pieces.popleft().results = event.results
                self._finished += 1
            elif isinstance(event, Ready):
                self._check_same(event)
                worker.ready, worker.starts = True, 0
            elif isinstance(event, Refused):
                # A worker of other versions may fail in any way; then the versions are what the user can mend.
                self._check_versions(event.versions, event.where)
                error = event.error
                raise type(error)(f"{error} (on the worker {event.where})") if event.where else error
            else:
                self._replace_worker(place, event.why)

    def _check_same(self, event: Ready) -> None:
        """Raises InputError unless a worker is as the first one and this process are: its results would be others."""
        self._check_versions(event.about.get("versions", {}), event.where)
        if self._about is None:
            self._about, self._first_node = event.about, event.where
        elif event.about != self._about:
            differ = ", ".join(sorted(n for n in self._about if event.about.get(n) != self._about[n]))
            raise InputError(
                f"the worker {event.where or _LOCAL} is not what the one {self._first_node or _LOCAL} is: other {differ}; "
                "give every node the same model and files"
            )

    def _check_versions(self, theirs: Mapping[str, str], where: str) -> None:
        ours = versions() if self._about is None else self._about.get("versions", {})
        # A driver may lack what only workers need.
        names = set(ours) if self._about is None else ours.keys() | theirs.keys()
        if other := [n for n in sorted(names) if theirs and ours.get(n) != theirs.get(n)]:
            here = "here" if self._about is None else self._first_node or _LOCAL
            pairs = ", ".join(f"{n} {theirs.get(n, 'missing')} there and {ours.get(n, 'missing')} {here}" for n in other)
            raise InputError(f"the worker {where or _LOCAL} has other versions: {pairs}; install the same everywhere")

    def _replace_worker(self, place: int, why: str) -> None:
        """Starts a dead worker again, unless it died too often before it was ready, and queues its pieces again, first."""
        worker = self._workers[place]
        if not worker.ready:
            worker.starts += 1
            if worker.starts >= STARTS:
                worker.given_up = True
                if all(each.given_up for each in self._workers):
                    raise CosError(f"no worker lives long enough to begin: it {why}; what was finished is kept")
                self._reporter.warn(f"worker {place + 1} died {STARTS} times before it could begin ({why}); the others go on")
                return
        elif worker.pieces:
            self._reporter.warn(f"worker {place + 1} {why}; what lay with it is done again")
        worker.ready = False
        suspect = worker.pieces[0] if worker.pieces else None
        self._waiting.extendleft(reversed(worker.pieces))
        worker.pieces.clear()
        if suspect is not None:
            suspect.deaths += 1
            if suspect.deaths >= DEATHS:
                self._divide(suspect, why)
        self._team.begin(place)

    def _divide(self, suspect: _Piece, why: str) -> None:
        """Queues the parts of a piece instead of it; records one that has no parts as failed."""
        self._waiting.remove(suspect)
        parts = self._job.split(suspect.portion)
        if len(parts) > 1:
            pieces = [_Piece(part, suspect.siblings) for part in parts]
            at = suspect.siblings.index(suspect)
            suspect.siblings[at : at + 1] = pieces
            self._waiting.extendleft(reversed(pieces))
            return
        suspect.results = [self._job.lost(suspect.portion, f"the worker {why} on it, {DEATHS} times")]
        self._failed += 1
        if self._failed >= FAILED and not self._finished:
            raise CosError(f"every worker dies at its work: it {why}; what was finished is kept")
