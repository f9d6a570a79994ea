"""Stage `annotate`: the region of interest of every question, into a store (CoS §3.2)."""

from __future__ import annotations

from cos_core.annotate.config import AnnotateConfig
from cos_core.interfaces import Reporter
from cos_core.types import RunManifest

__all__ = ["AnnotateConfig", "run"]


def run(config: AnnotateConfig, reporter: Reporter) -> RunManifest:
    """Annotates every question of `config.data` that `config.out` has no annotation for, and writes the manifest last.

    stage.py reads and writes, work.py is what a worker does, wherever `config.scale` puts it; plan.py only looks. Failures (a
    picture or an answer that cannot be used, a record that cannot be read) are recorded in the store with their reason and
    tried again by the next run; a picture on which the answer has no relevance gives an annotation without a box. Counts are of
    the whole data, or of the one shard. Raises InputError for settings, data or a store that cannot be used, LockedError when
    another run writes the store, FailuresError once more than `max_failures` questions have no region; what was finished stays.
    """
    if config.dry_run:
        from cos_core.annotate import plan

        return plan.run(config, reporter)
    from cos_core.annotate import stage

    return stage.run(config, reporter)
