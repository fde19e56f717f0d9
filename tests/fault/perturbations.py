"""What is done to one agent of a running chain: `begin`, some time, `end`; then it must be level with the others again.

The five that CometBFT's own end-to-end tests have (kill, restart, pause, disconnect, upgrade), those that it lacks, and
damage to what an agent has on its disk. `ALL` names them.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from tests.fault.chain import Chain
from tests.fault.skewed_node import VARIABLE

__all__ = ["ALL", "TWELVE", "Perturbation", "can_mount"]


class Perturbation:
    """Something that befalls one agent. `rng` makes the choices that a seed repeats."""

    name: ClassVar[str]
    hold_s: ClassVar[float] = 2.0
    may_end: ClassVar[bool] = True
    """Whether the agent may end by itself meanwhile."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    async def begin(self, chain: Chain, victim: int) -> None:
        raise NotImplementedError

    async def end(self, chain: Chain, victim: int) -> None:
        """Take the cause away and do what an operator (or a service manager) does: start what has ended."""
        await _start_again(chain, victim)


async def _start_again(chain: Chain, victim: int) -> None:
    await _stop(chain, victim)
    chain.start(victim)


async def _stop(chain: Chain, victim: int) -> None:
    """Kill it, unless it has ended."""
    if victim in chain.processes:
        if chain.processes[victim].poll() is None:
            await chain.kill(victim)
        else:
            chain.processes.pop(victim)


class Kill(Perturbation):
    """The machine of an agent and its node loses its power."""

    name = "kill"

    async def begin(self, chain: Chain, victim: int) -> None:
        chain.both(victim, signal.SIGKILL)
        await chain.gone(victim)


class Restart(Perturbation):
    """An operator stops an agent in order and starts it again."""

    name = "restart"
    hold_s = 0.5

    async def begin(self, chain: Chain, victim: int) -> None:
        code = await chain.end(victim)
        assert code == 0, f"agent {victim} ended with code {code} when it was asked to end\n{chain.report()}"


class Pause(Perturbation):
    """Agent and node stand still (a machine that sleeps, a hypervisor that moves it), and go on as if nothing was."""

    name = "pause"
    hold_s = 4.0
    may_end = False

    async def begin(self, chain: Chain, victim: int) -> None:
        chain.both(victim, signal.SIGSTOP)

    async def end(self, chain: Chain, victim: int) -> None:
        chain.both(victim, signal.SIGCONT)


class Disconnect(Perturbation):
    """The cable is pulled: connections stay, nothing arrives."""

    name = "disconnect"
    hold_s = 4.0
    may_end = False

    async def begin(self, chain: Chain, victim: int) -> None:
        await chain.links.cut(victim)

    async def end(self, chain: Chain, victim: int) -> None:
        await chain.links.heal(victim)


class Mute(Disconnect):
    """The agent hears all and is heard by none."""

    name = "mute"

    async def begin(self, chain: Chain, victim: int) -> None:
        await chain.proxies.cut(victim, one_way=True)


class Reset(Disconnect):
    """All connections break and no new ones come about for a while."""

    name = "reset"

    async def begin(self, chain: Chain, victim: int) -> None:
        await chain.links.cut(victim)
        chain.proxies.reset(victim)


class Upgrade(Perturbation):
    """A stand-in for a new version: stopped in order, another program file of the node, the same state."""

    name = "upgrade"
    hold_s = 0.0

    async def begin(self, chain: Chain, victim: int) -> None:
        await chain.end(victim)
        old = Path(chain.files[victim].binary)
        new = chain.folder / f"cometbft-{self.rng.randrange(10**6)}"
        await asyncio.to_thread(shutil.copy2, old, new)
        chain.use_program(victim, new)


