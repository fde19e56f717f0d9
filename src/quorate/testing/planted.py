"""Known bugs, planted one at a time into the code that runs, and how many seeds it takes until one is seen.

A simulator that finds nothing may be blind; this one is measured. Each bug is a small, plausible mistake: a check that
is missing, a boundary that is off by one, a thing read from the wrong place. Where CometBFT numbers the requirement
that a bug breaks, so do we.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from quorate.abci import Archive, app, genesis, machine, payload, statement, transaction
from quorate.abci.app import ServiceApp
from quorate.abci.machine import Block, Replica
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.errors import ConfigError, PeerError, Unreachable
from quorate.fsm import BACK, Context, Interrupt, Outcome, Period, Service, State, Votes, agree, codec, keep
from quorate.fsm import period as period_module
from quorate.fsm import state as state_module
from quorate.fsm import votes as votes_module
from quorate.host.agreed import Agreed
from quorate.host.runner import Runner
from quorate.rounds import pause, register, rules
from quorate.testing.disk import MemoryStore
from quorate.testing.faults import Plan
from quorate.testing.simulation import Subject, simulate
from quorate.testing.world import World
from quorate.units import Address, Bps

__all__ = ["BUGS", "Bug", "Verdict", "hunt", "look", "run_planted", "trial", "trial_subject"]

MOST_SEEDS = 60
"""How long a bug is hunted before it counts as not caught."""


# ---- the service in which the bugs are planted: one round of each rule


@dataclass(frozen=True)
class Trial(State):
    """Agreed in the trial."""

    keeper: Address = Address("")
    greeting: str = ""
    estimates: tuple[tuple[Address, Bps], ...] = ()
    median: Bps = Bps(0)
    colour: Literal["red", "blue", "none"] = "none"
    ballots: tuple[tuple[Address, Literal["red", "blue"]], ...] = ()
    laps: int = keep(0)
    halts: int = keep(0)
    aired: int = keep(-1)
    """The last period in which there was fresh air."""


@dataclass(frozen=True)
class _Config:
    pause_s: float = 0.5


def trial() -> Service:
    """Made anew for each bug: the rules are closures, and a planted one must be inside."""

    @agree(rules.same("keeper"), timeout_s=10)
    async def elect(ctx: Context, state: Trial) -> Address:
        await ctx.sleep(int(ctx.me[-1], 16) / 100)
        stray = int(ctx.me[-2:], 16) % 3 if state.period % 3 == 2 else 0  # now and then honest agents see otherwise
        return state.participants[(await ctx.beacon() + stray) % len(state.participants)]

    @agree(rules.only_keeper("greeting"), timeout_s=5)
    async def greet(ctx: Context, state: Trial) -> str:
        if state.period % 4 == 2:  # now and then the keeper has nothing to say, and only the clock ends the round
            is_keeper = ctx.me == state.keeper
            await ctx.sleep(60 if is_keeper else 4.1 + int(ctx.me[-2:], 16) / 320)  # blocks just before the deadline
        return f"{ctx.me} in {state.period}"

    @agree(rules.each("estimates"), timeout_s=10)
    async def estimate(ctx: Context, state: Trial) -> Bps:
        await ctx.sleep(int(ctx.me[-2:], 16) / 1000)
        return Bps(5_000 + int(ctx.me[-2:], 16))

    def settle_median(state: Trial, votes: Votes[Bps]) -> Outcome[Literal["DONE"], Trial] | None:
        if len(votes) < votes.quorum:
            return None
        ranked = sorted(value for _, value in state.estimates)
        return Outcome("DONE", replace(state, median=ranked[(len(ranked) - 1) // 2], laps=state.laps + 1))

    @agree(settle_median, timeout_s=10)
    async def reckon(ctx: Context, state: Trial) -> Bps:
        return Bps(sum(value for _, value in state.estimates) // len(state.estimates))  # says whom it heard

    @agree(rules.choice("colour", ("red", "blue"), otherwise="none", keep="ballots"), timeout_s=10)
    async def poll(ctx: Context, state: Trial) -> Literal["red", "blue"]:
        if int(ctx.me[-1], 16) % 5 == state.period % 5 and await _is_first_try(ctx, state):
            raise Unreachable("an outage of a moment")
        return "red" if (int(ctx.me[-2:], 16) + state.period) % 3 else "blue"

    @agree(rules.same("halts"), timeout_s=10)
    async def halt(ctx: Context, state: Trial) -> int:
        await ctx.sleep(int(ctx.me[-2:], 16) / 1000)
        return state.halts + 1

    @agree(rules.same("aired"), timeout_s=10)
    async def air(ctx: Context, state: Trial) -> int:
        return state.period

    return Service(
        "trial",
        state=Trial,
        config=_Config,
        start=register,
        otherwise=pause,
        interrupts=(
            Interrupt("HALT", to=halt),
            Interrupt("AIR", to=air, when=lambda state: state.period % 3 == 1 and state.aired != state.period),
        ),
        transitions={
            **{(one, event): BACK for one in (halt, air) for event in ("DONE", "NO_MAJORITY", "ROUND_TIMEOUT")},
            (register, "DONE"): elect,
            (register, "ROUND_TIMEOUT"): register,
            (elect, "DONE"): greet,
            (greet, "DONE"): estimate,
            (estimate, "DONE"): reckon,
            (reckon, "DONE"): poll,
            (poll, "DONE"): pause,
            (pause, "DONE"): elect,
        },
    )


_tries: set[tuple[Address, int]] = set()


async def _is_first_try(ctx: Context, state: Trial) -> bool:
    key = (ctx.me, state.period)
    is_first = key not in _tries
    _tries.add(key)
    return is_first


class _TrialWorld(World):
    """What the trial promises of itself."""

    promises = frozenset({"service's own"})

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        _tries.clear()

    def problems(self, at_end: bool) -> Iterable[tuple[str, str]]:
        state = self.setting.agreed().state
        if not isinstance(state, Trial):
            return
        members, honest = self.setting.members, self.setting.honest
        quorum = 2 * len(members) // 3 + 1
        if state.keeper and state.keeper not in members:
            yield "service's own", f"{state.keeper} is keeper"
        if state.laps > state.period + 1:
            yield "service's own", f"{state.laps} laps in period {state.period}"
        if state.colour != "none" and sum(one == state.colour for _, one in state.ballots) < quorum:
            yield "service's own", f"{state.colour} won with {state.ballots}"
        if state.median:
            values = [5_000 + int(who[-2:], 16) for who in honest]
            if not min(values) <= state.median <= max(values):
                yield "service's own", f"the median {state.median} is outside of the honest range"


# ---- the bugs


@dataclass(frozen=True)
class Bug:
    """One planted mistake."""

    name: str
    plant: Callable[[], AbstractContextManager[Any]]
    requirement: str = ""
    """The ABCI requirement that it breaks, by CometBFT's number."""
    is_abroad: bool = False
    """True where it can only be seen in services/delegate of the checkout that we run in."""


