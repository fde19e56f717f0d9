"""What an agent tells whoever watches it, as events (quorate.events). Never a secret, never a key."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quorate.events import EventWriter
from quorate.fsm import Period, Settled
from quorate.offences import Offence
from quorate.units import Address

__all__ = ["Journal"]


class Journal:
    """Events of one agent, in the order in which they happened."""

    def __init__(self, path: Path, who: str, count: Callable[[str, Mapping[str, Any]], None] | None = None) -> None:
        """Append to the file at `path`; `count` also gets each event, for metrics."""
        self._writer = EventWriter(path, who)
        self._count = count
        self._acting_since: dict[int, float] = {}
        self._acted_ms: dict[int, int] = {}
        self._opened_at: tuple[int, float] = (0, time.monotonic())

    def emit(self, kind: str, **fields: Any) -> None:
        """Write one event; the time and the agent's name are added."""
        self._writer.emit(kind, **fields)
        if self._count is not None:
            self._count(kind, fields)

    def opened(self, period: Period) -> None:
        """The quorum is in this round now."""
        self._opened_at = (period.sequence, time.monotonic())
        self.emit("round", sequence=period.sequence, period=period.state.period, round=period.round.name)

    def acting(self, period: Period) -> None:
        """This agent began its part."""
        self._acting_since[period.sequence] = time.monotonic()
        self.emit("act", round=period.round.name, sequence=period.sequence)

    def acted(self, period: Period) -> None:
        """This agent's part is done; its payload goes out next."""
        self._acted_ms[period.sequence] = _ms_since(self._acting_since.pop(period.sequence, time.monotonic()))

    def sent(self, round_name: str, sequence: int, via: str) -> None:
        """This agent's payload went out; `via` is "extension" or "transaction"."""
        self.emit("payload", round=round_name, sequence=sequence, via=via, ms=self._acted_ms.get(sequence))

    def settled(self, settled: Settled, height: int) -> None:
        """A round ended in a committed block."""
        sequence, since = self._opened_at
        ms = _ms_since(since) if sequence == settled.sequence else None
        self._acting_since.pop(settled.sequence, None)
        self._acted_ms.pop(settled.sequence, None)
        self.emit(
            "settled", round=settled.round_name, event=settled.event, sequence=settled.sequence, height=height, ms=ms
        )

    def offended(self, offence: Offence) -> None:
        """An offence is on record."""
        self.emit(
            "offence",
            what=offence.kind,
            member=offence.member,
            height=offence.height,
            sequence=offence.sequence,
            period=offence.period,
            evidence=offence.evidence,
        )

    def asking(self, operator: Address, model: str) -> None:
        """This agent asks an operator for an answer of a model."""
        self.emit("asking", operator=operator, model=model)

    def waiting(self, what: str, why: object) -> None:
        """This agent cannot go on by itself; it tries again."""
        self.emit("waiting", **{"for": what, "reason": str(why)})

    def error(self, message: str) -> None:
        """Something that a person should look at."""
        self.emit("error", message=message)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def _ms_since(start: float) -> int:
    return round((time.monotonic() - start) * 1000)
