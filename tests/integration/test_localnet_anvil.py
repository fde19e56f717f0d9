"""The local EVM chain: a real anvil."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from quorate.errors import SetupError
from quorate.localnet.anvil import CHAIN_ID, anvil
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