BUGS: list[Bug] = []


def _bug(name: str, *owners: Any, attribute: str = "", requirement: str = "") -> Callable[[Any], Any]:
    """Plant the decorated function as `attribute` of each of `owners`; it gets the original as first argument."""

    def note(broken: Any) -> Any:
        @contextlib.contextmanager
        def plant() -> Iterator[None]:
            with contextlib.ExitStack() as stack:
                for owner in owners:
                    stack.enter_context(_swapped(owner, attribute or broken.__name__, broken))
                yield

        BUGS.append(Bug(name, plant, requirement))
        return broken

    return note


@contextlib.contextmanager
def _swapped(owner: Any, name: str, broken: Callable[..., Any]) -> Iterator[None]:
    stored = owner.__dict__[name]
    original = stored.__func__ if isinstance(stored, staticmethod) else stored

    def planted(*arguments: Any, **named: Any) -> Any:
        return broken(original, *arguments, **named)

    setattr(owner, name, staticmethod(planted) if isinstance(stored, staticmethod) else planted)
    try:
        yield
    finally:
        setattr(owner, name, stored)


@contextlib.contextmanager
def _valued(owner: Any, name: str, value: Any) -> Iterator[None]:
    stored = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, stored)


def _value(name: str, *places: tuple[Any, str], value: Any, requirement: str = "") -> None:
    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, attribute in places:
                stack.enter_context(_valued(owner, attribute, value))
            yield

    BUGS.append(Bug(name, plant, requirement))


_count = itertools.count()


# The machine


@_bug("a round's clock starts with the block that opened it", Period)
def end_block(original: Any, self: Period, time_ms: int) -> Any:
    after, settled = original(self, time_ms)
    return (replace(after, clock_ms=time_ms) if settled else after), settled


@_bug("a deadline is noticed a second early", Period, attribute="end_block")
def _early(original: Any, self: Period, time_ms: int) -> Any:
    if self.deadline_ms is not None and time_ms >= self.deadline_ms - 1000:
        return original(self, self.deadline_ms)
    return original(self, time_ms)


