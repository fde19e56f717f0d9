"""A chain of real nodes and agents to which things are done: it heals, it is judged all the time, it is measured."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from quorate.abci import Node, NodeUnreachable, config
from quorate.host.agent_file import AgentFile as HostFile
from tests.chain_of_agents.hosted import HOME
from tests.chain_of_agents.network import ChainOfAgents, free_ports
from tests.fault.links import Links
from tests.fault.namespaces import Namespaces
from tests.fault.oracle import Judge

__all__ = ["PATIENCE_S", "Chain", "Tail"]

PATIENCE_S = 240.0
"""How long a test waits for what must come; how fast it came is measured, and judged by who reads the figures."""
_BESIDE_ANOTHER_S = 10.0


@dataclass
class Tail:
    """A journal that is being written."""

    path: Path
    last: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The last event of each kind."""
    _offset: int = 0

    def read(self) -> list[dict[str, Any]]:
        """What was written since."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        found = []
        for line in data[:whole].splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # the line during which it was killed
                continue
            self.last[event["kind"]] = event
            found.append(event)
        return found


class Chain(ChainOfAgents):
    """`async with Chain() as chain:` runs when that begins, and is left without a process, a mount or a folder."""

    def __init__(
        self,
        service: str = "counting",
        n: int = 4,
        *,
        network: Callable[[Sequence[int]], Links | Namespaces] = Links,
        **options: Any,
    ) -> None:
        super().__init__(service, n, **({"act_s": 0.02, "snapshot_every": 50, "snapshots": 3} | options))
        self.links = network(self.ports)
        self.judge = Judge()
        self.victims: set[int] = set()
        """Agents that may end by themselves for now."""
        self.troubled: set[int] = set()
        """Agents to which something is being done."""
        self.mounts: list[Path] = []
        self._tails = {index: Tail(file.journal) for index, file in enumerate(self.files)}

    async def __aenter__(self) -> Self:
        try:
            await self.links.open()
            for index in range(self.n):
                self.lead(index)
            self.allow(1)
            self.start()
            await self.until(
                lambda: all(self.judge.height(index) > 2 for index in range(self.n)), PATIENCE_S, "the chain runs"
            )
        except BaseException:
            await self.__aexit__(*sys.exc_info())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        await self.links.close()
        for mount in self.mounts:
            await asyncio.to_thread(subprocess.run, ["umount", str(mount)], check=False)
        await super().__aexit__(kind, error, trace)

    # ---- what is heard

    def hear(self) -> None:
        """Give the judge what the agents have written."""
        for who, tail in self._tails.items():
            for event in tail.read():
                self.judge.hear(who, event)

    def listen_to(self, who: int, journal: Path) -> None:
        """Judge one more process by what it writes."""
        self._tails[who] = Tail(journal)

    def last(self, index: int, kind: str) -> dict[str, Any]:
        self.hear()
        return self._tails[index].last.get(kind, {})

    def height(self, index: int) -> int:
        self.hear()
        return self.judge.height(index)

    def assert_running(self) -> None:
        self.hear()
        for index, process in self.processes.items():
            assert index in self.victims or process.poll() is None, f"agent {index} ended\n{self.report()}"

    # ---- what is done

    @property
    def proxies(self) -> Links:
        """The links, for what only proxies can do."""
        assert isinstance(self.links, Links), "this takes proxies between the nodes"
        return self.links

    def command(self, index: int) -> list[str]:
        return self.links.command(index)

    def lead(self, index: int) -> None:
        """Write the node's config.toml: it dials its peers through the links."""
        members = {member.address: member for member in self.genesis.members}
        ids = [members[key.address].node_id for key in self.keys]
        me = _peer(ids[index], self.links.own(index))
        others = [_peer(ids[j], self.links.way(index, j)) for j in range(self.n) if j != index]
        config.save(self.homes[index], me, [me, *others])

    def use_program(self, index: int, cometbft: Path) -> None:
        """Another program file for one agent's node, from its next start on."""
        self.configure(index, binary=str(cometbft))
        host = self.homes[index] / HOME
        if host.exists():
            replace(HostFile.load(host), cometbft=cometbft).save()

    async def end(self, index: int) -> int:
        """Ask one agent to end in order; its exit code."""
        process = self.processes.pop(index)
        process.terminate()
        return await asyncio.to_thread(process.wait, 30)

    async def gone(self, index: int) -> int:
        """Wait for the end of one agent that ends by itself; its exit code."""
        await self.until(lambda: self.processes[index].poll() is not None, PATIENCE_S, f"agent {index} ends")
        return self.processes.pop(index).wait()

    def both(self, index: int, number: signal.Signals) -> None:
        """A signal to an agent and its node, in the same instant as far as that can be."""
        os.kill(self.node_pid(index), number)
        self.processes[index].send_signal(number)

    def state_files(self, index: int) -> list[Path]:
        """All that one agent knows of the chain, but for its keys, its signing state and its settings."""
        home = self.homes[index]
        found = [*home.glob("data/*")]
        for at in (home, home / HOME):
            found += [*at.glob("*.db*"), at / "snapshots"]
        return [path for path in found if path.exists() and path.name != "priv_validator_state.json"]

    def erase(self, index: int) -> None:
        """Take that from a (stopped) agent."""
        for path in self.state_files(index):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def databases(self, index: int) -> list[Path]:
        """The file (or files) of the agent's own durable state."""
        home = self.homes[index]
        return sorted([*home.glob("*.db"), *(home / HOME).glob("*.db")])

    def mount_small(self, index: int, room_mib: int) -> None:
        """Move one (stopped) agent's home to a disk of its own that has this much room left."""
        home = self.homes[index]
        used = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
        aside = home.rename(home.with_name(f"{home.name}.aside"))
        home.mkdir()
        size = f"size={(used >> 20) + room_mib}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(home)], check=True)
        self.mounts.append(home)
        shutil.copytree(aside, home, dirs_exist_ok=True)
        shutil.rmtree(aside)

    def unmount(self, index: int) -> None:
        """Move one (stopped) agent's home back to where the others are."""
        home = self.homes[index]
        aside = home.with_name(f"{home.name}.aside")
        shutil.copytree(home, aside)
        subprocess.run(["umount", str(home)], check=True)
        self.mounts.remove(home)
        home.rmdir()
        aside.rename(home)

    async def twin(self, index: int, peers: Sequence[int]) -> subprocess.Popen[bytes]:
        """Start a second agent with the keys of a (stopped) one. It reaches these peers, and the first one the others.

        Both have the first one's node id as well, as when somebody starts a copy of an agent's home: a peer holds one
        of the two and refuses the other. The second one dials by itself: whom it reaches must not depend on who dialed
        whom before, because a node redials only those that it had dialed (an inbound peer is known to it by an address
        that is none of its persistent peers').
        """
        home, file, second = self.folder / f"twin{index}", self.files[index], self.second(index)
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(self.homes[index], home)
        (port,) = free_ports(1)
        await self.proxies.join(second, port, peers, like=index)
        for peer in peers:
            self.proxies.refuse(peer, index)
            self.proxies.refuse(index, peer)
        ids = {i: self.member(i).node_id for i in (index, *peers)}
        me = _peer(ids[index], self.proxies.own(second))
        config.save(home, me, [_peer(ids[peer], self.proxies.way(second, peer)) for peer in peers])
        sockets = self.folder / f"t{index}"
        sockets.mkdir(exist_ok=True)
        copy = replace(file, sockets=str(sockets), peers=(), environment={})
        host = home / HOME
        if host.exists():
            replace(
                HostFile.load(host),
                keystore=host / "keystore.json",
                socket_dir=sockets,
                comet_home=home,
                events=host / "events.jsonl",
                evidence_dir=host / "evidence",
                peers=(),
            ).save()
        self.listen_to(second, copy.journal)
        return self.launch(home, copy)

    def part(self, index: int, peers: Sequence[int]) -> None:
        """The (stopped) second agent's links are gone, the first one's open again."""
        self.proxies.leave(self.second(index))
        for peer in peers:
            self.proxies.admit(peer, index)
            self.proxies.admit(index, peer)

    def second(self, index: int) -> int:
        """What the second agent with one's keys is called among links and journals."""
        return 2 * self.n + index

    # ---- what must come

    async def level(self, indexes: Sequence[int], since: float) -> float:
        """Seconds from `since` until each of these agents has committed a block that nobody has yet."""
        self.hear()
        target = self.judge.last + 1
        reached: dict[int, float] = {}

        def all_have() -> bool:
            for index in indexes:
                life = self.judge.lives[index]
                if index not in reached and life.commits and life.height >= target:
                    reached[index] = life.committed
            return len(reached) == len(indexes)

        await self.until(all_have, PATIENCE_S, f"agents {list(indexes)} commit block {target}")
        return max(reached.values()) - since

    async def goes_on(self, rounds: int = 3, indexes: Sequence[int] | None = None) -> None:
        """Wait until so many more rounds have ended for these agents, or all."""
        self.hear()
        chosen = range(self.n) if indexes is None else indexes
        target = self.judge.rounds + rounds
        await self.until(
            lambda: all(self.settled(index) >= target for index in chosen), PATIENCE_S, f"{rounds} more rounds"
        )

    async def expect(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for what a perturbation brings about; beside another one, which may have stopped the chain, not long."""
        if len(self.troubled) < 2:
            await self.until(holds, PATIENCE_S, what)
            return
        end = time.monotonic() + _BESIDE_ANOTHER_S
        while not holds() and time.monotonic() < end:
            await self.hold(0.1)

    async def asleep(self) -> None:
        """Wait until all have the same height, and keep it for a second."""
        while True:
            heights = {self.height(index) for index in range(self.n)}
            await self.hold(1)
            if len(heights) == 1 and {self.height(index) for index in range(self.n)} == heights:
                return

    async def connected(self, index: int) -> None:
        """Wait until one agent's node knows all its peers and has no blocks to catch up with."""
        node = self.node(index)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await _is_connected(node, self.n - 1):
                    await asyncio.sleep(0.1)
        finally:
            await node.close_client()

    async def agree_with_headers(self) -> None:
        """What each node has in its last header is what the agents have told: the app hash of the block before."""
        for index in range(self.n):
            node = self.node(index)
            try:
                status = await node.status()
            finally:
                await node.close_client()
            before = status.height - 1
            await self.until(lambda at=before: self.judge.last >= at, PATIENCE_S, "block before the header")  # type: ignore[misc]
            assert self.judge.hashes[before] == status.app_hash.lower(), f"node {index} differs at {before}"

    async def hold(self, seconds: float) -> None:
        """Let time pass; nobody may end that is no victim."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.assert_running()
            await asyncio.sleep(0.05)


def _peer(node_id: str, at: tuple[str, int]) -> config.Peer:
    return config.Peer(node_id, at[1], at[0])


async def _is_connected(node: Node, peers: int) -> bool:
    try:
        return len(await node.peers()) == peers and not (await node.status()).is_catching_up
    except NodeUnreachable:  # it starts
        return False
