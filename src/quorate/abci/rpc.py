"""Questions to the RPC of a CometBFT node: ours, which may be starting, or a peer's, which may lie.

An answer is bounded in size and depth and read into plain values here; whatever cannot be read is `NodeUnreachable`,
so that a node that talks nonsense is one that says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import aiohttp

from quorate.errors import QuorateError
from quorate.nesting import load_json

__all__ = ["MAX_ANSWER_BYTES", "NodeUnreachable", "ask", "number", "read"]

T = TypeVar("T")
MAX_ANSWER_BYTES = 32 * 1024 * 1024
"""Far more than a block in JSON."""


class NodeUnreachable(QuorateError):
    """The node's RPC gave no answer: it starts, stops, is overloaded, or talks nonsense. Ask again."""


async def ask(session: aiohttp.ClientSession, url: str, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The node's JSON-RPC response, with `result` or `error`; `NodeUnreachable` where it gives none."""
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": dict(params)}
    try:
        async with session.post(url, json=request) as response:
            body = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise ValueError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        answer = load_json(bytes(body))
    except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
        raise NodeUnreachable(f"a CometBFT node does not answer {method}: {error!r:.300}") from error
    if not isinstance(answer, dict):
        raise NodeUnreachable(f"a CometBFT node answers {method} with something that is no JSON-RPC")
    return answer


def read(answer: Mapping[str, Any], what: str, into: Callable[[Any], T]) -> T:
    """What `into` makes of the answer's result; `NodeUnreachable`, naming `what` was asked, where it cannot be read."""
    try:
        return into(answer["result"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = answer.get("error", repr(error))
        raise NodeUnreachable(f"a CometBFT node says nothing of {what}: {said!s:.300}") from error


def number(text: object) -> int:
    """A height or power, as the RPC writes 64-bit integers: as text. `ValueError` for anything else."""
    if not isinstance(text, str) or not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise ValueError(f"{text!r:.80} is no number of CometBFT's")
    return int(text)
