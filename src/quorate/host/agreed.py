"""What the quorum has decided so far: the only thing the signing boundary believes."""

from __future__ import annotations

import threading

from quorate.fsm import Period

__all__ = ["Agreed"]


class Agreed:
    """The last committed period: written on the chain's thread, read on the decision maker's.

    A period that was merely proposed never gets in here: a block that is not decided may show an intent that no
    quorum stands behind.
    """

    def __init__(self) -> None:
        self._period: Period | None = None
        self._changed = threading.Condition()

    def commit(self, period: Period) -> None:
        """Take the period that a decided block led to."""
        with self._changed:
            self._period = period
            self._changed.notify_all()

    @property
    def period(self) -> Period | None:
        """The last committed period; None before the first block."""
        with self._changed:
            return self._period
