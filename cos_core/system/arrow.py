"""pyarrow, an optional package: whoever reads or writes Parquet and Arrow asks for it here."""

from __future__ import annotations

from typing import Any

from cos_core.errors import MissingError
from cos_core.system.extras import install


def pyarrow(file: object = "a Parquet or Arrow file") -> Any:
    """The package, with its modules `ipc` and `parquet`. Raises MissingError without it; `file`: what it is needed for."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise MissingError(f"{file} needs the extra 'arrow': {install('arrow')}") from None
    return pyarrow
