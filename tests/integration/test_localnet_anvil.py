"""The local EVM chain: a real anvil."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from quorate.errors import SetupError
from quorate.localnet.anvil import CHAIN_ID, anvil, share_of
from quorate.localnet.processes import ChildExited, Supervisor
from quorate.units import Address, Wei

pytestmark = [pytest.mark.integration, pytest.mark.needs("evm")]
SOMEBODY = Address("0x000000000000000000000000000000000000dEaD")


@pytest.fixture
def binary() -> Path:
    """Where ./quorate has put anvil."""
    return Path(os.environ["QUORATE_ANVIL"])


async def test_it_starts_gives_money_moves_time_and_is_gone_afterwards(tmp_path: Path, binary: Path) -> None:
    async with Supervisor(tmp_path) as supervisor:
        async with anvil(supervisor, binary) as chain:
            assert int(await chain.rpc("eth_chainId"), 16) == CHAIN_ID
            await chain.set_balance(SOMEBODY, Wei(10**18))
            assert int(await chain.rpc("eth_getBalance", SOMEBODY, "latest"), 16) == 10**18
            before = await chain.timestamp()
            assert await chain.move_time(86_400) >= before + 86_400
            assert await chain.move_time_to(before + 200_000) == before + 200_000
            with pytest.raises(SetupError, match="anvil refused evm_setNextBlockTimestamp"):
                await chain.move_time_to(before)
        assert not chain.child.is_running


async def test_who_joins_gets_as_much_gas_money_as_the_others_have(tmp_path: Path, binary: Path) -> None:
    newcomer, poor = Address("0x" + "1" * 40), Address("0x" + "2" * 40)
    async with Supervisor(tmp_path) as supervisor, anvil(supervisor, binary) as chain:
        await chain.set_balance(SOMEBODY, Wei(10**18))
        assert await share_of(chain.url, newcomer, [poor, SOMEBODY]) == 10**18
        assert int(await chain.rpc("eth_getBalance", newcomer, "latest"), 16) == 10**18
        url = chain.url
    assert await share_of(url, newcomer, [SOMEBODY]) == 0, "a chain that is gone gives nothing, and no error"


async def test_a_chain_that_is_not_ours_to_give_from_gives_nothing() -> None:
    async def refuse(request: web.Request) -> web.Response:
        method = (await request.json())["method"]
        known = {"eth_getBalance": {"result": "0x5"}}
        return web.json_response(known.get(method, {"error": {"code": -32601, "message": "no such method"}}))

    application = web.Application()
    application.router.add_post("/", refuse)
    async with TestServer(application) as server:
        assert await share_of(str(server.make_url("/")), SOMEBODY, [SOMEBODY]) == 0


async def test_two_run_beside_each_other(tmp_path: Path, binary: Path) -> None:
    async with (
        Supervisor(tmp_path) as supervisor,
        anvil(supervisor, binary) as one,
        anvil(supervisor, binary, chain_id=5) as other,
    ):
        assert one.url != other.url
        assert (one.chain_id, other.chain_id) == (CHAIN_ID, 5)


async def test_a_busy_port_is_refused_before_anything_starts(tmp_path: Path, binary: Path) -> None:
    async with Supervisor(tmp_path) as supervisor, anvil(supervisor, binary) as first:
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(SetupError, match=f"port {port}"):
            async with anvil(supervisor, binary, port=port):
                pass
        assert len(supervisor.children) == 1


async def test_its_death_is_an_error_that_names_it(tmp_path: Path, binary: Path) -> None:
    with pytest.raises(ChildExited, match="anvil ended by itself"):
        async with Supervisor(tmp_path) as supervisor, anvil(supervisor, binary) as chain:
            os.kill(chain.child.pid, signal.SIGKILL)
            while True:
                await chain.timestamp()
