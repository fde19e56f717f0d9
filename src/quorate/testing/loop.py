"""An event loop whose time is virtual: whoever sleeps is woken at once, in the order in which the sleeps end.

What runs on it is deterministic as long as it waits for nothing but timers and futures of this loop: there are no
sockets, no signals and, with `AtOnce` as executor, no threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from quorate.errors import QuorateError

__all__ = ["AtOnce", "Stuck", "VirtualLoop", "run_virtual"]

T = TypeVar("T")
_PASS_LIMIT = 500_000  # of the loop in one run; an ordinary seed takes 4,000
_SPIN_LIMIT = 200_000  # passes of the loop without time moving: somebody waits in a busy loop


class Stuck(QuorateError):
    """Nothing can happen any more, or something happens for ever at one moment."""


class AtOnce(ThreadPoolExecutor):
    """Runs what is handed to threads in the caller: a simulation must not depend on who is faster."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The result of `fn`, which runs here and now."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # handed to the one who waits for it
            future.set_exception(error)
        return future


class _NoSelector:
    """Takes the selector's place: where a real one would wait for sockets, the clock is moved to the next timer."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._spins = self._passes = 0

    def select(self, timeout: float | None) -> tuple[()]:
        if timeout is None:
            raise Stuck("nothing can happen any more: everybody waits for somebody else")
        self._spins += 1
        self._passes += 1
        if self._passes > _PASS_LIMIT:
            raise Stuck(f"after {self._loop.time():.3f} s there is still no end")
        if timeout > 0:
            self._spins = 0
            self._loop.move_to_next_timer()
        elif self._spins > _SPIN_LIMIT:
            raise Stuck(f"time stands still at {self._loop.time():.3f} s: something runs without ever waiting")
        return ()


class VirtualLoop(asyncio.BaseEventLoop):
    """asyncio's own loop on a virtual clock that begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = _NoSelector(self)
        self.set_default_executor(AtOnce(1))

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def refresh(self) -> None:
        """Count passes anew: what is left has to be swept up."""
        self._selector = _NoSelector(self)

    def move_to_next_timer(self) -> None:
        """Let time pass until the first timer is due."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]  # asyncio's heap of timers
        self._now = max(self._now, scheduled[0].when())

    def _process_events(self, events: tuple[()]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector that would have to be woken."""


def run_virtual(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on a loop of its own, and cancel what it leaves behind."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(work)
    finally:
        loop.refresh()
        leftovers = [task for task in asyncio.all_tasks(loop) if not task.done()]
        for task in leftovers:
            task.cancel()
        if leftovers:
            loop.run_until_complete(asyncio.gather(*leftovers, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()
