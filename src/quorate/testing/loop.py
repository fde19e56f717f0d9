"""An event loop whose time is virtual: whoever sleeps is woken at once, in the order in which the sleeps end.

What runs on it is deterministic as long as it waits for nothing but timers and futures of this loop: there are no
sockets, no signals and, with `AtOnce` as executor, no threads.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any, TypeVar, TypeVarTuple, Unpack

from quorate.errors import QuorateError

__all__ = ["AtOnce", "Stuck", "VirtualLoop", "run_virtual"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_RESOLUTION_S = 1e-9
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


class _Soon(asyncio.Handle):
    """As asyncio's own, made in a third of the time: thousands run in each simulated second."""

    __slots__ = ()

    def __init__(
        self, callback: Callable[..., object], args: Sequence[Any], loop: VirtualLoop, context: Context | None
    ) -> None:
        self._callback, self._args, self._loop = callback, args, loop
        self._context = copy_context() if context is None else context
        self._cancelled, self._repr, self._source_traceback = False, None, None


class _Timer(asyncio.TimerHandle, _Soon):
    __slots__ = ()

    def __init__(self, when: float, *arguments: Any) -> None:
        _Soon.__init__(self, *arguments)
        self._when, self._scheduled = when, True


class VirtualLoop(asyncio.BaseEventLoop):
    """asyncio's loop on a virtual clock that begins at 0. When all that is ready has run, time jumps to the next timer.

    Timers that are due at one moment run in the order in which they were set.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = itertools.count()
        self._spins = self._passes = 0
        self._selector = None
        self.set_default_executor(AtOnce(1))

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def refresh(self) -> None:
        """Count passes anew: what is left has to be swept up."""
        self._spins = self._passes = 0

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio has it."""
        handle = _Soon(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio has it."""
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is thrown away when its time comes."""

    def _run_once(self) -> None:
        """One pass, as asyncio's own makes it: what was ready when it began, and the timers that are due."""
        ready, timers = self._ready, self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        self._passes += 1
        if self._passes > _PASS_LIMIT:
            raise Stuck(f"after {self._now:.3f} s there is still no end")
        is_idle = not ready and not self._stopping  # type: ignore[attr-defined]  # asyncio's own
        if is_idle and not timers:
            raise Stuck("nothing can happen any more: everybody waits for somebody else")
        if is_idle and timers[0][0] > self._now:
            self._spins, self._now = 0, timers[0][0]
        else:
            self._spins += 1
            if self._spins > _SPIN_LIMIT:
                raise Stuck(f"time stands still at {self._now:.3f} s: something runs without ever waiting")
        end = self._now + _RESOLUTION_S
        while timers and timers[0][0] < end:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()


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
