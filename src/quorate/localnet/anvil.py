"""A local EVM chain: anvil as a child process, and the few things that only a local chain can do (money, time)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from quorate.errors import SetupError
from quorate.localnet.ports import LOOPBACK, held_ports, require_free
from quorate.localnet.processes import Child, Supervisor
from quorate.units import Address, Wei

__all__ = ["CHAIN_ID", "Anvil", "anvil", "share_of"]

CHAIN_ID = 31337
_READY_S = 30.0  # it answers 0.1 s after its start on a free machine
_POLL_S = 0.05
_REQUEST_S = 30.0
_SHARE_S = 5.0


@dataclass(frozen=True)
class Anvil:
    """A running local chain. It makes a block for every transaction at once, unless `block_time_s` was given."""

    url: str
    chain_id: int
    child: Child
    _session: aiohttp.ClientSession

    async def rpc(self, method: str, *params: Any) -> Any:
        """Ask the node; raises `SetupError` with its own words if it refuses."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        async with self._session.post(self.url, json=body) as response:
            answer = await response.json()
        if "error" in answer:
            raise SetupError(f"anvil refused {method}{params}: {answer['error'].get('message', answer['error'])}")
        return answer["result"]

    async def set_balance(self, account: Address, balance: Wei) -> None:
        """Give the account this much of the chain's money."""
        await self.rpc("anvil_setBalance", account, hex(balance))

    async def timestamp(self) -> int:
        """The time of the latest block, in seconds since 1970."""
        block = await self.rpc("eth_getBlockByNumber", "latest", False)
        return int(block["timestamp"], 16)

    async def move_time(self, seconds: int) -> int:
        """Let `seconds` pass on the chain, make one block, and return its time."""
        await self.rpc("evm_increaseTime", hex(seconds))
        await self.rpc("evm_mine")
        return await self.timestamp()

    async def move_time_to(self, timestamp: int) -> int:
        """Make one block at `timestamp`, which must be later than the latest block's, and return its time."""
        await self.rpc("evm_setNextBlockTimestamp", hex(timestamp))
        await self.rpc("evm_mine")
        return await self.timestamp()


@asynccontextmanager
async def anvil(
    supervisor: Supervisor,
    binary: Path,
    *,
    port: int | None = None,
    chain_id: int = CHAIN_ID,
    block_time_s: int | None = None,
) -> AsyncIterator[Anvil]:
    """Start anvil on `port`, or on a free one, and wait until it answers; stop it at the end of the block."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_REQUEST_S)) as session:
        with held_ports(0 if port else 1) as free:
            chosen = require_free(port) if port else free[0]
            argv: list[str | Path] = [binary, "--host", LOOPBACK, "--port", str(chosen), "--chain-id", str(chain_id)]
            argv += ["--block-time", str(block_time_s)] if block_time_s else []
            child = await supervisor.spawn("anvil", argv)
            node = Anvil(f"http://{LOOPBACK}:{chosen}", chain_id, child, session)
            await _answers(node)
        yield node
        await child.stop()  # after an error the supervisor does it, and says so if anvil had ended by itself


async def share_of(url: str, account: Address, others: Sequence[Address]) -> Wei:
    """Give `account` as much of the chain's money as the richest of `others` has; 0 where that cannot be given away.

    It can where anvil answers at `url`. Any other chain refuses the request, and nothing has changed.
    """
    timeout = aiohttp.ClientTimeout(total=_SHARE_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def ask(method: str, *params: str) -> Any:
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            async with session.post(url, json=body) as response:
                return await response.json(content_type=None)

        try:
            share = Wei(max([int((await ask("eth_getBalance", one, "latest"))["result"], 16) for one in others]))
            given = await ask("anvil_setBalance", account, hex(share))
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):  # dead, or no node: `why` says so
            return Wei(0)
    return Wei(0) if not isinstance(given, dict) or "error" in given else share


async def _answers(node: Anvil) -> None:
    try:
        async with asyncio.timeout(_READY_S):
            while not await _is_up(node):  # noqa: ASYNC110  (another process: it can only be asked)
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise SetupError(
            f"anvil does not answer at {node.url} after {_READY_S:.0f} s", fix=f"its output is in {node.child.log}"
        ) from None
    actual = int(await node.rpc("eth_chainId"), 16)
    if actual != node.chain_id:
        raise SetupError(f"chain {actual} answers at {node.url}; expected our own anvil with chain id {node.chain_id}")


async def _is_up(node: Anvil) -> bool:
    try:
        await node.rpc("eth_chainId")
    except aiohttp.ClientConnectionError:
        return False
    return True
