"""The homes of a service's agents, and their processes: here a small program in the host's place."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from quorate.abci import Genesis
from quorate.chain.wallet import Wallet
from quorate.errors import ConfigError, SetupError
from quorate.events import Event, Tailer
from quorate.host.agent_file import AgentFile
from quorate.loader import load_service
from quorate.localnet import crew
from quorate.localnet.agents import Agents, agents, command_of
from quorate.localnet.crew import Crew
from quorate.localnet.processes import ChildExited, Supervisor
from quorate.localnet.run_dir import RunDir, run_dir

ROOT = Path(__file__).parents[2]
HELLO = Path("services/hello_world")
SAYS_READY = """
import json, os, sys, time
home = sys.argv[1]
events = json.load(open(home + "/agent.json"))["events"]
assert os.environ["QUORATE_PASSPHRASE"]
open(events, "a").write(json.dumps({"t": time.time(), "who": "x", "kind": "ready"}) + "\\n")
time.sleep(1000)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    with run_dir(tmp_path) as made:
        yield made


@asynccontextmanager
async def two_agents(supervisor: Supervisor, run: RunDir, program: str = SAYS_READY, service: Path = HELLO):  # type: ignore[no-untyped-def]
    """Two agents whose host is `program`."""
    wallets = [Wallet.create(), Wallet.create()]
    async with agents(
        supervisor, run, root=ROOT, service=service, wallets=wallets, cometbft=Path("/bin/true"), host=("-c", program)
    ) as quorum:
        yield quorum, wallets


async def test_every_agent_gets_a_home_that_the_host_can_read(run: RunDir) -> None:
    async with Supervisor(run.logs) as supervisor, two_agents(supervisor, run) as (quorum, wallets):
        assert quorum.addresses == tuple(wallet.address for wallet in wallets)
        assert quorum.names == {wallets[0].address: "agent-1", wallets[1].address: "agent-2"}
        for name, file in quorum.files.items():
            assert AgentFile.load(file.home) == file
            assert file.name == name
            genesis = Genesis.load(file.comet_home)
            genesis.check(load_service(ROOT / HELLO))
            assert set(genesis.addresses) == set(quorum.addresses)
            assert stat.S_IMODE(file.keystore.stat().st_mode) == 0o600


async def test_the_passphrase_opens_the_keystores_and_is_in_no_file(run: RunDir) -> None:
    async with Supervisor(run.logs) as supervisor, two_agents(supervisor, run) as (quorum, wallets):
        environment = Path(f"/proc/{quorum.child('agent-1').pid}/environ").read_bytes().decode().split("\0")
        (passphrase,) = [item.partition("=")[2] for item in environment if item.startswith("QUORATE_PASSPHRASE=")]
        assert Wallet.from_keystore(quorum.files["agent-1"].keystore, passphrase) == wallets[0]
        written = [path for folder in (run.path, run.scratch) for path in folder.rglob("*") if path.is_file()]
        assert not [path for path in written if passphrase.encode() in path.read_bytes()]
        command = Path(f"/proc/{quorum.child('agent-1').pid}/cmdline").read_bytes()
        assert passphrase.encode() not in command


async def test_a_killed_agent_is_told_of_and_can_be_started_again(run: RunDir) -> None:
    async with Supervisor(run.logs) as supervisor, two_agents(supervisor, run) as (quorum, _):
        first = quorum.child("agent-1").pid
        await quorum.kill("agent-1")
        await quorum.start("agent-1")
        assert quorum.child("agent-1").pid != first
        assert kinds(quorum, "agent-1") == ["ready", "down", "ready"]
        assert kinds(quorum, "agent-2") == ["ready"]


async def test_an_agent_that_ends_by_itself_is_told_of_and_comes_back_while_the_others_go_on(
    run: RunDir, quick: None
) -> None:
    async with Supervisor(run.logs) as supervisor, two_agents(supervisor, run) as (quorum, _):
        first, other = quorum.child("agent-1").pid, quorum.child("agent-2").pid
        for times in (1, 2):
            os.kill(quorum.child("agent-1").pid, signal.SIGKILL)
            await until(lambda n=times: kinds(quorum, "agent-1").count("ready") == n + 1)  # type: ignore[misc]
        assert kinds(quorum, "agent-1") == ["ready", "down", "ready", "down", "ready"]
        down = events(quorum, "agent-1")[3].fields
        assert down == {"how": "killed by SIGKILL", "again_s": 0.05}, "it was ready meanwhile: no longer pause"
        assert quorum.child("agent-1").pid != first
        assert quorum.child("agent-2").pid == other