@_bug("deadlines are never noticed", Period, attribute="end_block")
def _timeless(original: Any, self: Period, time_ms: int) -> Any:
    return original(self, min(time_ms, self.clock_ms + 1) if self.clock_ms else time_ms)


@_bug("a deadline is noticed a second late", Period, attribute="end_block")
def _late(original: Any, self: Period, time_ms: int) -> Any:
    return original(self, time_ms - 1000 if self.clock_ms else time_ms)


@_bug("the next round does not count up", Period)
def _follow(original: Any, self: Period, outcome: Any) -> Any:
    after = original(self, outcome)
    return replace(after, sequence=after.sequence - 1) if after.round.name == "GreetRound" else after


@_bug("votes stay for the next round", Period, attribute="_follow")
def _sticky(original: Any, self: Period, outcome: Any) -> Any:
    after = original(self, outcome)
    return replace(after, votes=self.votes) if after.round.payload == self.round.payload else after


@_bug("a second payload replaces the first", Period, attribute="_read")
def _replaced(original: Any, self: Period, sender: Address, sequence: int, body: bytes) -> Any:
    return original(replace(self, votes=Votes((), self.n, self.quorum)), sender, sequence, body)


@_bug("a payload that arrives last is forgotten", Period, attribute="deliver")
def _dropped(original: Any, self: Period, sender: Address, sequence: int, body: bytes) -> Any:
    return self if len(self.votes) == self.n - 1 else original(self, sender, sequence, body)


@_bug("the digest leaves the votes out", Period)
def digest(original: Any, self: Period) -> Any:
    return original(replace(self, votes=Votes((), self.n, self.quorum)))


@_bug("the digest leaves the clock out", Period, attribute="digest")
def _clockless(original: Any, self: Period) -> Any:
    return original(replace(self, clock_ms=0))


@_bug("a stored period is read without its clock", Period)
def decode(original: Any, service: Service, data: bytes) -> Any:
    return replace(original(service, data), clock_ms=0)


@_bug("a stored period is read without its last vote", Period, attribute="decode")
def _voteless(original: Any, service: Service, data: bytes) -> Any:
    found = original(service, data)
    return replace(found, votes=Votes(found.votes.pairs[:-1], found.n, found.quorum))


@_bug("a new period keeps every field", State)
def next_period(original: Any, self: State) -> Any:
    return replace(self, period=self.period + 1)


@_bug("a new period forgets what was to be kept", State, attribute="next_period")
def _forgetful(original: Any, self: Any) -> Any:
    return type(self)(participants=self.participants, period=self.period + 1)


@_bug("periods do not count up", State, attribute="next_period")
def _stuck(original: Any, self: State) -> Any:
    return replace(original(self), period=self.period)


@_bug("a quorum is a mere majority", votes_module, period_module, state_module)
def quorum_of(original: Any, n: int) -> int:
    return n // 2 + 1


