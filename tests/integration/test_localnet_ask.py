"""A running service is interrupted from outside: four real agents and validators, asked by their control sockets."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from quorate.chain.wallet import Wallet
from quorate.cli._template import agent_files as agent_files_of
from quorate.cli.ask import request
from quorate.errors import ConfigError
from quorate.host.control import tell
from quorate.localnet.agents import agents
from quorate.localnet.processes import Supervisor
from quorate.localnet.run_dir import run_dir
from quorate.localnet.snapshot import agent_files, look

pytestmark = [pytest.mark.integration, pytest.mark.needs("cometbft")]
ROOT = Path(__file__).parents[2]
SERVICE = """
from dataclasses import dataclass

from quorate import BACK, ROUND_TIMEOUT, Context, Interrupt, Service, State, agree, keep, same
from quorate.rounds import pause, register


@dataclass(frozen=True)
class Config:
    pause_s: float = 600


@dataclass(frozen=True)
class Halting(State):
    total: int = keep(0)
    note: str = ""


@agree(same("total"))
async def count(ctx: Context, state: Halting) -> int:
    return state.total + 1


@agree(same("note"))
async def halted(ctx: Context, state: Halting) -> str:
    await ctx.sleep(1)
    return "looked after"


@agree(same("note"))
async def ended(ctx: Context, state: Halting) -> str:
    return ""


service = Service(
    "halting", state=Halting, config=Config, start=register, otherwise=pause, final=(ended,),
    interrupts=(Interrupt("HALT", halted), Interrupt("END", ended)),
    transitions={
        (register, "DONE"): count, (register, ROUND_TIMEOUT): register, (count, "DONE"): pause, (pause, "DONE"): count,
        (halted, "DONE"): BACK, (halted, "NO_MAJORITY"): halted, (halted, ROUND_TIMEOUT): halted,
    },
)
"""


def project(root: Path) -> Path:
    """A checkout with a service that can be interrupted."""
    (root / "src").symlink_to(ROOT / "src")
    folder, package = root / "services/halting", root / "agents/halting"
    files = {"service.py": SERVICE, "service.yaml": "description: It can be interrupted.\nagents: 4\n"}
    for where, texts in ((folder, files), (package, agent_files_of("halting"))):
        where.mkdir(parents=True)
        for name, text in texts.items():
            (where / name).write_text(text)
    return folder


@pytest.mark.parametrize("pause_s", [600, 0.05], ids=["asleep", "busy"])
async def test_a_quorum_interrupts_a_service_that_comes_back_and_fewer_do_not(tmp_path: Path, pause_s: float) -> None:
    folder = project(tmp_path)
    with run_dir(tmp_path) as run:
        async with (
            Supervisor(run.logs) as supervisor,
            agents(
                supervisor,
                run,
                root=tmp_path,
                service=folder,
                wallets=[Wallet.create() for _ in range(4)],
                cometbft=Path(os.environ["QUORATE_COMETBFT"]),
                config={"pause_s": pause_s},
            ) as quorum,
        ):
            files = agent_files(run)
            async with asyncio.timeout(60):
                while not (part := (await look(run)).part) or part.sequence < 3:
                    await asyncio.sleep(0.1)

            two = await request(files, "HALT", ["agent-1", "agent-2"], wait_s=3)
            assert (two.happened, two.asking, two.needed) == (False, ("agent-1", "agent-2"), 3)
            going_on = (await look(run)).part
            assert going_on is not None
            assert going_on.round in ("CountRound", "PauseRound")
            assert (going_on.sequence > part.sequence + 10) == (pause_s < 1)

            third = await request(files, "HALT", ["agent-3"], wait_s=30)
            assert third.happened
            async with asyncio.timeout(30):
                while not (back := (await look(run)).part) or back.sequence <= third.sequence:
                    await asyncio.sleep(0.1)
            assert back.round in ("CountRound", "PauseRound")

            with pytest.raises(ConfigError, match="halting has no interrupt 'HLAT'"):
                await request(files, "HLAT", wait_s=0)
            with pytest.raises(ConfigError, match=r"do is 'sign'; expected one of .*ask, asked, "):
                await tell(files[0].control, do="sign")

            await quorum.kill("agent-4")
            end = await request(files, "END", wait_s=30)
            assert (end.happened, end.round, list(end.silent)) == (True, "EndedRound", ["agent-4"])
            with pytest.raises(ConfigError, match="is at rest in EndedRound"):
                await request(files, "HALT", ["agent-1"], wait_s=0)
