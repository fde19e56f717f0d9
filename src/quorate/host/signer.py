"""How a running agent asks its decision maker for a signature."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aea.protocols.base import Message

from quorate.model import ModelRequest
from quorate.units import Address

from .decision_maker import SigningMessage, SigningRequest

__all__ = ["Signer"]


class Signer:
    """Requests go through open-aea's own queue to its decision-maker thread; nothing here holds a key."""

    def __init__(self, address: Address, put: Callable[[Message], None]) -> None:
        self.address = address
        self._put = put

    async def sign(self, request: SigningRequest) -> bytes:
        """The signature (for an execution: the raw transaction); raises what the decision maker raised."""
        message = SigningMessage(request)
        self._put(message)
        return await asyncio.wrap_future(message.answer)

    async def sign_request(self, request: ModelRequest) -> bytes:
        """The signature under a request to an operator (`quorate.model.RequestSigner`)."""
        return await self.sign(request)
