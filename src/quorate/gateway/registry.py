"""The registry as the gateway knows it: read now and then, so that no question waits for the chain."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from quorate.chain import Operator
from quorate.errors import ChainError
from quorate.model import Registry
from quorate.model.call import HasChainId
from quorate.units import Address

__all__ = ["KnownRegistry"]


class KnownRegistry:
    """A `Registry` that is at most `fresh_s` seconds old, or `stale_s` while the chain cannot be asked."""

    def __init__(
        self,
        registry: Registry,
        *,
        fresh_s: float = 5.0,
        stale_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._fresh_s = fresh_s
        self._stale_s = stale_s
        self._clock = clock
        self._known: Sequence[Operator] | None = None
        self._read_at = 0.0
        self._tried_at = -fresh_s
        self._reading: asyncio.Task[None] | None = None
        self._error: ChainError | None = None

    @property
    def chain(self) -> HasChainId:
        """Where the registry is."""
        return self._registry.chain

    @property
    def address(self) -> Address:
        """The registry's contract."""
        return self._registry.address

    async def operators(self) -> Sequence[Operator]:
        """The listed operators, as they were known last; raises ChainError where that is too long ago."""
        now = self._clock()
        is_stale = self._known is None or now - self._read_at > self._stale_s
        if (is_stale or now - self._tried_at > self._fresh_s) and (self._reading is None or self._reading.done()):
            self._tried_at = now
            self._reading = asyncio.create_task(self._read())
        if is_stale and self._reading is not None:
            await asyncio.shield(self._reading)  # others may wait for it, too
            if self._error is not None:
                raise self._error
        assert self._known is not None  # noqa: S101 (read, or raised)
        return self._known

    async def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading

    async def _read(self) -> None:
        try:
            self._known = await self._registry.operators()
            self._read_at = self._clock()
            self._error = None
        except ChainError as error:
            self._error = error
