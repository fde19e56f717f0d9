"""Four real agents (open-aea, CometBFT) of hello_world: they go on without one, wait without two, and leave nothing."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate.events import Tailer, occurred
from quorate.localnet._guard import MARKS, Tracked, processes_of, start_time
from quorate.localnet.agents import Agents
from quorate.localnet.run_dir import RunDir, run_dir
from tests.local_run import HELLO_WORLD, ROOT, agents_of

pytestmark = [pytest.mark.integration, pytest.mark.needs("cometbft")]
ENOUGH_S = 60.0
QUIET_S = 4.0  # two periods of hello_world


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    with run_dir(tmp_path) as made:
        yield made


async def settled(tailer: Tailer, who: str, beyond: int) -> int:
    """Wait until this agent has seen a round end whose number is over `beyond`; return the number."""
    async with asyncio.timeout(ENOUGH_S):
        async for event in tailer:
            if (event.who, event.kind) == (who, "settled") and event.get("sequence") > beyond:
                return int(event.get("sequence"))
    raise AssertionError("a tailer does not end by itself")


def following(quorum: Agents) -> Tailer:
    tailer = Tailer()
    for path in quorum.event_files:
        tailer.add(path)
    return tailer


async def test_a_service_outlives_one_agent_waits_for_a_quorum_and_takes_the_dead_back(run: RunDir) -> None:
    async with agents_of(HELLO_WORLD, run, config={"pause_s": 0.5}) as (quorum, supervisor):
        tailer = following(quorum)
        reached = await settled(tailer, "agent-1", 2)

        await quorum.kill("agent-4")
        reached = await settled(tailer, "agent-1", reached + 5)

        await quorum.kill("agent-3")
        await asyncio.sleep(1)
        reached = max([reached, *(event.get("sequence") for event in tailer.rest() if event.kind == "settled")])
        await asyncio.sleep(QUIET_S)
        assert [event for event in tailer.rest() if event.kind == "settled"] == [], "two of four decided something"

        await quorum.start("agent-4")
        await settled(tailer, "agent-4", reached + 2)

        pids = [usage.pid for child in supervisor.usage().values() for usage in child]
        assert len(pids) == 6, "three agents, each with its validator"
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


async def test_what_ends_by_itself_comes_back_and_takes_part_while_the_others_go_on(run: RunDir) -> None:
    async with agents_of(HELLO_WORLD, run, config={"pause_s": 0.5}) as (quorum, supervisor):
        tailer = following(quorum)
        reached = await settled(tailer, "agent-1", 2)
        os.kill(quorum.child("agent-4").pid, signal.SIGKILL)
        (node,) = [one for one in supervisor.usage()["agent-3"] if "--proxy_app" in one.command]
        reached = await settled(tailer, "agent-1", reached + 2)
        reached = await settled(tailer, "agent-4", reached)

        os.kill(node.pid, signal.SIGKILL)
        await occurred(quorum.files["agent-3"].events, "down")
        reached = await settled(tailer, "agent-1", reached + 2)
        await settled(tailer, "agent-3", reached)


A_COMMAND = """
import sys
from pathlib import Path
from quorate.cli.run import _run
from quorate.localnet import processes
processes.run(_run(Path(sys.argv[1]), Path("services/hello_world"), Path(sys.argv[2]), 4, None, False))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_the_command_ends_no_agent_no_validator_and_no_folder_stays(number: signal.Signals) -> None:
    command = [sys.executable, "-P", "-c", A_COMMAND, str(ROOT), os.environ["QUORATE_COMETBFT"]]
    mark = f"test-{secrets.token_hex(8)}"
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", MARKS: mark}
    running = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    try:
        lines = iter(running.stdout.readline, "")
        assert any("elect" in line for line in lines), "it never came to its second round"
        ours = Tracked(running.pid, start_time(running.pid), mark)
        commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_of([ours])]
        assert len([text for text in commands if "quorate.host" in text]) == 4
        assert len([text for text in commands if "--proxy_app" in text]) == 4
        (scratch,) = {Path(text.split("\0")[-2]).parent for text in commands if "quorate.host" in text}
        running.send_signal(number)
        running.wait(timeout=30)
        deadline = time.monotonic() + 10
        while (processes_of([ours]) or scratch.exists()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_of([ours]) == []
        assert not scratch.exists()
    finally:
        running.kill()
        running.wait()
