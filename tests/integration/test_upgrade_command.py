"""`./quorate upgrade` on real agents (open-aea, CometBFT): asked, stopped, and started again with the new code."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quorate.cli.upgrade import change
from quorate.errors import ConfigError
from quorate.host.agent_file import AgentFile
from quorate.host.control import tell
from quorate.localnet.run_dir import run_dir
from tests.local_run import HELLO_WORLD, ROOT, agents_of

pytestmark = [pytest.mark.integration, pytest.mark.needs("cometbft")]
NEXT = ROOT / "tests/upgrades/next/hello_world"


async def _until_settled(file: AgentFile, more: int) -> None:
    async def blocks() -> int:
        return int((await tell(file.control, do="version"))["height"])

    aim = await blocks() + more
    async with asyncio.timeout(120):
        while await blocks() < aim:
            await asyncio.sleep(0.2)


async def test_all_agents_of_a_run_change_to_the_new_code_and_go_on(tmp_path: Path) -> None:
    with run_dir(tmp_path) as run:
        async with agents_of(HELLO_WORLD, run, config={"pause_s": 0.5}) as (quorum, _):
            files = list(quorum.files.values())
            await _until_settled(files[0], 4)
            with pytest.raises(ConfigError, match="no agent of this run is named agent-9"):
                await change(files, ROOT, NEXT, ("agent-9",), wait_s=0)
            few = await change(files, ROOT, NEXT, ("agent-1",), wait_s=2)
            assert (few.running, few.asking, few.needed, few.due) == ((), 1, 3, 0)
            found = await change(files, ROOT, NEXT, wait_s=180)
            assert found.waiting == ()
            assert (found.version, len(found.running)) == (2, 4)
            said = [await tell(file.control, do="version") for file in files]
            assert {(one["version"], one["began"]) for one in said} == {(2, found.due)}
            await _until_settled(files[3], 6)
            again = [AgentFile.load(file.home) for file in files]
            assert {file.next for file in again} == {"tests/upgrades/next/hello_world"}
            assert (await change(again, ROOT, NEXT, wait_s=30)).waiting == (), "said twice, it is as it was"
