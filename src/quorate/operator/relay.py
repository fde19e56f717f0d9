"""Passes a model's stream on to the client, event by event, and signs for what has gone out.

- A receipt goes out with the first text, then after every `limits.receipt_tokens` tokens or `limits.receipt_s` seconds,
  whichever comes first, and at the end. Never after a blank: who continues the answer elsewhere cannot begin with one.
- If the model breaks off, the client gets a receipt for what it has, and an error; if the client goes away, the model's
  work is stopped at once and the receipt is kept. No text leaves that the last receipt of the stream does not cover.
- One event at a time is held; a client that does not read stops the reading from the model.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
from aiohttp import web

from quorate.errors import Malformed
from quorate.model import SignedReceipt
from quorate.model.sse import DONE, Event, Tally, data_event, events, receipt_event
from quorate.operator.config import LimitsConfig

__all__ = ["Broken", "Relay"]

_FAREWELL_S = 1.0  # for the last words to a client that may not be reading


class Broken(Exception):
    """The model broke its stream off; the message says how, without what it said."""


class Relay:
    """One streamed answer. `receipt` is the last that was signed, None if nothing was."""

    def __init__(self, sign: Callable[[Tally], SignedReceipt], limits: LimitsConfig) -> None:
        self._sign = sign
        self._limits = limits
        self._tally = Tally()
        self._unsigned = False  # text has gone out since the last receipt
        self._signed_tokens = 0
        self._signed_at = 0.0
        self.receipt: SignedReceipt | None = None

    async def first(self, model: aiohttp.ClientResponse) -> AsyncIterator[Event]:
        """The model's events; the first is here already, so that a model that fails at once is an error, not a stream.

        Raises Broken.
        """
        source = self._events(model)
        first = await anext(source)
        try:
            Tally().chunk(first.raw, first.data)
        except Malformed as error:
            raise Broken(error.message) from None
        return _led_by(first, source)

    async def run(self, source: AsyncIterator[Event], response: web.StreamResponse) -> None:
        """Pass everything on until it ends, the model breaks off or the client is gone; what went out is signed for."""
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                async for event in source:
                    if event.data == DONE:
                        break
                    await self._pass_on(event, response)
                if self._tally.finish is None:
                    raise Broken("it ended without a finish")
                await self._put_receipt(response)
                await response.write(data_event(DONE))
        except (Broken, Malformed, TimeoutError) as error:
            slow = isinstance(error, TimeoutError)
            reason = f"the answer took longer than {self._limits.timeout_s:g} s" if slow else str(error)
            await self._break_off(response, reason)
        except ConnectionError:
            pass  # the client is gone
        finally:
            self._sign_rest()

    async def _events(self, model: aiohttp.ClientResponse) -> AsyncIterator[Event]:
        """The model's events without comments, each within `limits.gap_s` of the one before."""
        source = events(model.content.iter_any(), most_bytes=self._limits.answer_bytes)
        patience_s = self._limits.timeout_s  # the first may have to wait for others' answers
        try:
            while True:
                async with asyncio.timeout(patience_s):
                    event = await anext(source)
                patience_s = self._limits.gap_s
                if b"\n" in event.data:
                    raise Broken("an event of it has more than one line")
                if event.data:
                    yield event
        except StopAsyncIteration:
            raise Broken("it ended before its end") from None
        except TimeoutError:
            raise Broken(f"it was silent for {patience_s:g} s") from None
        except aiohttp.ClientError as error:
            raise Broken(f"it cannot be read ({type(error).__name__})") from None

    async def _pass_on(self, event: Event, response: web.StreamResponse) -> None:
        raw = data_event(event.data)
        text = self._tally.chunk(raw, event.data)
        was_unsigned, self._unsigned = self._unsigned, False  # if the writing is cut short, nobody knows what arrived
        await response.write(raw)
        self._unsigned = was_unsigned or bool(text)
        if self._is_due(text):
            await self._put_receipt(response)

    def _is_due(self, text: str) -> bool:
        if not text or text[-1].isspace() or self._tally.finish is not None:  # the end has one of its own
            return False
        tokens = self._tally.completion_tokens - self._signed_tokens
        return (
            self.receipt is None
            or tokens >= self._limits.receipt_tokens
            or time.monotonic() - self._signed_at >= self._limits.receipt_s
        )

    async def _put_receipt(self, response: web.StreamResponse) -> None:
        raw = receipt_event(self._signed())
        self._tally.passed(raw)
        await response.write(raw)

    def _signed(self) -> SignedReceipt:
        self.receipt = self._sign(self._tally)
        self._signed_tokens, self._signed_at = self._tally.completion_tokens, time.monotonic()
        self._unsigned = False
        return self.receipt

    def _sign_rest(self) -> None:
        """What has gone out to a client that is gone is signed for all the same."""
        if self._unsigned:
            self._signed()

    async def _break_off(self, response: web.StreamResponse, reason: str) -> None:
        said = {"error": {"message": f"the model broke off: {reason}", "type": "server_error", "code": 502}}
        try:
            async with asyncio.timeout(_FAREWELL_S):
                if self._unsigned:
                    await self._put_receipt(response)
                await response.write(data_event(json.dumps(said).encode()))
        except (TimeoutError, ConnectionError):  # it was the client that was slow, or is gone, too
            return


async def _led_by(first: Event, rest: AsyncIterator[Event]) -> AsyncIterator[Event]:
    yield first
    async for event in rest:
        yield event
