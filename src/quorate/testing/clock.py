"""A clock that moves only when its owner moves it."""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass, field

__all__ = ["VirtualClock"]


@dataclass
class VirtualClock:
    """Virtual milliseconds, and who sleeps until when. Equal wake times wake in the order of falling asleep."""

    now_ms: int
    _sleepers: list[tuple[int, int, asyncio.Future[None]]] = field(default_factory=list)
    _count: int = 0

    async def sleep(self, seconds: float) -> None:
        """Return once the clock has been moved so far; at least one pass of the event loop."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        self._count += 1
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_ms + max(1, round(seconds * 1000)), self._count, woken))
        await woken

    def next_ms(self) -> int | None:
        """When the next sleeper wakes; None if nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():  # cancelled: its agent crashed or its round ended
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def advance(self, to_ms: int) -> None:
        """Move on to `to_ms` and wake everybody whose time has come."""
        self.now_ms = max(self.now_ms, to_ms)
        while (due := self.next_ms()) is not None and due <= self.now_ms:
            heapq.heappop(self._sleepers)[2].set_result(None)
