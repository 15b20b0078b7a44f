"""What waits in all spools of a pipeline together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from otel_cbtop_exporter.delivery.spool import Spool, SpoolError
from otel_cbtop_exporter.delivery.spool_lock import spool_lock

__all__ = ["Waiting"]


class Waiting:
    """Asks several spools one question under the lock, so that nothing moves between them.

    Otherwise another thread could move what is in memory to a file that was empty when asked.

    Args:
        spools: Returns where records wait.
    """

    def __init__(self, spools: Callable[[], Sequence[Spool]]) -> None:
        self._spools = spools

    def newest_ns(self) -> int | None:
        """Return when the newest record was appended; None if none waits or that is unknown."""
        with suppress(SpoolError), spool_lock():
            times_ns = [spool.newest_ns() for spool in self._spools()]
            return max((time_ns for time_ns in times_ns if time_ns is not None), default=None)
        return None

    def has_up_to(self, created_ns: int) -> bool:
        """Return whether something may wait that was appended at `created_ns` or earlier."""
        with suppress(SpoolError), spool_lock():
            return any(spool.has_up_to(created_ns) for spool in self._spools())
        return True

    def is_empty(self) -> bool:
        """Return whether nothing waits.

        Raises:
            SpoolError: A spool cannot be read.
        """
        with spool_lock():
            return not any(spool.lanes() for spool in self._spools())
