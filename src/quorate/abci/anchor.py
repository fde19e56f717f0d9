"""Where the trust of a wiped node comes from: a header that more members report than could lie.

CometBFT's state sync wants a height and a block hash to trust, and the RPC addresses of at least two nodes. An agent
without state asks its peers' nodes: f + 1 equal answers (of 3f + 1 members) hold at least one honest one. So each
address must be known to lead to another member's node: a unix socket on one machine, a private network between several.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from quorate.abci.rpc import NodeUnreachable, ask, number, read
from quorate.fsm.votes import quorum_of

__all__ = ["Anchor", "find_anchor"]

_TIMEOUT_S = 2.0
_HASH = re.compile("[0-9A-F]{64}")
_TRUST_PERIOD = "168h"
_DISCOVERY = "1s"  # the least that our build of CometBFT takes (third_party/cometbft/constants.toml)


@dataclass(frozen=True)
class Anchor:
    """A header to trust, and whom to ask for the rest."""

    height: int
    block_hash: str
    """Upper-case hex."""
    servers: tuple[str, ...]

    def settings(self) -> dict[str, str]:
        """For CometBFT's environment: they turn state sync on for this start."""
        servers = self.servers if len(self.servers) > 1 else self.servers * 2  # CometBFT wants two; there may be one
        return {
            "CMT_STATESYNC_ENABLE": "true",
            "CMT_STATESYNC_RPC_SERVERS": ",".join(servers),
            "CMT_STATESYNC_TRUST_HEIGHT": str(self.height),
            "CMT_STATESYNC_TRUST_HASH": self.block_hash,
            "CMT_STATESYNC_TRUST_PERIOD": _TRUST_PERIOD,
            "CMT_STATESYNC_DISCOVERY_TIME": _DISCOVERY,
        }


async def find_anchor(servers: Sequence[str], members: int, reach: int) -> Anchor | None:
    """A header about `reach` blocks old (or the oldest that all have) that f + 1 of `servers` report alike.

    `servers` are the RPC addresses of other members' nodes (`unix:///...`, `http://...`). None where too few answer,
    or disagree, or the chain is no longer than `reach`: then there is nothing to skip.
    """
    needed = members - quorum_of(members) + 1
    spans = dict(zip(servers, await asyncio.gather(*map(_span, servers)), strict=True))
    known = {server: span for server, span in spans.items() if span is not None}
    if len(known) < needed:
        return None
    latest = sorted(last for _, last in known.values())[-needed]  # at least one honest node is this far
    height = max(latest - reach, sorted(first for first, _ in known.values())[needed - 1])
    able = [server for server, (first, last) in known.items() if first <= height <= last]
    if latest <= reach:
        return None
    hashes = dict(zip(able, await asyncio.gather(*(_hash(server, height) for server in able)), strict=True))
    best, count = max(Counter(filter(None, hashes.values())).items(), key=lambda item: item[1], default=("", 0))
    if count < needed:
        return None
    return Anchor(height, best, tuple(server for server, found in hashes.items() if found == best))


async def _span(server: str) -> tuple[int, int] | None:
    """The first and the last block that a node has."""
    try:
        return read(await _ask(server, "status", {}), "its blocks", _blocks)
    except NodeUnreachable:
        return None


async def _hash(server: str, height: int) -> str:
    """The hash of the block at `height`; empty where the node does not tell."""
    try:
        return read(await _ask(server, "commit", {"height": str(height)}), "a block", _block_hash)
    except NodeUnreachable:
        return ""


def _blocks(said: Any) -> tuple[int, int]:
    info = said["sync_info"]
    return number(info["earliest_block_height"]), number(info["latest_block_height"])


def _block_hash(said: Any) -> str:
    found = said["signed_header"]["commit"]["block_id"]["hash"]
    if not isinstance(found, str) or not _HASH.fullmatch(found):
        raise ValueError(f"{found!r:.80} is no hash of a block")
    return found


async def _ask(server: str, method: str, params: dict[str, str]) -> dict[str, Any]:
    path = server.removeprefix("unix://") if server.startswith("unix://") else None
    connector = aiohttp.UnixConnector(path) if path else aiohttp.TCPConnector()
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(_TIMEOUT_S)) as session:
        return await ask(session, "http://node/" if path else server, method, params)