class ClockSkew(Perturbation):
    """The agent lives with a clock that is half a minute off.

    Its application's clock (which says when to tick) everywhere; CometBFT's own where `skewed_node` gives a build that
    can be told, because neither time namespaces nor libfaketime reach Go's clock.
    """

    name = "clock skew"
    hold_s = 4.0
    skewed_node: ClassVar[Path | None] = None

    async def begin(self, chain: Chain, victim: int) -> None:
        skew_s = self.rng.choice((-30.0, 30.0))
        self.honest = Path(chain.files[victim].binary)
        await chain.kill(victim)
        if self.skewed_node is not None:
            chain.use_program(victim, self.skewed_node)
        chain.configure(victim, skew_s=skew_s, environment={VARIABLE: str(int(skew_s * 1000))})
        chain.start(victim)

    async def end(self, chain: Chain, victim: int) -> None:
        await _start_again_with(chain, victim, self.honest)


async def _start_again_with(chain: Chain, victim: int, program: Path) -> None:
    chain.configure(victim, skew_s=0, environment={})
    chain.use_program(victim, program)
    await _start_again(chain, victim)


class DiskFull(Perturbation):
    """The disk of the agent's home runs full under it, and has room again later. Needs the right to mount."""

    name = "disk full"
    hold_s = 1.0
    room_mib = 16

    async def begin(self, chain: Chain, victim: int) -> None:
        await chain.end(victim)
        await asyncio.to_thread(chain.mount_small, victim, self.room_mib)
        since = chain.judge.last
        chain.start(victim)
        await chain.expect(lambda: chain.height(victim) > since, "it runs on its small disk")
        self.filler = chain.homes[victim] / "filler"
        await asyncio.to_thread(_fill, self.filler)
        process = chain.processes[victim]
        await chain.expect(lambda: process.poll() is not None, f"agent {victim} ends, for it cannot write")

    async def end(self, chain: Chain, victim: int) -> None:
        self.filler.unlink()
        await _stop(chain, victim)
        await asyncio.to_thread(chain.unmount, victim)
        chain.start(victim)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:  # no room for a block of this size
                continue


class TruncatedLog(Perturbation):
    """After a kill, the ends of the logs are missing: CometBFT's write-ahead log and that of the agent's own state."""

    name = "truncated log"
    hold_s = 0.5

    async def begin(self, chain: Chain, victim: int) -> None:
        await chain.kill(victim)
        logs = [chain.homes[victim] / "data" / "cs.wal" / "wal"]
        logs += [Path(f"{path}-wal") for path in chain.databases(victim)]
        for log in logs:
            if log.exists() and (size := log.stat().st_size):
                os.truncate(log, max(0, size - self.rng.randrange(1, 20_000)))


class AgentKill(Perturbation):
    """The agent's process alone dies: the kernel takes the node with it, which is of no use without an application."""

    name = "app-only kill"
    hold_s = 1.0

    async def begin(self, chain: Chain, victim: int) -> None:
        await chain.kill(victim)


class NodeKill(Perturbation):
    """CometBFT alone dies: the agent notices and ends by itself, with a code that says so."""

    name = "node-only kill"
    hold_s = 0.0

    async def begin(self, chain: Chain, victim: int) -> None:
        os.kill(chain.node_pid(victim), signal.SIGKILL)
        assert await chain.gone(victim) != 0, "an agent whose node died ended as if all was well"


class SlowLink(Perturbation):
    """150 ms each way, and 200 kB/s."""

    name = "slow link"
    hold_s = 4.0
    may_end = False

    async def begin(self, chain: Chain, victim: int) -> None:
        await chain.proxies.slow(victim, delay_s=0.15, bytes_per_s=200_000)

    async def end(self, chain: Chain, victim: int) -> None:
        await chain.links.heal(victim)


