"""Members of a running service change: real agents in open-aea with their validators, told by control sockets."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from quorate.chain.wallet import Wallet
from quorate.cli._template import agent_files as agent_files_of
from quorate.cli.members import _until_level, make, roster
from quorate.errors import ConfigError
from quorate.host.control import tell
from quorate.localnet.agents import agents
from quorate.localnet.joiner import joiner
from quorate.localnet.processes import Supervisor
from quorate.localnet.run_dir import run_dir
from quorate.localnet.snapshot import agent_files, look
from quorate.members import Change

pytestmark = [pytest.mark.integration, pytest.mark.needs("cometbft")]
ROOT = Path(__file__).parents[2]
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


def project(root: Path) -> Path:
    (root / "src").symlink_to(ROOT / "src")
    folder, package = root / "services/counting", root / "agents/counting"
    files = {"service.py": SERVICE, "service.yaml": "description: Its members change.\nagents: 3\n"}
    for where, texts in ((folder, files), (package, agent_files_of("counting"))):
        where.mkdir(parents=True)
        for name, text in texts.items():
            (where / name).write_text(text)
    return folder


async def _moves_on(run: object, rounds: int = 3) -> None:
    first = (await look(run)).part  # type: ignore[arg-type]
    assert first is not None
    async with asyncio.timeout(120):
        while not (part := (await look(run)).part) or part.sequence < first.sequence + rounds:  # type: ignore[arg-type]
            await asyncio.sleep(0.2)


async def test_an_agent_joins_and_another_leaves_and_ends_with_a_sentence(tmp_path: Path) -> None:
    folder = project(tmp_path)
    with run_dir(tmp_path) as run:
        async with (
            Supervisor(run.logs) as supervisor,
            agents(
                supervisor,
                run,
                root=tmp_path,
                service=folder,
                wallets=[Wallet.create() for _ in range(3)],
                cometbft=Path(os.environ["QUORATE_COMETBFT"]),
            ) as quorum,
        ):
            files = agent_files(run)
            async with asyncio.timeout(120):
                while not (part := (await look(run)).part) or part.sequence < 3:
                    await asyncio.sleep(0.2)
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
