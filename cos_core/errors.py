"""What can go wrong, as types. Each message is one sentence: what is wrong, and what to do about it.

The command line turns a `CosError` into that sentence and the `exit_code` below; library code never catches for display.
Exit codes (docs/reference/exit-codes.md): 0 ok · 1 bug · 2 usage · 3 bad input or config · 4 missing extra, model or hardware ·
5 finished with more failures than allowed · 6 regression · 7 undefined · 75 locked by another run · 130 interrupted.
"""

from __future__ import annotations


class CosError(Exception):
    """Base of every error that `cos` raises on purpose."""

    exit_code = 3


class InputError(CosError):
    """A file, record, image or option value given by the user cannot be used."""


class TransientError(InputError):
    """One item failed for a reason outside it (no server, no such file yet, no memory); the same command asks it again."""


class FrameError(CosError):
    """Boxes of two coordinate frames were mixed."""


class MissingError(CosError):
    """An optional package, a model or hardware that the chosen task needs is not there."""

    exit_code = 4


class FailuresError(CosError):
    """A run finished, but more items failed than were allowed."""

    exit_code = 5


class RegressionError(CosError):
    """A score stands below its limit, or below the baseline's."""

    exit_code = 6


class UndefinedError(CosError):
    """A figure that was to be compared is not defined, so it is neither better nor worse."""

    exit_code = 7


class TimeUpError(CosError):
    """The time that the run was given is over; what is finished is kept, and the same command continues."""

    exit_code = 130


class LockedError(CosError):
    """Another live process writes to the same place."""

    exit_code = 75
