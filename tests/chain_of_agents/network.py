"""Starts, kills and watches the agents of one chain from outside. Everything lies in one folder on the RAM disk."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from quorate.abci import Node, Plan, make_joiner, make_testnet
from quorate.abci.config import Peer
from quorate.abci.node import _DieWithParent
from quorate.chain.wallet import PASSPHRASE
from quorate.fsm import codec
from quorate.host.agent_file import AgentFile as HostFile
from quorate.localnet.keys import new_passphrase, save_keystore
from quorate.members import Change, Member
from tests.chain_of_agents.agent import AgentFile
from tests.chain_of_agents.hosted import HOME
from tests.chain_of_agents.keys import key_of, keys
from tests.chain_of_agents.services import ALL

__all__ = ["ChainOfAgents", "free_ports", "is_running"]

_ROOT = Path(__file__).resolve().parents[2]
_SERVICES = ("services", "tests/fault")


def free_ports(n: int) -> list[int]:
    """Ports that were free a moment ago, each another one."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class ChainOfAgents:
    """`async with ChainOfAgents("counting", 4) as chain: chain.start(); ...`; all processes are gone afterwards."""

    def __init__(
        self,
        service: str,
        n: int = 4,
        *,
        settings: dict[str, str] | None = None,
        hosted: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """`options` are fields of `AgentFile`, for all agents; `configure` changes one agent's.

        `hosted`: the agents are real ones (`hosted`), and this overrides the service's own configuration.
        """
        ram = Path("/dev/shm")  # noqa: S108  (a RAM disk: pauses of a shared disk stall rounds for 0.7 s)
        self.folder = Path(tempfile.mkdtemp(prefix="qt", dir=ram if os.access(ram, os.W_OK) else None))
        self.n = n
        self.settings, self.options = settings, options
        self.ports = free_ports(n)
        self.service = ALL[service]
        self.chain_id = f"{service}-{self.folder.name[-6:]}"
        self.homes = [self.folder / f"a{index}" for index in range(n)]
        self.keys = keys(n)
        self.genesis = make_testnet(
            self.homes,
            chain_id=self.chain_id,
            service=self.service,
            signers=self.keys,
            ports=self.ports,
            settings=settings,
        )
        sockets = [self.folder / f"s{index}" for index in range(n)]
        rpc = [f"unix://{folder / 'rpc.sock'}" for folder in sockets]
        self.files = [
            AgentFile(
                service,
                index,
                n,
                os.environ["QUORATE_COMETBFT"],
                str(sockets[index]),
                peers=tuple(address for address in rpc if address != rpc[index]),
                **options,
            )
            for index in range(n)
        ]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self._known: dict[int, tuple[int, list[dict[str, Any]]]] = {}
        self.leaving: set[int] = set()
        self._members = {member.address: member for member in self.genesis.members}
        self._program = "tests.chain_of_agents.agent" if hosted is None else "tests.chain_of_agents.hosted"
        self._passphrase = new_passphrase()
        if hosted is not None:
            for index in range(n):
                self._make_host(index, hosted)

    def member(self, index: int) -> Member:
        """The agent as a member."""
        return self._members[key_of(index, self.files[index].n).address]

    def add(self) -> Change:
        """Make the home of one more agent, which has the next index; returns the change that lets it in."""
        index, first = len(self.homes), len(self.genesis.members)
        peers = [Peer(self.member(i).node_id, port) for i, port in enumerate(self.ports)]
        self.homes.append(self.folder / f"a{index}")
        self.ports += free_ports(1)
        made = make_joiner(
            self.homes[index],
            genesis=self.genesis,
            signer=key_of(index, first),
            port=self.ports[index],
            peers=peers,
            settings=self.settings,
        )
        self._members[made.address] = made
        sockets = str(self.folder / f"s{index}")
        rpc = tuple(f"unix://{file.sockets}/rpc.sock" for file in self.files)
        binary = self.files[0].binary
        name = self.files[0].service
        file = AgentFile(name, index, first, binary, sockets, peers=rpc, joins=True, **self.options)
        self.files.append(file)
        self.n += 1
        return Change(join=made)

    def approve(self, change: Change, *indexes: int) -> None:
        """Hand the change in at these agents, as their operators do."""
        for index in indexes:
            part = self.homes[index] / "approved.part"
            part.write_bytes(codec.encode(change))
            part.rename(self.homes[index] / "approved")

    def members(self, index: int) -> list[str]:
        """Who was a member when this agent last saw a round settle."""
        return list(self.last(index, "settled").get("members", []))

    def _make_host(self, index: int, config: dict[str, Any]) -> None:
        home, file = self.homes[index] / HOME, self.files[index]
        folder = next(f"{at}/{self.service.name}" for at in _SERVICES if (_ROOT / at / self.service.name).exists())
        HostFile(
            home=home,
            service=folder,
            name=f"agent-{index + 1}",
            me=self.keys[index].address,
            keystore=home / "keystore.json",
            chain_id=self.chain_id,
            socket_dir=Path(file.sockets),
            comet_home=self.homes[index],
            cometbft=Path(file.binary),
            p2p_port=self.ports[index],
            events=home / "events.jsonl",
            evidence_dir=home / "evidence",
            peers=file.peers,
            config=config,
        ).save()
        save_keystore(self.keys[index].wallet(), home / "keystore.json", self._passphrase)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if error is not None:
            print(self.report())
        shutil.rmtree(self.folder)

    def configure(self, index: int, **options: Any) -> None:
        """Change one agent's file; it holds from its next start on."""
        self.files[index] = AgentFile(**{**asdict(self.files[index]), **options})

    def start(self, *indexes: int) -> None:
        """Start these agents, or all."""
        for index in indexes or range(self.n):
            self.processes[index] = self.launch(self.homes[index], self.files[index])

    def launch(self, home: Path, file: AgentFile) -> subprocess.Popen[bytes]:
        """A process that runs the agent of this home."""
        Path(file.sockets).mkdir(exist_ok=True)
        (home / "agent.json").write_text(json.dumps(asdict(file)))
        with (home / "agent.log").open("ab") as log:
            return subprocess.Popen(
                [*self.command(file.index), sys.executable, "-m", self._program, str(home)],
                cwd=_ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}",
                    PASSPHRASE: self._passphrase,
                    **file.environment,
                },
                stdout=log,
                stderr=log,
                preexec_fn=_DieWithParent(os.getpid()),  # kill -9 of the tests leaves nothing behind
            )

    def command(self, index: int) -> list[str]:
        """What an agent's command begins with."""
        return []

    def node_pid(self, index: int) -> int:
        """The process of an agent's CometBFT."""
        return int(self.last(index, "started")["node"])

    async def kill(self, *indexes: int) -> None:
        """kill -9 these agents, and see that each took its node with it."""
        nodes = [self.node_pid(index) for index in indexes]
        for index in indexes:
            self.processes[index].send_signal(signal.SIGKILL)
        for index in indexes:
            self.processes.pop(index).wait()
        await self.until(lambda: not any(map(is_running, nodes)), 5, "the nodes of killed agents die with them")

    async def wipe(self, index: int) -> None:
        """Kill an agent and take all but its keys and its signing state."""
        await self.kill(index)
        home = self.homes[index]
        for path in (*home.glob("app.db*"), *home.glob("data/*"), *home.glob("snapshots")):
            if path.name != "priv_validator_state.json":
                await asyncio.to_thread(_remove, path)

    async def until_level(self, index: int, *, since: float, timeout_s: float = 60) -> float:
        """Wait until this agent is as far as the others; returns the seconds from `since` (`time.monotonic`) on.

        As far: it committed, in this life, a block that another one committed less than 0.5 s ago or as its last.
        """
        others = [other for other in self.processes if other != index]

        def is_level() -> bool:
            started, commit = self.last(index, "loaded"), self.last(index, "commit")
            if not started or commit.get("t", 0) < started["t"]:
                return False
            now = time.time()
            behind = [event for event in self._read(others[0])[-200:] if event["kind"] == "commit"]
            return all(event["height"] <= commit["height"] for event in behind if event["t"] < now - 0.5)

        await self.until(is_level, timeout_s, f"agent {index} is level")
        return time.monotonic() - since

    async def stop(self) -> None:
        """End all agents in order."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                await asyncio.to_thread(process.wait, 15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def allow(self, value: int) -> None:
        """Let the agents of `on_demand` propose up to this number."""
        temporary = self.folder / "allowed.part"
        temporary.write_text(str(value))
        temporary.rename(self.folder / "allowed")

    def ask(self, plan: Plan, *indexes: int) -> None:
        """Let the operators of these agents ask for an upgrade."""
        for index in indexes:
            part = self.homes[index] / "ask.part"
            part.write_bytes(codec.encode(plan))
            part.rename(self.homes[index] / "ask.json")

    async def until_ended(self, *indexes: int, timeout_s: float = 120) -> dict[int, int]:
        """Wait until these agents have ended by themselves; returns their exit codes."""
        for index in indexes:
            await asyncio.wait_for(asyncio.to_thread(self.processes[index].wait), timeout_s)
        return {index: self.processes.pop(index).returncode for index in indexes}

    def events(self, index: int, kind: str | None = None) -> list[dict[str, Any]]:
        """What an agent wrote, in all its lives."""
        return [event for event in self._read(index) if kind in (None, event["kind"])]

    def last(self, index: int, kind: str) -> dict[str, Any]:
        """The last event of a kind; empty where there is none."""
        return next((event for event in reversed(self._read(index)) if event["kind"] == kind), {})

    def _read(self, index: int) -> list[dict[str, Any]]:
        """All events, of which only those that are new are read from the file."""
        path = self.files[index].journal
        offset, found = self._known.setdefault(index, (0, []))
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                fresh = file.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]
            for line in whole.splitlines():
                try:
                    found.append(json.loads(line))
                except ValueError:  # the line during which it was killed, with the first of its next life
                    continue
            self._known[index] = (offset + len(whole), found)
        return found

    def height(self, index: int) -> int:
        return int(self.last(index, "commit").get("height", 0))

    def settled(self, index: int) -> int:
        """The sequence number of the last round that this agent saw settle."""
        return int(self.last(index, "settled").get("sequence", 0))

    def digests(self, index: int) -> dict[int, str]:
        """App hash by height; an agent that ever saw two at one height has diverged from itself."""
        hashes: dict[int, str] = {}
        for event in self.events(index, "commit"):
            assert hashes.setdefault(event["height"], event["app_hash"]) == event["app_hash"]
        return hashes

    def assert_equal_digests(self, indexes: Sequence[int] | None = None) -> int:
        """All agents have the same app hash at each height that two of them know; returns how often that was seen."""
        known: dict[int, str] = {}
        compared = 0
        for index in range(self.n) if indexes is None else indexes:
            for height, digest in self.digests(index).items():
                compared += height in known
                assert known.setdefault(height, digest) == digest, f"agent {index} differs at height {height}"
        return compared

    async def until(self, holds: Callable[[], bool], timeout_s: float, what: str) -> float:
        """Wait until it holds; returns the seconds that took."""
        start = time.monotonic()
        while not holds():
            self.assert_running()
            assert time.monotonic() - start < timeout_s, f"not within {timeout_s} s: {what}\n{self.report()}"
            await asyncio.sleep(0.02)
        return time.monotonic() - start

    def assert_running(self) -> None:
        """No agent has ended that was not to crash."""
        for index, process in self.processes.items():
            is_expected = self.files[index].crash_at or index in self.leaving
            assert process.poll() is None or is_expected, f"agent {index} ended\n{self.report()}"

    async def until_settled(self, sequence: int, *indexes: int, timeout_s: float = 30) -> float:
        """Wait until these agents (or all) have seen the round `sequence` settle."""
        chosen = indexes or range(self.n)
        return await self.until(
            lambda: all(self.settled(index) >= sequence for index in chosen),
            timeout_s,
            f"round {sequence} on {list(chosen)}",
        )

    def node(self, index: int) -> Node:
        """A way to ask the agent's node; close it with `stop`, which ends nothing else."""
        return Node(self.homes[index], Path(self.files[index].binary), Path(self.files[index].sockets))

    def report(self) -> str:
        """The ends of all logs, for a failed test."""
        parts = []
        for index, home in enumerate(self.homes):
            parts.append(f"--- agent {index}: height {self.height(index)}, settled {self.settled(index)}")
            for name in ("agent.log", "node.log"):
                text = (home / name).read_text(errors="replace") if (home / name).exists() else ""
                parts.append(f"{name}: ...{text[-1500:]}")
        return "\n".join(parts)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