async def test_an_agent_that_ends_again_before_it_is_ready_waits_longer_each_time(run: RunDir, quick: None) -> None:
    breaks = "import os, sys\nif os.path.exists(sys.argv[1] + '/broken'): sys.exit(3)\n"
    async with Supervisor(run.logs) as supervisor, two_agents(supervisor, run, breaks + SAYS_READY) as (quorum, _):
        (quorum.files["agent-1"].home / "broken").touch()
        os.kill(quorum.child("agent-1").pid, signal.SIGKILL)
        await until(lambda: kinds(quorum, "agent-1").count("down") == 4)
        downs = [event for event in events(quorum, "agent-1") if event.kind == "down"]
        assert [down.get("how") for down in downs] == ["killed by SIGKILL", *["exit code 3"] * 3]
        assert [down.get("again_s") for down in downs] == [0.05, 0.1, 0.2, 0.2], "up to the longest"


async def test_a_fault_that_ends_all_agents_ends_the_run_and_is_told(run: RunDir, quick: None) -> None:
    program = SAYS_READY.replace("time.sleep(1000)", "time.sleep(0.3); raise SystemExit('a bug in an act')")
    with pytest.raises(ChildExited, match="a bug in an act"):
        async with Supervisor(run.logs) as supervisor, two_agents(supervisor, run, program):
            await asyncio.sleep(10)


async def test_an_agent_that_has_left_its_service_stays_away(run: RunDir, quick: None) -> None:
    leaves = "open(events, 'a').write(json.dumps({'t': time.time(), 'who': 'x', 'kind': 'left'}) + chr(10)); sys.exit()"
    program = SAYS_READY.replace("time.sleep(1000)", f"if home.endswith('a2'): {leaves}\ntime.sleep(1000)")
    async with Supervisor(run.logs) as supervisor, two_agents(supervisor, run, program) as (quorum, _):
        await quorum.child("agent-2").wait()
        await asyncio.sleep(0.2)
        assert kinds(quorum, "agent-2") == ["ready", "left"]
        assert quorum.child("agent-1").is_running


async def test_an_agent_that_ends_before_it_is_ready_is_an_error_with_its_words(run: RunDir) -> None:
    with pytest.raises(ChildExited, match="no such keystore"):
        async with (
            Supervisor(run.logs) as supervisor,
            two_agents(supervisor, run, "raise SystemExit('no such keystore')"),
        ):
            pass


async def test_an_agent_that_is_never_ready_is_named(run: RunDir) -> None:
    async with Supervisor(run.logs) as supervisor, two_agents(supervisor, run) as (quorum, _):
        slow = ("-c", "import time; print('thinking', flush=True); time.sleep(1000)")
        command = command_of(quorum.files["agent-2"], ROOT, slow, "x")
        with pytest.raises(SetupError, match=r"agent-2 is not ready after 0 s; its last lines:\s+thinking"):
            await Agents(quorum.files, Crew(supervisor, {"agent-2": command})).start("agent-2", ready_s=0.4)


async def test_a_service_outside_the_project_is_refused(run: RunDir, tmp_path: Path) -> None:
    async with Supervisor(run.logs) as supervisor:
        with pytest.raises(ConfigError, match="is not below"):
            async with two_agents(supervisor, run, service=tmp_path):
                pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that has ended is started again almost at once."""
    monkeypatch.setattr(crew, "_PAUSE_S", 0.05)
    monkeypatch.setattr(crew, "_LONGEST_PAUSE_S", 0.2)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_so():
            await asyncio.sleep(0.01)


def events(quorum: Agents, name: str) -> list[Event]:
    tailer = Tailer()
    tailer.add(quorum.files[name].events)
    return tailer.rest()


def kinds(quorum: Agents, name: str) -> list[str]:
    return [event.kind for event in events(quorum, name)]