class DoubleSigner(Perturbation):
    """Two agents run with one validator's keys, each connected with other peers: it votes twice, and not always alike.

    Lasts until the others have evidence of it in a block.
    """

    name = "double signer"
    hold_s = 0.5

    async def begin(self, chain: Chain, victim: int) -> None:
        await chain.end(victim)
        chain.hear()
        since = chain.judge.last
        chain.proxies.reset(victim)
        others = [index for index in range(chain.n) if index != victim]
        self.peers = self.rng.sample(others, len(others) - 1)
        self.second = await chain.twin(victim, self.peers)
        chain.start(victim)
        both = (victim, chain.second(victim))
        await chain.expect(lambda: all(chain.height(one) > since for one in both), f"both agents {victim} take part")
        address = next(m.validator_address for m in chain.genesis.members if m.address == chain.keys[victim].address)

        def is_found(told: dict[str, Any]) -> bool:
            return bool(told and told["validator"] == address and told["height"] > since)

        await chain.expect(
            lambda: any(is_found(chain.last(other, "misbehavior")) for other in others),
            f"the others have evidence against agent {victim}",
        )

    async def end(self, chain: Chain, victim: int) -> None:
        self.second.kill()
        self.second.wait()
        chain.part(victim, self.peers)
        await _start_again(chain, victim)


class Wipe(Perturbation):
    """The disk is lost: all but the keys, the settings and the signing state is gone."""

    name = "wiped"
    hold_s = 0.5

    async def begin(self, chain: Chain, victim: int) -> None:
        await chain.kill(victim)
        await asyncio.to_thread(chain.erase, victim)


class Damage(Perturbation):
    """Bytes on the disk are others than those that were written. It is noticed, or does no harm; what is damaged goes.

    Whatever the agent does with it, it must not go on with a state of its own: the judge listens.
    """

    hold_s = 6.0

    def files(self, chain: Chain, victim: int) -> list[Path]:
        raise NotImplementedError

    async def begin(self, chain: Chain, victim: int) -> None:
        await chain.kill(victim)
        for path in self.files(chain, victim):
            await asyncio.to_thread(self._scramble, path)
        chain.start(victim)

    def _scramble(self, path: Path) -> None:
        data = bytearray(path.read_bytes())
        for _ in range(8):
            at = self.rng.randrange(len(data))
            data[at : at + 64] = self.rng.randbytes(len(data[at : at + 64]))
        path.write_bytes(data)

    async def end(self, chain: Chain, victim: int) -> None:
        await _stop(chain, victim)
        await asyncio.to_thread(chain.erase, victim)
        chain.start(victim)


class DamagedState(Damage):
    """... in the agent's own state."""

    name = "damaged state"

    def files(self, chain: Chain, victim: int) -> list[Path]:
        found = [path for db in chain.databases(victim) for path in (db, Path(f"{db}-wal"))]
        return [path for path in found if path.exists() and path.stat().st_size]


class DamagedBlocks(Damage):
    """... in CometBFT's databases."""

    name = "damaged blocks"

    def files(self, chain: Chain, victim: int) -> list[Path]:
        found = [*chain.homes[victim].glob("data/*.db/*.log"), *chain.homes[victim].glob("data/*.db/*.ldb")]
        return [path for path in found if path.stat().st_size]


def can_mount() -> bool:
    """Whether this process may mount a small disk; in most containers it may not."""
    return os.geteuid() == 0 and _succeeds("unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt")


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


_Maker = Callable[[random.Random], Perturbation]
TWELVE: dict[str, _Maker] = {
    kind.name: kind
    for kind in (
        Kill, Restart, Pause, Disconnect, Upgrade, ClockSkew, DiskFull, TruncatedLog, AgentKill, SlowLink, DoubleSigner,
    )
}  # fmt: skip
"""The named ones, but for the dead EVM RPC: that one befalls agents that have an EVM (`settling.py`)."""
ALL: dict[str, _Maker] = {
    **TWELVE, **{kind.name: kind for kind in (NodeKill, Mute, Reset, Wipe, DamagedState, DamagedBlocks)},
}  # fmt: skip
