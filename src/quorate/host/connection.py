"""The agent's link to its chain, as an open-aea connection: connecting starts consensus, disconnecting ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aea.configurations.base import ConnectionConfig
from aea.configurations.data_types import PublicId
from aea.connections.base import Connection, ConnectionStates
from aea.identity.base import Identity

__all__ = ["ServiceConnection"]


class ServiceConnection(Connection):
    """Starts and stops what the agent runs on open-aea's own loop. No envelope passes here: rounds are not messages."""

    connection_id = PublicId("quorate", "service", "0.1.0")

    def __init__(
        self,
        identity: Identity,
        data_dir: str,
        start: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
    ) -> None:
        configuration = ConnectionConfig("service", "quorate", "0.1.0", connection_id=self.connection_id)
        super().__init__(configuration=configuration, data_dir=data_dir, identity=identity)
        self._start, self._stop = start, stop

    async def connect(self) -> None:
        """Start consensus and the agent's acts."""
        if self.is_connected:
            return
        self.state = ConnectionStates.connecting
        await self._start()
        self.state = ConnectionStates.connected

    async def disconnect(self) -> None:
        """Stop both."""
        if self.is_disconnected:
            return
        self.state = ConnectionStates.disconnecting
        await self._stop()
        self.state = ConnectionStates.disconnected

    async def send(self, envelope: Any) -> None:
        """Nothing is ever sent by envelope."""
        raise NotImplementedError(f"the service connection carries no envelopes; got one for {envelope.to}")

    async def receive(self, *args: Any, **kwargs: Any) -> None:
        """Nothing ever arrives; wait until cancelled."""
        await asyncio.Event().wait()
