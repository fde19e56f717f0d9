"""Runs the current round's `act` beside consensus: one task a round, started early, repeated when the world fails.

The rules that hold here:
- A round may be opened for a block that is never decided, so acts start for what is merely proposed, and only their
  payload is signed for it; whatever reaches the chain or the Safe is signed for committed state alone.
- An act that fails for the world's sake (a node, an operator) is repeated; any other failure stops the agent.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from quorate.abci import Plan, SignedPayload, UnsignedPayload, UnsignedStatement, Via, ask_for, opening_of, payload_for
from quorate.errors import ChainError, ConfigError, ModelError
from quorate.fsm import Context, Period, Settled
from quorate.offences import Offence
from quorate.units import Address

from . import logs
from .agreed import Agreed
from .decision_maker import AlreadySigned, NotAgreed, OverLimit
from .journal import Journal
from .signer import Signer

__all__ = ["Asked", "Runner"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0


class _Chain(Protocol):
    def offer(self, payload: SignedPayload) -> None: ...
    def ask(self, request: SignedPayload) -> None: ...
    def ask_upgrade(self, ask: SignedPayload) -> None: ...


_Key = tuple[int, bytes]


@dataclass(frozen=True)
class Asked:
    """How it stands with an interrupt that may be asked for."""

    event: str
    is_wanted: bool
    """This agent asks for it, in every period anew."""
    standing: tuple[Address, ...]
    """Whose request is in a block and counts, until the interrupt or the period's end."""
    is_going_on: bool
    taken: int
    """The round with which it began last, as a sequence number; 0 if this life of the agent has not seen it."""
    quorum: int
    members: tuple[Address, ...]
    sequence: int
    round: str


