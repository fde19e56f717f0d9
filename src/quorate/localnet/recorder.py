"""Records the decided blocks of a running network from one of its nodes: from the first one on, or from now on."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quorate.abci import Genesis, NodeUnreachable
from quorate.errors import ConfigError
from quorate.fsm import Service
from quorate.localnet.rpc import NodeRpc
from quorate.localnet.transcript import Decided, Transcript, annotate, first_replica

__all__ = ["record", "stored_state"]

_ABSENT = 1  # CometBFT's BlockIDFlag: the validator's vote is not in the commit
_MOST_VALIDATORS = 100
_POLL_S = 0.5


def stored_state(path: Path) -> bytes:
    """The replicated state that the agent whose state.db is at `path` has committed; read only, while it runs."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        (value,) = database.execute("select value from state").fetchone()
    if value is None:
        raise ConfigError(f"{path} holds no state yet", fix="Ask again when the network has made its first block.")
    return bytes(value)


async def record(
    socket: Path,
    genesis: Genesis,
    service: Service,
    periods: int | None = None,
    start: bytes | None = None,
    older: Sequence[Service] = (),
) -> Transcript:
    """The blocks that the node behind `socket` holds, checked against this code, up to the end of `periods` periods.

    Waits until the network has got there. With `start` (`stored_state`) the recording begins with the block after it.
    `older` are the versions of the service that decided blocks before `service` did.

    `ConfigError` where the first blocks are pruned, or the network runs another version; `NodeUnreachable` where the
    node does not answer.
    """
    begun = None if start is None else first_replica(start, service, older)
    until = (begun.period.state.period if begun else 0) + (periods or 0)
    async with NodeRpc(socket, timeout_s=10) as node:
        while periods is not None and (await node.application())["period"] < until:  # noqa: ASYNC110  (another process)
            await asyncio.sleep(_POLL_S)
        await asyncio.sleep(_POLL_S)  # for the block whose header proves what the last one led to
        sync = (await node.ask("status"))["sync_info"]
        first, last = int(sync["earliest_block_height"]), int(sync["latest_block_height"])
        wanted = begun.height + 1 if begun else 1
        if first > wanted:
            raise ConfigError(f"the node has dropped the blocks before {first}", fix="Record from now on: --from-now")
        blocks = []
        validators: tuple[bytes, list[str]] = (b"", [])
        following = await node.ask("block", height=str(wanted))
        for height in range(wanted, last):  # what the last block led to stands in the header of none yet
            this, following = following, await node.ask("block", height=str(height + 1))
            signed_by = this["block"]["last_commit"]["signatures"]
            if signed_by:
                validators = await _validators_of(node, height - 1, validators)
            blocks.append(_decided(this, signed_by, validators[1], following["block"]["header"]["app_hash"]))
    transcript = Transcript(service.name, genesis, service.spec(), tuple(blocks), start=start)
    return annotate(transcript, service, periods, older)


async def _validators_of(node: NodeRpc, height: int, known: tuple[bytes, list[str]]) -> tuple[bytes, list[str]]:
    """The validators that signed block `height`, in the order of its commit; asked anew where their set changed."""
    commit = (await node.ask("commit", height=str(height)))["signed_header"]
    now = str(commit["header"]["validators_hash"]).encode()
    if now == known[0]:
        return known
    found = await node.ask("validators", height=str(height), per_page=str(_MOST_VALIDATORS))
    if int(found["total"]) > _MOST_VALIDATORS:
        raise NodeUnreachable(f"{found['total']} validators; at most {_MOST_VALIDATORS} can be asked for")
    return now, [str(one["address"]) for one in found["validators"]]


def _decided(found: dict[str, Any], signatures: list[dict[str, Any]], validators: list[str], after: str) -> Decided:
    block = found["block"]
    absent = [who for who, one in zip(validators, signatures, strict=False) if one["block_id_flag"] == _ABSENT]
    present = [who for who, one in zip(validators, signatures, strict=False) if one["block_id_flag"] != _ABSENT]
    return Decided(
        height=int(block["header"]["height"]),
        time_ms=_milliseconds(block["header"]["time"]),
        txs=tuple(base64.b64decode(tx) for tx in block["data"]["txs"] or ()),
        absent=tuple(absent),
        present=tuple(present),
        app_hash=after.lower(),
        hash=str(found["block_id"]["hash"]).lower(),
        misbehaved=tuple(_convicted(one["value"]) for one in block["evidence"]["evidence"] or ()),
    )


def _convicted(evidence: dict[str, Any]) -> str:
    """The validator in CometBFT's evidence of a double vote."""
    if "vote_a" not in evidence:
        raise ConfigError("a block holds evidence of an attack on a light client; it cannot be recorded")
    return str(evidence["vote_a"]["validator_address"])


def _milliseconds(time: str) -> int:
    """RFC 3339 with up to nine digits of a second, cut to milliseconds as the application does."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    seconds = int(datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp())
    return seconds * 1000 + int(fraction.ljust(9, "0")[:9] or 0) // 1_000_000
