"""A running service is interrupted from outside: four real agents and validators, asked by their control sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorate.cli.ask import request
from quorate.errors import ConfigError
from quorate.host.control import tell
from quorate.localnet.run_dir import run_dir
from quorate.localnet.snapshot import agent_files, look
from tests.local_run import agents_of, project, until_sequence

pytestmark = [pytest.mark.integration, pytest.mark.needs("cometbft")]
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


@pytest.mark.parametrize("pause_s", [600, 0.05], ids=["asleep", "busy"])
async def test_a_quorum_interrupts_a_service_that_comes_back_and_fewer_do_not(tmp_path: Path, pause_s: float) -> None:
    folder = project(tmp_path, "halting", SERVICE)
    with run_dir(tmp_path) as run:
        async with agents_of(folder, run, config={"pause_s": pause_s}) as (quorum, _):
            files = agent_files(run)
            part = await until_sequence(run, 3)

            two = await request(files, "HALT", ["agent-1", "agent-2"], wait_s=3)
            assert (two.happened, two.asking, two.needed) == (False, ("agent-1", "agent-2"), 3)
            going_on = (await look(run)).part
            assert going_on is not None
            assert going_on.round in ("CountRound", "PauseRound")
            assert (going_on.sequence > part.sequence + 10) == (pause_s < 1)

            third = await request(files, "HALT", ["agent-3"], wait_s=30)
            assert third.happened
            back = await until_sequence(run, third.sequence + 1)
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
