"""Runs the current round's `act` beside consensus: one task a round, started early, repeated when the world fails.

The rules that hold here:
- A round may be opened for a block that is never decided, so acts start for what is merely proposed, and only their
  payload is signed for it; whatever reaches the chain or the Safe is signed for committed state alone.
- An act that fails for the world's sake (a node, an operator) is repeated; any other failure stops the agent.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

from quorate.abci import SignedPayload, UnsignedPayload, Via, opening_of, payload_for
from quorate.errors import ChainError, ModelError
from quorate.fsm import Context, Period, Settled

from . import logs
from .agreed import Agreed
from .decision_maker import NotAgreed, OverLimit
from .journal import Journal
from .signer import Signer

__all__ = ["Runner"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0


class _Chain(Protocol):
    def offer(self, payload: SignedPayload) -> None: ...


_Key = tuple[int, bytes]


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
    ) -> None:
        self._chain_id = chain_id
        self._signer = signer
        self._agreed = agreed
        self._journal = journal
        self._context_of = context_of
        self._chain: _Chain | None = None
        self._acts: dict[_Key, asyncio.Task[None]] = {}
        self._committed = 0
        self._asking: str | None = None
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
        task = asyncio.get_running_loop().create_task(self._act(period), name=f"{period.round.name}#{period.sequence}")
        task.add_done_callback(self._notice)
        self._acts[key] = task

    def settled(self, settled: Settled, period: Period, height: int) -> None:
        """A committed block ended a round; `period` is what it led to.

        While this agent catches up, such blocks come without `opened`, and ticks are signed: what it believes to be
        agreed must not lag behind.
        """
        self._agreed.commit(period)
        self._journal.settled(settled, height)

    def sent(self, payload: SignedPayload, via: Via) -> None:
        """This agent's payload went out."""
        self._journal.sent(payload.round, payload.sequence, via)

    def ask(self, event: str) -> None:
        """Ask for the interrupt `event` until it stands: in the next round, in place of this agent's part there."""
        self._asking = event

    async def sign_tick(self, tick: UnsignedPayload) -> bytes:
        """The agent's signature under a tick: the round's time is over."""
        return await self._signer.sign(tick)

    async def close(self) -> None:
        """Cancel every act and wait for it."""
        tasks = list(self._acts.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # their failures were noticed when they came

    def _commit(self, period: Period) -> None:
        self._agreed.commit(period)
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
        if (request := self._request_in(period)) is not None:
            await self._send(period, request)
            return
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

    def _request_in(self, period: Period) -> bytes | None:
        """The interrupt that is asked for, unless this agent's request stands or the interrupt is going on."""
        event = self._asking
        if event is None:
            return None
        if (event, self._signer.address) in period.asks or event in dict(period.interrupted):
            self._asking = None
            return None
        request = period.ask(event)
        if (problem := period.refusal(self._signer.address, period.sequence, request)) is not None:
            self._journal.error(f"{event} cannot be asked for: {problem}")
            self._asking = None
            return None
        return request

    async def _send(self, period: Period, body: bytes) -> None:
        request = payload_for(self._chain_id, period, body)
        try:
            signature = await self._signer.sign(request)
        except NotAgreed:
            return  # the quorum went on while this act was at work
        if self._chain is None:
            raise RuntimeError("an act ended before the chain was connected")
        self._journal.acted(period)
        self._chain.offer(request.signed(self._signer.address, signature))

    async def _until_committed(self, sequence: int) -> None:
        if sequence > self._committed:
            await self._commits[sequence].wait()

    def _notice(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._journal.error(f"{task.get_name()}: {error!r}")
        if not self.failure.done():
            self.failure.set_result(error)
