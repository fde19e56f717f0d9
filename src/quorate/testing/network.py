"""A whole service in memory: every agent holds a replica of its own, and a seed decides every delay and order.

What is simulated: acts that take virtual time, payloads that arrive late and in any order, blocks that all live
agents apply alike, a chain that sleeps when there is no news and wakes for a payload or a deadline, crashes with what
was on disk, and agents that lie. What is not: CometBFT, signatures and partitions; tests/integration has the real
ones.

The same service, seed and calls give the same blocks, as long as the acts wait for nothing but ``ctx.sleep``.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from quorate.errors import QuorateError, ServiceError
from quorate.fsm import AnyRound, Period, Service, Settled, quorum_of
from quorate.testing.clock import VirtualClock
from quorate.units import Address

__all__ = ["Diverged", "Lie", "Network", "Stalled", "agent_address"]

EPOCH_MS = 1_000_000
BLOCK_MS = 30  # a block on four real validators: consensus.md, first row
DELAY_MS = (1, 50)
ACT_LIMIT_S = 30  # real time that all acts together may take between two steps of the virtual clock

Lie = Callable[[Period], Iterable[bytes]]
"""What a lying agent sends when a round opens, in place of what its act says."""


class Diverged(QuorateError):
    """Two honest agents hold different agreed states at one height."""


class Stalled(QuorateError):
    """The network did not get where the test wanted it; the message says who waits for what."""


def agent_address(index: int) -> Address:
    """A made-up address that is readable; of digits alone, so that it is its own checksum."""
    return Address(f"0x{index + 1:040d}")


@dataclass(frozen=True)
class Block:
    """What consensus decided at one height."""

    time_ms: int
    payloads: tuple[tuple[Address, int, bytes], ...]


class AgentContext:
    """What an act sees: `quorate.Context`, and whatever the test adds."""

    def __init__(self, network: Network, period: Period, me: Address, extra: Mapping[str, Any]) -> None:
        self.me = me
        self.config = network.config
        self.log = logging.getLogger(f"quorate.testing.agent-{network.agents.index(me) + 1}")
        self.asleep = 0
        self._network = network
        self._period = period
        self.__dict__.update(extra)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"this act wants ctx.{name}; pass Network(..., context={{{name!r}: ...}})")

    async def beacon(self) -> int:
        """The beacon of the period in which this act began."""
        return self._network.beacon(self._period)

    async def sleep(self, seconds: float) -> None:
        """Wait on the virtual clock."""
        self.asleep += 1
        try:
            await self._network.clock.sleep(seconds)
        finally:
            self.asleep -= 1


@dataclass
class _Agent:
    address: Address
    period: Period | None
    """None while it is down."""
    disk: bytes
    """What a restart begins with: the last committed period."""
    height: int = 0
    lie: Lie | None = None
    opened: int = 0
    """The sequence of the round whose act was last started."""
    context: AgentContext | None = None
    task: asyncio.Task[None] | None = None

    def is_busy(self) -> bool:
        """True while its act may do something without the virtual clock moving."""
        return self.task is not None and not self.task.done() and not (self.context and self.context.asleep)


class Network:
    """`agents` replicas of `service`. Use it as an async context manager, or `close` it when done.

    `config` is what acts see as ``ctx.config`` (default: the service's config dataclass with its defaults). `context`
    adds attributes to every ctx (chain, model, ...): a mapping, or a function from an agent's address to one.
    `beacon` replaces `Period.beacon`.
    """

    def __init__(
        self,
        service: Service,
        agents: int = 4,
        seed: int = 0,
        config: Any = None,
        context: Mapping[str, Any] | Callable[[Address], Mapping[str, Any]] | None = None,
        beacon: Callable[[Period], int] | None = None,
    ) -> None:
        self.service = service
        self.agents = tuple(agent_address(i) for i in range(agents))
        self.config = service.config() if config is None and service.config is not None else config
        self.beacon = beacon or (lambda period: period.beacon("simulation"))
        self.clock = VirtualClock(EPOCH_MS)
        self.height = 0
        self.rounds: list[Settled] = []
        """Every round that ended, in order."""
        self.violations: list[str] = []
        """What no honest network may show; `run_until` raises `Diverged` on the first."""
        self.failures: list[tuple[Address, str, Exception]] = []
        """Acts that raised: (agent, round name, exception). Those agents sent nothing."""
        self.crashed: list[Address] = []
        """Who is down, in the order of crashing."""
        self._context = context
        self._random = random.Random(seed)  # noqa: S311  # the seed is the point
        self._pending: list[tuple[int, Address, int, bytes]] = []
        self._missed: list[Block] = []  # since the first agent went down: a restart replays from here
        self._is_hot = True
        self._last_block_ms = EPOCH_MS
        genesis = Period.start(service, self.agents)
        self._agents = {me: _Agent(me, genesis, genesis.encode()) for me in self.agents}

    async def __aenter__(self) -> Network:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel every act."""
        tasks = [agent.task for agent in self._agents.values() if agent.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def time_s(self) -> float:
        """Virtual seconds since the network was made."""
        return (self.clock.now_ms - EPOCH_MS) / 1000

    @property
    def period(self) -> Period:
        """Where the service is, as a live honest agent sees it (a dead one if all are down)."""
        ranked = sorted(self._agents.values(), key=lambda agent: (agent.period is None, agent.lie is not None))
        return ranked[0].period or Period.decode(self.service, ranked[0].disk)

    @property
    def state(self) -> Any:
        """The agreed state; typed Any because it is the service's own class."""
        return self.period.state

    @property
    def keeper(self) -> Address:
        """The agreed field `keeper`."""
        return Address(self.state.keeper)

    def digests(self) -> dict[Address, bytes]:
        """The digest that each live agent holds."""
        return {me: agent.period.digest() for me, agent in self._agents.items() if agent.period is not None}

    def crash(self, agent: Address | int) -> None:
        """Kill an agent: its act and memory are gone, what it has committed is not. No quorum, no blocks."""
        victim = self._agent(agent)
        if victim.period is None:
            raise ServiceError(f"{victim.address} is already down")
        victim.period = None
        self._stop_act(victim)
        self.crashed.append(victim.address)

    def restart(self, agent: Address | int) -> None:
        """Start a crashed agent from its disk; it replays the blocks that it missed and acts in the round going on."""
        back = self._agent(agent)
        if back.period is not None:
            raise ServiceError(f"{back.address} is not down")
        back.period = Period.decode(self.service, back.disk)
        self.crashed.remove(back.address)
        for block in self._missed[len(self._missed) - (self.height - back.height) :]:
            self._apply(back, block)
        if not self.crashed:
            self._missed.clear()
        self._compare()

    def lie(self, agent: Address | int, lie: Lie | None) -> None:
        """From its next act on the agent sends what `lie` gives for the open period; None makes it honest again."""
        liar = self._agent(agent)
        liar.lie = lie
        self._stop_act(liar)

    async def run_until(
        self,
        *,
        round: AnyRound | str | None = None,
        period: int | None = None,
        settled: tuple[AnyRound | str, str] | None = None,
        when: Callable[[Network], bool] | None = None,
        timeout_s: float = 3600,
    ) -> None:
        """Run until all given conditions hold; `Stalled` after `timeout_s` virtual seconds, or if nothing can happen.

        `round`: that round is going on (a Round, or its name as written: "greet" or "GreetRound"). `period`: at least
        so many periods are over. `settled`: since this call a round has ended so. `when`: whatever the test says.
        """
        since, limit_ms = len(self.rounds), self.clock.now_ms + int(timeout_s * 1000)

        def is_there() -> bool:
            now = self.period
            return (
                (round is None or now.round.name == _name(round))
                and (period is None or now.state.period >= period)
                and (settled is None or self._has_settled(since, *settled))
                and (when is None or when(self))
            )

        while not is_there():
            await self._act()
            next_ms = self._next_ms()
            if next_ms is None or next_ms > limit_ms:
                why = "nothing can happen any more" if next_ms is None else f"{timeout_s} s are over"
                raise Stalled(self._story(why))
            self.clock.advance(next_ms)
            if self._block_ms() == next_ms:
                self._make_block()

    def _has_settled(self, since: int, round: AnyRound | str, event: str) -> bool:
        return any((one.round_name, one.event) == (_name(round), event) for one in self.rounds[since:])

    def _agent(self, agent: Address | int) -> _Agent:
        return self._agents[self.agents[agent] if isinstance(agent, int) else agent]

    def _live(self) -> list[_Agent]:
        return [agent for agent in self._agents.values() if agent.period is not None]

    async def _act(self) -> None:
        """Start the acts of newly opened rounds, then wait until all acts are done or sleep on the virtual clock."""
        for agent in self._live():
            self._open(agent)
        limit = time.monotonic() + ACT_LIMIT_S
        calm = 0
        while calm < 2:  # once more after all are calm: a sleeper's other tasks may still have something to do
            await asyncio.sleep(0)
            busy = [agent for agent in self._agents.values() if agent.is_busy()]
            calm = 0 if busy else calm + 1
            if busy and time.monotonic() > limit:
                raise Stalled(self._story(f"after {ACT_LIMIT_S} real seconds {busy[0].address} still acts"))
        for _, name, error in self.failures:
            if isinstance(error, ServiceError):
                raise ServiceError(f"{name}: {error.message}", fix=error.fix) from error

    def _open(self, agent: _Agent) -> None:
        period = agent.period
        if period is None or period.is_final or agent.opened == period.sequence:
            return
        self._stop_act(agent)
        agent.opened = period.sequence
        if agent.lie is not None:
            for payload in agent.lie(period):
                self._send(agent.address, period.sequence, payload)
            return
        extra = self._context(agent.address) if callable(self._context) else self._context or {}
        agent.context = AgentContext(self, period, agent.address, extra)
        agent.task = asyncio.create_task(self._run_act(agent.context, period))

    async def _run_act(self, context: AgentContext, period: Period) -> None:
        try:
            payload = period.round.encode(await period.round.act(context, period.state))
        except Exception as error:  # whatever an act raises is that agent's silence, and shown when a test stalls
            self.failures.append((context.me, period.round.name, error))
            return
        self._send(context.me, period.sequence, payload)

    def _stop_act(self, agent: _Agent) -> None:
        if agent.task is not None:
            agent.task.cancel()
        agent.task, agent.context, agent.opened = None, None, 0

    def _send(self, sender: Address, sequence: int, payload: bytes) -> None:
        arrival_ms = self.clock.now_ms + self._random.randint(*DELAY_MS)
        self._pending.append((arrival_ms, sender, sequence, payload))

    def _next_ms(self) -> int | None:
        return min((at for at in (self.clock.next_ms(), self._block_ms()) if at is not None), default=None)

    def _block_ms(self) -> int | None:
        """When the next block comes: soon after news, else for a payload or a deadline; None while no quorum is up."""
        if len(self._live()) < quorum_of(len(self.agents)):
            return None
        soonest = max(self._last_block_ms + BLOCK_MS, self.clock.now_ms)
        if self._is_hot:
            return soonest
        reasons = [arrival_ms for arrival_ms, *_ in self._pending]
        if (deadline_ms := self.period.deadline_ms) is not None:
            reasons.append(deadline_ms)
        return max(soonest, min(reasons)) if reasons else None

    def _make_block(self) -> None:
        here = [one for one in self._pending if one[0] <= self.clock.now_ms]
        self._pending = [one for one in self._pending if one[0] > self.clock.now_ms]
        self._random.shuffle(here)
        block = Block(self.clock.now_ms, tuple((sender, sequence, payload) for _, sender, sequence, payload in here))
        before = self.period.digest()
        self.height += 1
        self._last_block_ms = block.time_ms
        if self.crashed:
            self._missed.append(block)
        settled = [self._apply(agent, block) for agent in self._live()]
        self.rounds += [one for one in settled[:1] if one is not None]
        self._is_hot = self.period.digest() != before
        self._compare()

    def _apply(self, agent: _Agent, block: Block) -> Settled | None:
        period = agent.period
        assert period is not None, "only live agents apply blocks"  # noqa: S101
        for payload in block.payloads:
            period = period.deliver(*payload)
        agent.period, settled = period.end_block(block.time_ms)
        agent.disk, agent.height = agent.period.encode(), agent.height + 1
        return settled

    def _compare(self) -> None:
        """All honest live agents must hold one state; that state must survive a restart."""
        honest = [agent for agent in self._live() if agent.lie is None]
        states = {agent.disk for agent in honest}
        if len(states) > 1:
            self._violate("honest agents differ: " + "; ".join(f"{one.address}: {one.disk.decode()}" for one in honest))
        if honest and Period.decode(self.service, honest[0].disk) != honest[0].period:
            self._violate(f"{honest[0].disk.decode()} is not read back as it was")

    def _violate(self, what: str) -> None:
        self.violations.append(f"height {self.height}, {self.period.round}: {what}")
        raise Diverged(self.violations[-1])

    def _story(self, why: str) -> str:
        period = self.period
        parts = [
            f"{why}: round {period.sequence} ({period.round}) of period {period.state.period} at height {self.height}",
            f"not heard of: {[self.agents.index(one) for one in period.missing()]}",
            f"down: {[self.agents.index(one) for one in self.crashed]} (a quorum is {period.quorum} of {period.n})",
            *(f"agent {self.agents.index(who)} failed in {name}: {error!r}" for who, name, error in self.failures[-3:]),
            f"last rounds: {[f'{one.round_name}:{one.event}' for one in self.rounds[-5:]]}",
        ]
        return "; ".join(parts)


def _name(round: AnyRound | str) -> str:
    """The round's name as `agree` writes it."""
    if not isinstance(round, str):
        return round.name
    return round if round.endswith("Round") else "".join(word.capitalize() for word in round.split("_")) + "Round"
