"""What CometBFT nodes answer over their RPC: ours, and those of peers whom a wiped agent asks where to begin."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp

from quorate.abci import Node, NodeUnreachable, anchor, rpc
from tests.fuzz.engine import Target, label_of, mutate_bytes, mutate_json

__all__ = ["NodeReplies"]

_HONEST = 90
"""The height of the honest nodes; their first block is 5."""


class NodeReplies(Target):
    """`Node` and `find_anchor` with one lying node: values or `NodeUnreachable`, and no anchor but the honest one.

    The input is the liar's reply to every question, as the bytes of the body.
    """

    name = "node_replies"

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._session = _Session()
        self._node = self._loop.run_until_complete(self._started())

    async def _started(self) -> Node:
        node = Node(Path("nowhere"), Path("nothing"), Path("sockets"))
        node._session = cast(aiohttp.ClientSession, self._session)
        return node

    def seeds(self) -> Iterable[bytes]:
        peer = {"node_info": {"id": "ab" * 20}}
        validator = {"address": "AB" * 20, "voting_power": "20"}
        yield _said({**_status(5, _HONEST), **_commit(50), "peers": [peer], "validators": [validator]})
        yield _said({**_status(1, 10**6), **_commit(7), "code": 0, "log": "", "peers": [], "validators": []})
        yield json.dumps(
            {"error": {"code": -32603, "message": "Internal error", "data": "tx already exists in cache"}}
        ).encode()

    def mutate(self, data: bytes, other: bytes, rng: random.Random) -> bytes:
        try:
            value = json.loads(data)
            if rng.random() < 0.3:
                info = value["result"]["sync_info"]
                name = rng.choice(("earliest_block_height", "latest_block_height"))
                info[name] = rng.choice(("0", "-5", "89", "91", "1000000", "9" * 30, "٣", 7, None))
                return json.dumps(value).encode()
            if rng.random() < 0.8:
                return json.dumps(mutate_json(value, rng)).encode()
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        return mutate_bytes(data, other, rng)

    def run(self, data: bytes) -> str:
        self._session.body = data
        return self._loop.run_until_complete(self._asked())

    async def _asked(self) -> str:
        node, labels = self._node, []
        for question in (node.status, node.first_block, lambda: node.broadcast_tx(b"tx"), node.peers, node.powers):
            try:
                found = await question()
                labels.append(type(found).__name__)
            except NodeUnreachable as error:
                labels.append(_refused(error))
        before, anchor._ask = anchor._ask, self._told
        try:
            begin = await anchor.find_anchor(("liar", "honest 1", "honest 2"), 4, 20)
        finally:
            anchor._ask = before
        _require_honest(begin)
        return " / ".join([*labels, "anchor" if begin else "none"])

    async def _told(self, server: str, method: str, params: dict[str, str]) -> dict[str, Any]:
        if server == "liar":
            return await rpc.ask(cast(aiohttp.ClientSession, self._session), "http://node/", method, params)
        said = _status(5, _HONEST) if method == "status" else _commit(int(params["height"]))
        return {"result": said}

    def close(self) -> None:
        self._loop.close()


class _Session:
    """An HTTP session whose every answer has this body."""

    def __init__(self) -> None:
        self.body = b""

    @asynccontextmanager
    async def post(self, url: str, json: Any) -> AsyncIterator[Any]:
        yield self

    @property
    def content(self) -> _Session:
        return self

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        for at in range(0, len(self.body), size):
            yield self.body[at : at + size]


def _require_honest(found: anchor.Anchor | None) -> None:
    if found is not None:
        assert 5 <= found.height <= _HONEST, f"an anchor at block {found.height}, which no honest node has"
        assert found.block_hash == _hash_of(found.height), "a liar's anchor"
        assert len(set(found.servers) - {"liar"}) >= 1, "an anchor that no honest node stands behind"


def _refused(error: NodeUnreachable) -> str:
    assert len(error.message) < 1_000, "a node's words are not cut short"
    return label_of(error)


def _status(first: int, last: int) -> dict[str, Any]:
    info = {"earliest_block_height": str(first), "latest_block_height": str(last), "latest_app_hash": "AB"}
    return {"sync_info": {**info, "catching_up": False}}


def _commit(height: int) -> dict[str, Any]:
    return {"signed_header": {"commit": {"block_id": {"hash": _hash_of(height)}}}}


def _hash_of(height: int) -> str:
    return f"{height:064X}"


def _said(result: dict[str, Any]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode()