class Runner:
    """One agent's acts. `quorate.abci` calls `opened` and `settled`; payloads go back by `offer`."""

    def __init__(
        self,
        *,
        chain_id: str,
        signer: Signer,
        agreed: Agreed,
        journal: Journal,
        context_of: Callable[[Period], Context],
        told: Callable[[Settled], None] = lambda settled: None,
        keep: Callable[[str, bytes], None] = lambda name, content: None,
    ) -> None:
        """`keep` stores the proof of an offence under a name."""
        self._chain_id = chain_id
        self._signer = signer
        self._agreed = agreed
        self._journal = journal
        self._context_of = context_of
        self._told = told
        self._keep = keep
        self._chain: _Chain | None = None
        self._acts: dict[_Key, asyncio.Task[None]] = {}
        self._committed = 0
        self._wanted: set[str] = set()
        self._inside: frozenset[str] = frozenset()
        self._taken: dict[str, int] = {}
        self._requests: set[asyncio.Task[None]] = set()
        self._commits: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def connect(self, chain: _Chain) -> None:
        """Tell where payloads go."""
        self._chain = chain

    def opened(self, period: Period, committed: bool) -> None:
        """A round is open, in a proposed block or in a committed one: act in it, once."""
        if committed:
            self._commit(period)
        key = (period.sequence, opening_of(period))
        if key in self._acts or period.is_final or period.sequence < self._committed:
            return
        self._acts[key] = self._begin(self._act(period), f"{period.round.name}#{period.sequence}")

    def settled(self, settled: Settled, period: Period, height: int) -> None:
        """A committed block ended a round; `period` is what it led to.

        While this agent catches up, such blocks come without `opened`, and ticks are signed: what it believes to be
        agreed must not lag behind.
        """
        self._agreed.commit(period)
        self._look_inside(period)
        self._told(settled)
        self._journal.settled(settled, height)

    def sent(self, payload: SignedPayload, via: Via) -> None:
        """This agent's payload went out."""
        self._journal.sent(payload.round, payload.sequence, via)

    def offended(self, offence: Offence, proof: bytes) -> None:
        """Somebody's offence is on record."""
        if proof:
            self._keep(f"{offence.evidence}.abi", proof)
        self._journal.offended(offence)

    def ask(self, event: str) -> None:
        """Ask for the interrupt `event`, in every period anew, until it happens, `withdraw`, or this life ends.

        This agent goes on doing its part. One that is going on already is not asked for. `ConfigError` where nobody can
        ask for that, or the service is at rest.
        """
        period = self._known(event)
        if event in dict(period.interrupted):
            return
        if period.is_final:
            raise ConfigError(f"{period.service.name} is at rest in {period.round}; nothing interrupts that")
        self._wanted.add(event)
        self._begin(self._request(period), f"request#{period.sequence}", self._requests)

    def withdraw(self, event: str) -> None:
        """Ask no more; a request that stands already does so until the period's end."""
        self._known(event)
        self._wanted.discard(event)

    def asked(self, event: str, period: Period) -> Asked:
        """How it stands with the interrupt `event` in `period`, which is the last committed one."""
        self._known(event)
        return Asked(
            event=event,
            is_wanted=event in self._wanted,
            standing=tuple(who for one, who in period.asks if one == event),
            is_going_on=event in dict(period.interrupted),
            taken=self._taken.get(event, 0),
            quorum=period.quorum,
            members=period.members,
            sequence=period.sequence,
            round=period.round.name,
        )

    async def ask_upgrade(self, plan: Plan) -> None:
        """Ask for another version of the service's code, as this agent's operator wants; it stands until the next ask.

        `ConfigError` where no member can ask for that.
        """
        while True:
            period = self._agreed.period
            if self._chain is None or period is None:
                raise ConfigError("the agent has seen no block yet", fix="Ask again in a moment.")
            request = ask_for(self._chain_id, period, plan)
            try:
                signature = await self._signer.sign(request)
            except NotAgreed:  # a round ended meanwhile
                continue
            self._chain.ask_upgrade(request.signed(self._signer.address, signature))
            return

    async def sign_tick(self, tick: UnsignedPayload) -> bytes:
        """The agent's signature under a tick: the round's time is over."""
        return await self._signer.sign(tick)

    async def sign_statement(self, statement: UnsignedStatement) -> bytes:
        """The agent's signature under what it holds a block to lead to."""
        return await self._signer.sign(statement)

    async def close(self) -> None:
        """Cancel every act and wait for it."""
        tasks = [*self._acts.values(), *self._requests]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # their failures were noticed when they came

    def _commit(self, period: Period) -> None:
        self._agreed.commit(period)
        self._look_inside(period)
        if period.sequence == self._committed:
            return
        self._committed = period.sequence
        for sequence in [sequence for sequence in self._commits if sequence <= period.sequence]:
            self._commits.pop(sequence).set()
        self._journal.opened(period)
        decided = (period.sequence, opening_of(period))
        for key in [key for key in self._acts if key[0] <= period.sequence and key != decided]:
            self._acts.pop(key).cancel()  # of a round that is over, or of an opening that was proposed in vain

    async def _act(self, period: Period) -> None:
        logs.bind(period)
        await self._request(period)
        name, state, context = period.round.name, period.state, self._context_of(period)
        self._journal.acting(period)
        pause_s = _FIRST_PAUSE_S
        while True:
            is_early = period.sequence > self._committed
            try:
                payload = await period.round.act(context, state)
                break
            except NotAgreed as error:
                if is_early:  # for a block that is not decided yet
                    await self._until_committed(period.sequence)
                    continue
                self._journal.waiting(name, error)
            except OverLimit as error:  # the quorum may go on without this agent; its owner said no
                self._journal.error(f"{name}: {error}")
                return
            except (ChainError, ModelError) as error:
                self._journal.waiting(name, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        await self._send(period, period.round.encode(payload))

    async def _request(self, period: Period) -> None:
        """Ask in this round for what is wanted and does not stand."""
        for event in sorted(self._wanted):
            body = period.ask(event)
            if period.refusal(self._signer.address, period.sequence, body) is None:
                request = await self._signed(period, body)
                if request is not None:
                    self._way.ask(request)

    def _known(self, event: str) -> Period:
        """The agreed period; `ConfigError` where its service has no such interrupt."""
        period = self._agreed.period
        if period is None:
            raise ConfigError("this agent has not seen a block yet", fix="Ask again in a second.")
        name, known = period.service.name, [one.event for one in period.service.interrupts]
        if event not in known:
            there = f"It has {', '.join(known)}." if known else "It has none; see docs/rules.md, Interrupts."
            raise ConfigError(f"{name} has no interrupt {event!r}", fix=there)
        return period

    def _look_inside(self, period: Period) -> None:
        """Take note of the interrupts that are going on: what has begun is no longer wanted."""
        inside = frozenset(event for event, _ in period.interrupted)
        for event in inside - self._inside:
            self._taken[event] = period.sequence
            self._wanted.discard(event)
        self._inside = inside

    async def _send(self, period: Period, body: bytes) -> None:
        payload = await self._signed(period, body)
        if payload is not None:
            self._journal.acted(period)
            self._way.offer(payload)

    async def _signed(self, period: Period, body: bytes) -> SignedPayload | None:
        """None where the quorum went on meanwhile."""
        request = payload_for(self._chain_id, period, body)
        try:
            return request.signed(self._signer.address, await self._signer.sign(request))
        except AlreadySigned as error:
            return error.payload  # this act ran before, in an earlier life, and had given this
        except NotAgreed:
            return None

    @property
    def _way(self) -> _Chain:
        if self._chain is None:
            raise RuntimeError("an act ended before the chain was connected")
        return self._chain

    def _begin(
        self, work: Coroutine[Any, Any, None], name: str, among: set[asyncio.Task[None]] | None = None
    ) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._notice)
        if among is not None:
            among.add(task)
            task.add_done_callback(among.discard)
        return task

    async def _until_committed(self, sequence: int) -> None:
        if sequence > self._committed:
            await self._commits[sequence].wait()

    def _notice(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._journal.error(f"{task.get_name()}: {error!r}")
        if not self.failure.done():
            self.failure.set_result(error)
