"""Members of a running service change: real agents in open-aea with their validators, told by control sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quorate.cli.members import _until_level, make, roster
from quorate.errors import ConfigError
from quorate.host.control import tell
from quorate.localnet.joiner import joiner
from quorate.localnet.run_dir import RunDir, run_dir
from quorate.localnet.snapshot import agent_files
from quorate.members import Change
from tests.local_run import agents_of, project, until_sequence

pytestmark = [pytest.mark.integration, pytest.mark.needs("cometbft")]
SERVICE = """
from dataclasses import dataclass

from quorate import Context, Service, agree, keep, same
from quorate.members import Membership
from quorate.rounds import membership


@dataclass(frozen=True)
class Counting(Membership):
    total: int = keep(0)


@agree(same("total"))
async def count(ctx: Context, state: Counting) -> int:
    await ctx.sleep(0.2)
    return state.total + 1


service = Service(
    "counting", state=Counting, start=count, otherwise=count,
    interrupts=(membership.interrupt,), transitions={**membership.transitions, (count, "DONE"): count},
)
"""


async def _moves_on(run: RunDir, rounds: int = 3) -> None:
    await until_sequence(run, (await until_sequence(run, 1)).sequence + rounds)


async def test_an_agent_joins_and_another_leaves_and_ends_with_a_sentence(tmp_path: Path) -> None:
    folder = project(tmp_path, "counting", SERVICE, agents=3)
    with run_dir(tmp_path) as run:
        async with agents_of(folder, run, 3) as (quorum, supervisor):
            files = agent_files(run)
            await until_sequence(run, 3)
            before = await roster(files)
            assert (len(before.members), before.quorum, before.can_change) == (3, 3, True)

            async with joiner(supervisor, run, tmp_path, files, before.members) as new:
                for file in files:
                    await tell(file.control, do="welcome", node=new.member.node_id)
                await _until_level(files, new.file)
                seen = await roster([*files, new.file])
                assert seen.following == ("agent-4",)
                four = await make(files, Change(join=new.member), 120)
                assert {one.address for one in four.members} == {*quorum.addresses, new.file.me}
                assert four.quorum == 3
                await _moves_on(run)

                with pytest.raises(ConfigError, match="is to join, but is a member"):
                    await tell(files[0].control, do="approve", change={"join": vars(new.member), "leave": None})
                with pytest.raises(ConfigError, match="no change of members"):
                    await tell(files[0].control, do="approve", change={"leave": 7})

                three = await make([*files, new.file], Change(leave=files[1].me), 120)
                assert files[1].me not in {one.address for one in three.members}
                child = quorum.child("agent-2")
                async with asyncio.timeout(60):
                    assert await child.wait() == 0
                assert any("is no member of" in line for line in child.last_lines())
                await _moves_on(run)
                assert (await roster([*files, new.file])).silent == ("agent-2",)