@_bug("a quorum is two thirds, not more", votes_module, period_module, state_module, attribute="quorum_of")
def _two_thirds(original: Any, n: int) -> int:
    return -(-2 * n // 3)


@_bug("payloads are kept in the order of arrival", Votes)
def of(original: Any, pairs: Any, *, n: int | None = None, quorum: int | None = None) -> Any:
    found = list(pairs)
    ordered = original(found, n=n, quorum=quorum)
    return replace(ordered, pairs=tuple(found))


@_bug("the most frequent payload wins without a quorum", Votes)
def agreed(original: Any, self: Votes[Any]) -> Any:
    values = self.values()
    return (max(values, key=values.count),) if len(values) >= self.quorum else ()


@_bug("an impossible majority is not noticed", Votes)
def split(original: Any, self: Votes[Any]) -> bool:
    return False


@_bug("a majority is given up too early", Votes, attribute="split")
def _hasty(original: Any, self: Votes[Any]) -> bool:
    return bool(original(replace(self, n=self.n - 1)))


# Rules


def _reruled(original: Any, settle: Callable[..., Any]) -> Any:
    """The ready-made rule `original` with another decision, under its own name."""

    def decide(state: Any, votes: Any) -> Any:
        return settle(real, state, votes)

    inner = getattr(original, "settle", None)
    real = inner or original
    decide.__qualname__ = real.__qualname__
    if inner is not None:
        return dataclasses.replace(original, settle=decide)
    decide.traits = original.traits  # type: ignore[attr-defined]  # as rules do
    if hasattr(original, "at_deadline"):
        decide.at_deadline = original.at_deadline  # type: ignore[attr-defined]
    return decide


@_bug("anybody's word counts as the keeper's", rules)
def only_keeper(original: Any, into: str) -> Any:
    def settle(real: Any, state: Any, votes: Any) -> Any:
        for word in votes.values():
            return Outcome("DONE", replace(state, **{into: word}))
        return None

    return _reruled(original(into), settle)


@_bug("a collection ends with one payload less than a quorum", rules)
def each(original: Any, into: str) -> Any:
    return _reruled(original(into), lambda real, state, votes: real(state, replace(votes, quorum=votes.quorum - 1)))


@_bug("a vote without a majority takes the first option", rules)
def choice(original: Any, into: str, options: Any, otherwise: Any, keep: str) -> Any:
    def settle(real: Any, state: Any, votes: Any) -> Any:
        outcome = real(state, votes)
        lost = outcome is not None and getattr(outcome.state, into) == otherwise
        return Outcome("DONE", replace(outcome.state, **{into: options[0]})) if lost else outcome

    return _reruled(original(into, options, otherwise=otherwise, keep=keep), settle)


@_bug("a rule has a memory", rules)
def same(original: Any, into: str) -> Any:
    def settle(real: Any, state: Any, votes: Any) -> Any:
        return None if next(_count) % 5 == 0 else real(state, votes)

    return _reruled(original(into), settle)


@_bug("a rule reads the machine's clock", rules, attribute="same")
def _clocked(original: Any, into: str) -> Any:
    def settle(real: Any, state: Any, votes: Any) -> Any:
        return real(state, votes) if time.monotonic_ns() % 3 else None

    return _reruled(original(into), settle)


# What a block does


@_bug("ticks are not bounded", Replica)
def why_no_tick(original: Any, self: Replica, tick: Any) -> Any:
    return None if tick.sequence == self.period.sequence else original(self, tick)


@_bug("any proposal is accepted", app, attribute="judge", requirement="3")
def _lenient(original: Any, replica: Any, txs: Any) -> Any:
    return None


@_bug("a bundle without a quorum is refused", app, requirement="3")
def judge(original: Any, replica: Replica, txs: Any) -> Any:
    if txs and txs[0].kind is transaction.Kind.BUNDLE and len(txs[0].payloads) < replica.period.quorum:
        return "too few payloads"
    return original(replica, txs)


@_bug("the app hash covers the height, so the chain never sleeps", Replica, attribute="encode")
def _unused(original: Any, self: Replica) -> Any:
    return original(replace(self, hot=self.height))


@_bug("news does not heat the chain", app, attribute="apply_block")
def _cold(original: Any, replica: Replica, block: Block) -> Any:
    found = original(replica, block)
    return replace(found, replica=replace(found.replica, hot=replica.hot))


@_bug("the first block ends rounds", machine, app, attribute="apply_block")
def _first(original: Any, replica: Replica, block: Block) -> Any:
    found = original(replica, block)
    if block.height == 1:
        return replace(found, replica=replace(found.replica, period=found.replica.period.end_block(block.time_ms)[0]))
    return found


@_bug("ticks spent in one round count in the next", machine)
def _end(original: Any, replica: Replica, time_ms: int) -> Any:
    after, settled = original(replica, time_ms)
    return replace(after, ticks=replica.ticks), settled


@_bug("an opening does not say which state it is of", machine)
def opening_of(original: Any, period: Period) -> Any:
    return period.sequence.to_bytes(32, "big")


_value("a validator has power 1", (genesis, "POWER"), (machine, "POWER"), (app, "POWER"), value=1)
_value("an absent validator is given an odd power", (machine, "DEMOTED_POWER"), value=1)


@_bug("two validators are demoted at once", machine)
def _count_absences(original: Any, replica: Replica, block: Block) -> Any:
    after, powers = original(replica, block)
    if machine.DEMOTED_POWER in powers.values() and len(block.absent) + len(block.present) > 1:
        second = next(name for name in (*block.absent, *block.present) if name not in powers)
        powers = {**powers, second: machine.DEMOTED_POWER}
    return after, powers


# The application: requirements 1 to 13


@_bug("a proposal takes half a second", ServiceApp, requirement="1")
async def prepare_proposal(original: Any, self: Any, request: Any) -> Any:
    await asyncio.sleep(0.5)
    return await original(self, request)


@_bug("a proposal forgets the size limit", ServiceApp, attribute="prepare_proposal", requirement="2")
async def _oversized(original: Any, self: Any, request: Any) -> Any:
    grown = pb.RequestPrepareProposal()
    grown.CopyFrom(request)
    grown.max_tx_bytes = 1 << 20
    return await original(self, grown)


@_bug("a proposer does not sort its bundle", app, attribute="encode_bundle", requirement="3")
def _unsorted(original: Any, payloads: Any) -> Any:
    return original(list(reversed(list(payloads))))


@_bug("a proposer leaves the extensions' payloads out", ServiceApp)
def _extensions(original: Any, self: Any, request: Any) -> Any:
    return []


@_bug("a proposer trusts precommits that came late", ServiceApp, attribute="_extensions", requirement="3")
def _trusting(original: Any, self: Any, request: Any) -> Any:
    found = []
    for vote in request.local_last_commit.votes:
        with contextlib.suppress(PeerError):
            if wire := statement.split(vote.vote_extension)[1]:
                found.append(payload.SignedPayload.decode(wire))
    return found


@_bug("nobody compares what the others' blocks led to", ServiceApp)
def _compare(original: Any, self: Any, *arguments: Any) -> None:
    return None


@_bug("an agent states the app hash of before the block", ServiceApp)
async def _state(original: Any, self: Any, block: bytes, replica: Any) -> None:
    await original(self, block, dataclasses.replace(self._replica, height=replica.height))


@_bug("the app hash covers no landmarks", Replica)
def _hash_over(original: Any, self: Any, period_digest: bytes) -> Any:
    return original(dataclasses.replace(self, landmarks=()), period_digest)


@_bug("one agent refuses every third block", ServiceApp, requirement="5")
async def process_proposal(original: Any, self: Any, request: Any) -> Any:
    answer = await original(self, request)
    if self.me == self.genesis.addresses[0] and request.height % 3 == 0:
        answer.status = pb.ResponseProcessProposal.REJECT
    return answer


@_bug("a proposal without one's own payload is refused", ServiceApp, attribute="process_proposal", requirement="3")
async def _vain(original: Any, self: Any, request: Any) -> Any:
    answer = await original(self, request)
    mine = self._outbox.peek(self._replica.opening)
    if mine is not None and request.txs and not any(mine.encode() in tx for tx in request.txs):
        answer.status = pb.ResponseProcessProposal.REJECT
    return answer


@_bug("a proposal is judged otherwise when it comes again", ServiceApp, attribute="process_proposal", requirement="4")
async def _moody(original: Any, self: Any, request: Any) -> Any:
    answer = await original(self, request)
    if request.hash in getattr(self, "_seen_before", ()):
        answer.status = pb.ResponseProcessProposal.REJECT
    self._seen_before = {request.hash}
    return answer


@_bug("vote extensions are refused", ServiceApp, requirement="6")
async def verify_vote_extension(original: Any, self: Any, request: Any) -> Any:
    answer = await original(self, request)
    if request.vote_extension:
        answer.status = pb.ResponseVerifyVoteExtension.REJECT
    return answer


@_bug("a vote extension is judged by one's own state", ServiceApp, attribute="verify_vote_extension", requirement="7")
async def _stateful(original: Any, self: Any, request: Any) -> Any:
    answer = await original(self, request)
    if request.vote_extension and self._outbox.peek(self._replica.opening) is None:
        answer.status = pb.ResponseVerifyVoteExtension.REJECT
    return answer


@_bug("a vote extension is judged at random", ServiceApp, attribute="verify_vote_extension", requirement="8")
async def _random(original: Any, self: Any, request: Any) -> Any:
    answer = await original(self, request)
    if next(_count) % 7 == 0:
        answer.status = pb.ResponseVerifyVoteExtension.REJECT
    return answer


@_bug("a proposal changes the state before it is decided", ServiceApp, attribute="process_proposal", requirement="9")
async def _impatient(original: Any, self: Any, request: Any) -> Any:
    answer = await original(self, request)
    if (known := self._speculated.get(request.hash)) is not None:
        self._replica = known.replica
    return answer


@_bug("a vote writes to the disk", ServiceApp, requirement="9")
async def extend_vote(original: Any, self: Any, request: Any) -> Any:
    answer = await original(self, request)
    self._store.save(self._replica.encode())
    return answer


@_bug("one's own payload counts without being in the block", ServiceApp, requirement="10")
async def finalize_block(original: Any, self: Any, request: Any) -> Any:
    answer = await original(self, request)
    mine = self._outbox.peek(self._replica.opening)
    if mine is not None and self._finalized.settled is None and self._replica.why_not(mine) is None:
        counted = machine.execute(self._finalized.replica, transaction.Transaction(transaction.Kind.PAYLOAD, (mine,)))
        self._finalized = replace(self._finalized, replica=counted)
        answer.app_hash = counted.app_hash
    return answer


@_bug("a block's time is the machine's own", ServiceApp, requirement="11")
def _block(original: Any, self: Any, request: Any, last_commit: Any) -> Any:
    return replace(original(self, request, last_commit), time_ms=int(self._wall_clock() * 1000))


@_bug("a result says whose transaction it was", ServiceApp, attribute="finalize_block", requirement="12")
async def _partial(original: Any, self: Any, request: Any) -> Any:
    answer = await original(self, request)
    for index, tx in enumerate(request.txs):
        if bytes.fromhex(self.me[2:]) in tx:
            answer.tx_results[index].code = 1
    return answer


@_bug("every transaction is let into the mempool", ServiceApp, requirement="13")
async def check_tx(original: Any, self: Any, request: Any) -> Any:
    return pb.ResponseCheckTx()


@_bug("the mempool refuses what counts now", ServiceApp, attribute="check_tx", requirement="13")
async def _closed(original: Any, self: Any, request: Any) -> Any:
    answer = await original(self, request)
    return answer if request.type == pb.RECHECK or self.height % 4 else pb.ResponseCheckTx(code=1)


@_bug("stale transactions stay in the mempool", ServiceApp, attribute="check_tx", requirement="13")
async def _hoarding(original: Any, self: Any, request: Any) -> Any:
    return pb.ResponseCheckTx() if request.type == pb.RECHECK else await original(self, request)


@_bug("blocks are remembered by height, not by hash", ServiceApp, requirement="11")
def _speculate(original: Any, self: Any, request: Any, last_commit: Any) -> Any:
    key = b"height %d" % request.height
    found = self._speculated.get(key) or original(self, request, last_commit)
    self._speculated[key] = found
    return found


# Crashes


@_bug("Commit answers before it has written", MemoryStore)
def save(original: Any, self: Any, value: bytes) -> None:
    asyncio.get_running_loop().call_later(0.2, lambda: self._disk.write(value))


@_bug("Commit writes every other block", MemoryStore, attribute="save")
def _lazy(original: Any, self: Any, value: bytes) -> None:
    if next(_count) % 2:
        original(self, value)


@_bug("the state is written before the block is decided", ServiceApp, attribute="finalize_block")
async def _hurried(original: Any, self: Any, request: Any) -> Any:
    answer = await original(self, request)
    self._store.save(self._finalized.replica.encode())
    return answer


@_bug("Info claims a block more than there is", ServiceApp)
async def info(original: Any, self: Any, request: Any) -> Any:
    answer = await original(self, request)
    if answer.last_block_height:
        answer.last_block_height += 1
    return answer


@_bug("Info tells the app hash of the genesis", ServiceApp, attribute="info")
async def _outdated(original: Any, self: Any, request: Any) -> Any:
    answer = await original(self, request)
    if answer.last_block_height:
        answer.last_block_app_hash = bytes(32)
    return answer


@_bug("a damaged state is believed", machine)
def _checksum(original: Any, fields: Any) -> str:
    return ""


@_bug("the spent ticks are not stored", Replica, attribute="encode")
def _tickless(original: Any, self: Replica) -> Any:
    return original(replace(self, ticks=()))


# Snapshots


@_bug("a snapshot is taken on trust", ServiceApp)
def _adopt(original: Any, self: Any, incoming: Any, whole: bytes) -> None:
    try:
        taken = Replica.decode(self.service, whole)
    except ConfigError as error:
        raise PeerError(error.message) from error
    original(self, replace(incoming, app_hash=taken.app_hash), whole)


@_bug("a snapshot's height is believed, whatever its state says", ServiceApp, attribute="_adopt")
def _mislabelled(original: Any, self: Any, incoming: Any, whole: bytes) -> None:
    original(self, incoming, replace(Replica.decode(self.service, whole), height=incoming.snapshot.height).encode())


@_bug("blocks are pruned up to the newest snapshot", Archive)
def committed(original: Any, self: Any, height: int, state: bytes) -> Any:
    return original(self, height, state) and height + 1


@_bug("a taken snapshot is not stored", ServiceApp, attribute="_adopt")
def _fleeting(original: Any, self: Any, incoming: Any, whole: bytes) -> None:
    store, self._store = self._store, _Nowhere()
    original(self, incoming, whole)
    self._store = store


class _Nowhere:
    def adopt(self, value: bytes) -> None: ...


_value("a snapshot that no block followed is kept", (MemoryStore, "is_adopted"), value=False)


# Interrupts


@_bug("one agent's ask is enough for an interrupt", Period)
def _enter(original: Any, self: Period, target: Any, state: Any, asks: Any, inside: Any) -> Any:
    return original(self, target, state, tuple((event, who) for event, _ in asks for who in self.members), inside)


@_bug("asks outlive their period", Period, attribute="_enter")
def _lasting(original: Any, self: Period, target: Any, state: Any, asks: Any, inside: Any) -> Any:
    return original(self, target, state, asks or self.asks, inside)


@_bug("an interrupt comes back to the start", Period, attribute="_enter")
def _lost(original: Any, self: Period, target: Any, state: Any, asks: Any, inside: Any) -> Any:
    return original(self, self.service.start if len(inside) < len(self.interrupted) else target, state, asks, inside)


@_bug("asks are forgotten when a round ends", Period, attribute="_follow")
def _deaf(original: Any, self: Period, outcome: Any) -> Any:
    return original(replace(self, asks=()), outcome)


@_bug("a stored period is read without its asks", Period, attribute="decode")
def _askless(original: Any, service: Service, data: bytes) -> Any:
    return replace(original(service, data), asks=())


@_bug("the digest leaves the interrupts out", Period, attribute="digest")
def _flat(original: Any, self: Period) -> Any:
    return original(replace(self, interrupted=()))


# Signatures and codec


@_bug("signatures of payloads are not checked", payload.SignedPayload)
def is_signed_by_sender(original: Any, self: Any, chain_id: str) -> bool:
    return True


@_bug("whoever signs may speak, member or not, in anybody's name", transaction.Roll, attribute="payload")
def _anybody(original: Any, self: Any, wire: bytes) -> Any:
    return payload.SignedPayload.decode(wire)


@_bug("payloads are read leniently", codec, attribute="decode")
def _sloppy(original: Any, hint: Any, data: bytes) -> Any:
    try:
        return original(hint, data)
    except PeerError:
        if hint is Bps or hint is int:
            return 0
        raise


# The agent


@_bug("an act that fails is not repeated", Runner)
async def _act(original: Any, self: Any, period: Period) -> None:
    state, context = period.state, self._context_of(period)
    try:
        answer = await period.round.act(context, state)
    except Unreachable:
        await asyncio.sleep(10**6)
        return
    request = machine.payload_for(self._chain_id, period, period.round.encode(answer))
    self._chain.offer(request.signed(self._signer.address, await self._signer.sign(request)))


@_bug("what is agreed is told to the signing boundary only once", Agreed)
def commit(original: Any, self: Agreed, period: Period) -> None:
    if self.period is None:
        original(self, period)


@_bug("a payload that came too late for its vote is never sent", ServiceApp)
def _send(original: Any, self: Any, payload: Any) -> None:
    return None


@_bug("an agent is told of old news when it is restarted", ServiceApp, attribute="_announce_now")
def _stale(original: Any, self: Any) -> None:
    self._quiet = None
    self._agent.opened(Period.start(self.service, self.genesis.addresses), True)


@_bug("nobody ticks at a deadline", ServiceApp)
def _watch_deadline(original: Any, self: Any) -> None:
    return None


@_bug("a restarted agent does not act until something happens", ServiceApp)
def start(original: Any, self: Any, broadcast: Any) -> None:
    self._broadcast = broadcast


# The delegate's policy and settlement


def _abroad(name: str, module: str, attribute: str, broken: Callable[..., Any]) -> None:
    """A bug in a skill or in what only the delegate uses; hunted in services/delegate."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        with _swapped(importlib.import_module(module), attribute, broken):
            yield

    BUGS.append(Bug(name, plant, is_abroad=True))


_abroad(
    "the policy finds nothing to forbid",
    "skills.governance.rounds",
    "rule_on",
    lambda original, *arguments: replace(original(*arguments), verdict="ALLOWED"),
)
_abroad("the delegate is for everything", "skills.governance.rounds", "choose", lambda original, *arguments: "FOR")
_abroad(
    "the vote is drafted for the other side",
    "skills.governance.rounds",
    "Governor",
    lambda original, *arguments: _Contrary(original(*arguments)),
)
_abroad(
    "anybody's signature counts as an owner's",
    "quorate.rounds.settle",
    "_is_signed_by",
    lambda original, sender, signature: True,
)


class _Contrary:
    """A Governor whose votes are turned round."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def cast_vote_with_reason(self, proposal: int, support: int, reason: str) -> Any:
        return self._real.cast_vote_with_reason(proposal, 1 if support == 0 else support, reason)


# ---- the hunt


@dataclass(frozen=True)
class Verdict:
    """What became of the planted bugs."""

    bugs: tuple[tuple[str, str, int, str], ...]
    """(name, ABCI requirement, seeds until caught (0: not caught), the invariant that saw it)."""
    control: tuple[tuple[int, bool, str], ...]
    """(seed, whether it was the delegate's, what was seen) of the same seeds without any bug: nothing should be."""
    seconds: float

    @property
    def planted(self) -> int:
        """How many faults were put in."""
        return len(self.bugs)

    @property
    def caught(self) -> int:
        """Those that were seen; none, where the same seed shows something without a bug, too."""
        return sum(seeds > 0 for _, _, seeds, _ in self.bugs) if not self.false_catches else 0

    @property
    def false_catches(self) -> int:
        """Seeds that look broken without any bug. One of them makes the whole figure worthless."""
        return sum(bool(seen) for _, _, seen in self.control)

    @property
    def median_seeds(self) -> float:
        """Over those that were caught."""
        return float(statistics.median([seeds for _, _, seeds, _ in self.bugs if seeds] or [0]))

    def figures(self) -> Mapping[str, Any]:
        """For programs."""
        return {
            "planted": self.planted,
            "caught": self.caught,
            "share": round(self.caught / max(1, self.planted), 4),
            "median_seeds": self.median_seeds,
            "uncaught": [name for name, _, seeds, _ in self.bugs if not seeds],
            "by_error": sum(invariant.startswith("(") for _, _, _, invariant in self.bugs),
            "control_seeds": len(self.control),
            "false_catches": self.false_catches,
            "seconds": self.seconds,
        }


def hunt(name: str, most: int = MOST_SEEDS) -> dict[str, Any]:
    """Plant one bug and simulate seed after seed until an invariant breaks."""
    bug = next(one for one in BUGS if one.name == name)
    for seed in range(most):
        delegate = _delegate() if bug.is_abroad else None  # not under the bug: it plants into what was imported
        with bug.plant():
            if seen := _look(seed, delegate):
                return {"name": name, "requirement": bug.requirement, "seeds": seed + 1, "invariant": seen}
    return {"name": name, "requirement": bug.requirement, "seeds": 0, "invariant": ""}


def trial_subject() -> Subject:
    """The trial as `simulate` takes it."""
    return Subject(trial(), _Config(), _TrialWorld)


def look(seed: int, *, is_abroad: bool = False) -> str:
    """What a seed shows of the code as it is; empty where nothing is wrong. The control of every hunt."""
    return _look(seed, _delegate() if is_abroad else None)


def _look(seed: int, delegate: Subject | None) -> str:
    subject = delegate or trial_subject()
    try:
        report = simulate(subject, Plan.draw(seed, agents=subject.agents, has_world=delegate is not None))
    except Exception as error:  # a bug that ends the run with an error is seen as well
        return f"({type(error).__name__})"
    return report.violations[0].invariant if report.violations else ""


def _delegate() -> Subject:
    from quorate.testing.campaign import load_subject

    return load_subject(Path.cwd() / "services" / "delegate")


def run_planted(*, workers: int | None = None, most: int = MOST_SEEDS) -> Verdict:
    """Hunt every bug, on all cores; then run the seeds that were needed without any."""
    from quorate.testing.campaign import run_workers

    began = time.monotonic()
    count = workers or os.cpu_count() or 1
    names = [bug.name for bug in BUGS]
    found = {
        line["name"]: line
        for line in run_workers([{"planted": names[i::count], "most": most} for i in range(count)], hash_seed=1)
    }
    needed = [
        [seed, is_abroad]
        for is_abroad in (False, True)
        for seed in range(max((found[b.name]["seeds"] or most for b in BUGS if b.is_abroad is is_abroad), default=0))
    ]
    lines = run_workers([{"control": needed[i::count]} for i in range(count)], hash_seed=1)
    control = tuple(sorted((line["seed"], line["is_abroad"], line["seen"]) for line in lines))
    bugs = tuple((n, found[n]["requirement"], found[n]["seeds"], found[n]["invariant"]) for n in names)
    return Verdict(bugs, control, round(time.monotonic() - began, 1))
