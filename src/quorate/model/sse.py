"""Streams of OpenAI's API: server-sent events with their exact bytes, and what both ends of a stream keep count of.

A stream of ours is what OpenAI's is, and comments with receipts in between, which every client of SSE skips:

    data: {"choices": [{"delta": {"content": "Hel"}}], "usage": {...}, ...}
    : quorate-receipt BASE64
    data: {"choices": [{"delta": {"content": "lo"}}], "usage": {...}, ...}
    : quorate-receipt BASE64
    data: [DONE]

A receipt is for everything before it: its answer hash is keccak256 of every byte of the body up to its own line, its
counts are those of the last event with text, a finish or no choice. A later receipt of the stream (same nonce) takes
the place of an earlier one. A stream that breaks is thus paid for, and signed for, up to its last receipt.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from eth_hash.auto import keccak as _keccak

from quorate.errors import Malformed
from quorate.model.receipt import SignedReceipt
from quorate.model.schema import parse_json
from quorate.units import Hash

__all__ = ["DONE", "Event", "Tally", "data_event", "events", "receipt_event", "receipt_in"]

DONE = b"[DONE]"
_RECEIPT = b"quorate-receipt "
_END = re.compile(rb"\r?\n\r?\n")


class Event(NamedTuple):
    """One event of a stream, or one comment."""

    raw: bytes
    """Its exact bytes, with the empty line that ends it."""
    data: bytes
    """Empty for a comment."""
    comment: bytes


def data_event(data: bytes) -> bytes:
    """An event with `data`, which holds no line break."""
    return b"data: " + data + b"\n\n"


def receipt_event(signed: SignedReceipt) -> bytes:
    """A receipt as a comment between events."""
    return b": " + _RECEIPT + signed.header().encode() + b"\n\n"


def receipt_in(event: Event) -> SignedReceipt | None:
    """The receipt that a comment holds, if it does; raises Malformed for one that cannot be read."""
    if not event.comment.startswith(_RECEIPT):
        return None
    return SignedReceipt.from_header(event.comment.removeprefix(_RECEIPT).decode(errors="replace"))


async def events(chunks: AsyncIterator[bytes], *, most_bytes: int) -> AsyncIterator[Event]:
    """The events in a body, as they become whole; raises Malformed where the body is longer than `most_bytes`.

    What follows the last empty line is no event and is left out, as the standard has it.
    """
    held, total = bytearray(), 0
    async for chunk in chunks:
        total += len(chunk)
        if total > most_bytes:
            raise Malformed(f"its answer is longer than {most_bytes} bytes")
        searched = max(0, len(held) - 3)  # an end may have begun in the last chunk
        held += chunk
        while found := _END.search(held, searched):
            raw = bytes(held[: found.end()])
            del held[: found.end()]
            searched = 0
            yield _event(raw)


def _event(raw: bytes) -> Event:
    lines = [line.rstrip(b"\r") for line in raw.split(b"\n")]
    data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
    comments = [line[1:].removeprefix(b" ") for line in lines if line.startswith(b":")]
    return Event(raw, b"\n".join(data), b"\n".join(comments))


class Tally:
    """What a stream has delivered so far. The operator and the client each keep one, and sign or check by it."""

    def __init__(self) -> None:
        self._hash = _keccak.new(b"")
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.finish: str | None = None
        """Why the model ended, once it has: `stop`, `length`."""

    @property
    def hash(self) -> Hash:
        """keccak256 of all bytes so far."""
        return Hash("0x" + self._hash.digest().hex())

    def passed(self, raw: bytes) -> None:
        """Take in the bytes of what is no chunk of the answer: a comment."""
        self._hash.update(raw)

    def chunk(self, raw: bytes, data: bytes) -> str:
        """Take in an event of the answer; returns its text. Raises Malformed where it is none or counts wrongly."""
        text, finish, has_choice, prompt, completion = _chunk(parse_json(data, "an event of the stream"))
        if self.finish is not None and (text or has_choice):
            raise Malformed("the stream goes on after its finish")
        if completion < self.completion_tokens or (self.prompt_tokens and prompt != self.prompt_tokens):
            raise Malformed(
                f"the stream counts {prompt}+{completion} tokens after {self.prompt_tokens}+{self.completion_tokens}"
            )
        if text or finish or not has_choice:
            self.prompt_tokens, self.completion_tokens = prompt, completion
        self.finish = self.finish or finish
        self._hash.update(raw)
        return text


class _Chunk(NamedTuple):
    text: str
    finish: str | None
    has_choice: bool
    prompt_tokens: int
    completion_tokens: int


def _chunk(raw: Any) -> _Chunk:
    if isinstance(raw, dict) and "error" in raw:
        said = raw["error"].get("message", "") if isinstance(raw["error"], dict) else ""
        raise Malformed(f"the stream was broken off: {str(said)[:160]!r}")
    try:
        choices, usage = raw["choices"], raw["usage"]
        prompt, completion = usage["prompt_tokens"], usage.get("completion_tokens") or 0
        text, finish = (
            (choices[0]["delta"].get("content") or "", choices[0].get("finish_reason")) if choices else ("", None)
        )
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Malformed("an event of the stream has no choice with a delta, or no usage") from None
    counts_are_sound = all(type(count) is int and 0 <= count < 2**63 for count in (prompt, completion))
    texts_are_sound = isinstance(text, str) and (finish is None or (isinstance(finish, str) and 0 < len(finish) <= 32))
    if not counts_are_sound or not texts_are_sound or len(choices) > 1:
        raise Malformed("an event of the stream has a text, a finish or counts that are none")
    return _Chunk(text, finish, bool(choices), prompt, completion)
