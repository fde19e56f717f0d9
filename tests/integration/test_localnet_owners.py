"""A service that owns a Safe changes its members: real agents, validators and anvil; the Safe tells who owns it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quorate.chain import Safe
from quorate.cli.members import _until_level, make, roster
from quorate.host.agent_file import EvmSettings
from quorate.host.control import tell
from quorate.localnet.joiner import joiner
from quorate.localnet.run_dir import run_dir
from quorate.localnet.snapshot import agent_files
from quorate.members import Change
from quorate.units import Address
from tests.integration.evm_chain import local_chain, rich_wallet
from tests.local_run import agents_of, project, until_sequence

pytestmark = [pytest.mark.integration, pytest.mark.needs("cometbft", "evm")]
NOBODY = Address("0x" + "1" * 40)
SERVICE = """
from dataclasses import dataclass

from quorate import Context, Service, agree, keep, same
from quorate.rounds import owners
from quorate.rounds.owners import OwnedMembership


@dataclass(frozen=True)
class Owning(OwnedMembership):
    total: int = keep(0)


@agree(same("total"))
async def count(ctx: Context, state: Owning) -> int:
    await ctx.sleep(0.3)
    return state.total + 1


service = Service(
    "owning", state=Owning, start=count, otherwise=count,
    interrupts=owners.interrupts, transitions={**owners.transitions, (count, "DONE"): count},
)
"""


async def test_owners_and_threshold_follow_a_join_and_a_leave_while_rounds_go_on(tmp_path: Path) -> None:
    folder = project(tmp_path, "owning", SERVICE)
    wallets = [rich_wallet(number) for number in range(4)]
    async with local_chain(tmp_path / "evm") as evm:
        safe = await Safe.deploy(evm.chain, rich_wallet(9), [wallet.address for wallet in wallets], 3)
        settings = EvmSettings(
            url=evm.node.url, chain_id=evm.chain.chain_id, safe=safe.address, governor=NOBODY, token=NOBODY,
            timelock=NOBODY, registry=NOBODY, confirmations=0,
        )  # fmt: skip
        with run_dir(tmp_path) as run:
            async with agents_of(folder, run, wallets, evm=settings) as (quorum, supervisor):
                await until_sequence(run, 3)
                files = agent_files(run)
                before = await roster(files)
                async with joiner(supervisor, run, tmp_path, files, before.members) as new:
                    for file in files:
                        await tell(file.control, do="welcome", node=new.member.node_id)
                    await _until_level(files, new.file)
                    five = await make(files, Change(join=new.member), 240)
                    assert len(five.members) == 5
                    await safe.check([one.address for one in five.members], 4)
                    assert await safe.nonce() == 1, "one transaction of the Safe"

                    four = await make([*files, new.file], Change(leave=files[1].me), 240)
                    assert len(four.members) == 4
                    await safe.check([one.address for one in four.members], 3)
                    assert await safe.nonce() == 2
                    async with asyncio.timeout(120):
                        assert await quorum.child("agent-2").wait() == 0
                    await until_sequence(run, (await until_sequence(run, 1)).sequence + 3)
