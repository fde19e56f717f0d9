"""One seed, from its plan to its verdict.

First phase: the faults that the seed has drawn, at moments that it has drawn; only safety is asked for. Second phase:
everything heals but the liars; now every round must end in time and new periods must complete. The same seed and code
give the same trace, in any process.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from quorate import members as member_records
from quorate import signatures
from quorate.abci import SignedPayload, evidence, machine, payload
from quorate.abci.machine import Replica
from quorate.abci.membership import begin
from quorate.errors import ConfigError
from quorate.fsm import Period, Service
from quorate.rounds import settle
from quorate.testing.consensus import EPOCH_S, Consensus, Peer, seen_votes
from quorate.testing.faults import ABROAD, LIES, Plan
from quorate.testing.loop import Stuck, run_virtual
from quorate.testing.oracles import Judge, Violation
from quorate.testing.process import CHAIN_ID, Process, genesis_of, keys, signed_by
from quorate.testing.upgrade import Rollout
from quorate.testing.world import Setting, World
from quorate.units import Address

__all__ = ["CRASH_POINTS", "Report", "Subject", "simulate"]

CRASH_POINTS = (
    *("prepare_proposal:before", "prepare_proposal:after", "process_proposal:before", "process_proposal:after"),
    *("extend_vote:before", "extend_vote:after"),
    "verify_vote_extension:after",
    "check_tx:after",
    "finalize_block:before",
    "finalize_block:after",
    "after results",
    "commit:before",
    "save:before",
    "save:after",
    "commit:after",
    "init_chain:after",
    *("offer_snapshot:after", "apply_snapshot_chunk:before", "apply_snapshot_chunk:after"),
)  # fmt: skip
_STORY_LINES = 40
_HEALTHY_LIMIT_S = 4000.0
_RECORDED_S = 5.0
_LONGEST_STORM = 40  # times what the plan says, where it asks for many rounds


@dataclass(frozen=True)
class Subject:
    """A service as a simulation needs it."""

    service: Service
    config: Any
    make_world: type[World] = World
    agents: int | None = None
    """How many agents; None: each seed draws 4 to 7."""


@dataclass(frozen=True)
class Report:
    """What came of one seed."""

    plan: Plan
    violations: tuple[Violation, ...]
    trace: str
    """sha256 over everything that happened."""
    periods: int
    rounds: int
    blocks: int
    virtual_s: float
    story: tuple[str, ...]
    """The faults and what came of them, in order."""
    checks: dict[str, int]


def simulate(subject: Subject, plan: Plan) -> Report:
    """Run one seed. Prints nothing and raises only for a mistake of the service's author."""
    logging.disable(logging.CRITICAL)
    try:
        with _remembering():
            simulation = _Simulation(subject, plan)
            try:
                return run_virtual(simulation.run())
            except Stuck as error:
                return simulation.give_up(error.message)
    finally:
        logging.disable(logging.NOTSET)


_PURE: tuple[tuple[Any, str], ...] = (
    *((payload, "payload_digest"), (member_records, "binding_digest")),
    *((one, "keccak") for one in (signatures, payload, machine)),
    *((one, "recover") for one in (payload, member_records, settle)),
)
_METHODS: tuple[tuple[Any, str], ...] = (
    *((SignedPayload, name) for name in ("is_signed_by_sender", "decode")),
    *((kind, "decode") for kind in (evidence.Equivocation, evidence.InvalidPayload)),
)
"""What every agent works out by itself, by owner and name; the answer hangs on nothing but the arguments."""


@contextlib.contextmanager
def _remembering() -> Iterator[None]:
    """Each agent checks each signature by itself; here they are in one process, and once is enough."""
    with contextlib.ExitStack() as stack:
        for owner, name in _PURE:
            quick = _recalled if name == "recover" else _cached(getattr(owner, name))
            stack.enter_context(_swapped(owner, name, quick))
        for owner, name in _METHODS:  # made anew for each seed: bugs are planted here
            stored = owner.__dict__[name]
            is_static = isinstance(stored, staticmethod)
            quick = functools.lru_cache(4096)(stored.__func__ if is_static else stored)
            stack.enter_context(_swapped(owner, name, staticmethod(quick) if is_static else quick))
        yield


@contextlib.contextmanager
def _swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    stored = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, stored)


@functools.cache
def _cached(function: Callable[..., Any]) -> Callable[..., Any]:
    return functools.lru_cache(4096)(function)


_recover = functools.lru_cache(4096)(signatures.recover)


def _recalled(digest: bytes, signature: bytes) -> Address | None:
    """As `quorate.signatures.recover`; what a key of ours has just signed needs no curve."""
    return signed_by(digest, signature) or _recover(digest, signature)


class _Simulation:
    def __init__(self, subject: Subject, plan: Plan) -> None:
        self.subject, self.plan = subject, plan
        self.rng = random.Random(f"run {plan.seed}")  # noqa: S311  # the seed is the point
        self.lies_rng = random.Random(f"lies {plan.seed}")  # noqa: S311
        self.client_rng = random.Random(f"client {plan.seed}")  # noqa: S311
        self._has_left = False
        self.story: list[str] = []
        self.trace = hashlib.sha256()

    async def run(self) -> Report:
        plan, service = self.plan, self.subject.service
        loop = asyncio.get_running_loop()
        members = tuple(key.address for key in keys(plan.agents))
        honest = frozenset(who for i, who in enumerate(members) if i not in plan.liars)
        genesis = genesis_of(service, plan.agents)
        first = begin(service, genesis)
        self.judge = Judge(
            service, CHAIN_ID, members, loop.time, honest, EPOCH_S, first=first, has_landmarks=genesis.has_landmarks
        )
        setting = Setting(
            random.Random(f"world {plan.seed}"),  # noqa: S311
            loop.time,
            asyncio.sleep,
            members,
            honest,
            lambda: self.judge.witness.period,
            self._note,
        )
        self.world = self.subject.make_world(setting, self.subject.config)
        self.rollout = Rollout(service, random.Random(f"rollout {plan.seed}"))  # noqa: S311
        self.judge.successor = self.rollout.new
        self.consensus = Consensus(
            genesis, self.judge, self.rng, plan.liars, self._spawn, self._note, self._add_to_trace
        )
        self._note(f"{plan.agents} agents, liars {list(plan.liars)}, faults: {', '.join(plan.faults) or 'none'}")
        work = [loop.create_task(self.world.live()), loop.create_task(self.consensus.run())]
        try:
            for peer in self.consensus.peers:
                await self.consensus.revive(peer)
            await self._phases(work)
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        return self._report()

    def give_up(self, why: str) -> Report:
        """Nothing can happen any more, or it has no end."""
        self.judge.require("periods go on", False, why)
        return self._report()

    async def _phases(self, work: list[asyncio.Task[None]]) -> None:
        await self._watch(self._storm(), work)
        if not self.judge.is_broken:
            await self._heal()
            await self._watch(self._recover(), work)
        self._ask_world(at_end=True)

    async def _watch(self, phase: Any, work: list[asyncio.Task[None]]) -> None:
        """Let a phase go on until it ends, or something is broken."""
        task = asyncio.get_running_loop().create_task(phase)
        while not task.done() and not self.judge.is_broken:
            for one in work:
                if one.done():
                    one.result()
            await asyncio.wait({task, *(one for one in work if not one.done())}, timeout=0.5)
            await self.consensus.read(self.client_rng.choice(self.consensus.peers))
            self._ask_world(at_end=False)
        if task.done():
            task.result()
        task.cancel()

    def _ask_world(self, *, at_end: bool) -> None:
        for name in self.world.promises:
            self.judge.checks[name] += 1
        for name, message in self.world.problems(at_end):
            self.judge.require(name, False, message)

    # ---- the first phase

    async def _storm(self) -> None:
        end = self.consensus.now_s + self.plan.storm_s
        last = end + _LONGEST_STORM * self.plan.storm_s
        self._begin_lasting()
        sudden = [one for one in self.plan.faults if one in _SUDDEN]
        while self.consensus.now_s < end or (self.consensus.now_s < last and self._is_short()):
            await asyncio.sleep(self.rng.expovariate(0.8))
            self._lie()
            self._leave()
            if sudden and not self.judge.is_broken:
                fault = self.rng.choice(sudden)
                await getattr(self, _SUDDEN[fault])(fault)

    def _is_short(self) -> bool:
        return len(self.judge.settled) < self.plan.rounds and not self.judge.is_broken

    def _begin_lasting(self) -> None:
        net, plan = self.consensus, self.plan
        net.loss = self.rng.uniform(0.02, 0.3) if plan.has("loss") else 0.0
        net.twice = 0.5 if plan.has("duplicate") else 0.0
        net.disorder = 0.5 if plan.has("reorder") else 0.0
        if plan.has("delay"):
            net.slow_s = self.rng.uniform(0.05, 0.4)
            for pair in self._pairs():
                if self.rng.random() < 0.5:
                    net.links[pair] = "slow"

    def _lie(self) -> None:
        """Start-up needs everybody (`register` tolerates nobody), so lies begin after the first round."""
        if self.judge.settled:
            self.consensus.lies = frozenset(one for one in self.plan.faults if one in LIES)
            self.judge.may_linger = "mempool flood" in self.consensus.lies

    def _leave(self) -> None:
        """One agent stays away: early, so that it is long, but not before all have registered."""
        if self.plan.has("long absence") and self.judge.settled and not self._has_left:
            self._has_left = True
            peer = self.consensus.peers[self.plan.seed % self.plan.agents]
            self.consensus.crash(peer, "for long")
            self._later(self.plan.storm_s, lambda: self.consensus.revive(peer))

    def _pairs(self) -> list[tuple[int, int]]:
        n = self.plan.agents
        return [(a, b) for a in range(n) for b in range(n) if a != b]

    async def _crash(self, fault: str) -> None:
        peer = self._pick()
        self.consensus.crash(peer, "killed")
        self._later(self.rng.uniform(0.05, 6), lambda: self.consensus.revive(peer))

    async def _crash_in_handler(self, fault: str) -> None:
        peer = self._pick()
        peer.armed = self.rng.choice(CRASH_POINTS)
        self._note(f"agent {peer.index} will die at {peer.armed}")
        self._later(self.rng.uniform(1, 6), lambda: self._revive_dead(peer))

    async def _torn_write(self, fault: str) -> None:
        peer = self._pick()
        self.consensus.crash(peer, "power cut")
        peer.disk.lose(self.rng.randint(1, 3))
        self._later(self.rng.uniform(0.05, 4), lambda: self.consensus.revive(peer))

    async def _truncated_log(self, fault: str) -> None:
        peer = self._pick()
        if self.consensus.is_needed(peer):
            return
        self.consensus.crash(peer, "the end of its data is lost")
        keep = max(0, peer.height - self.rng.randint(1, 20))
        if keep <= peer.base:
            peer.wipe()
        else:
            peer.commit = seen_votes(peer.blocks[keep - 1], peer)
            peer.blocks, peer.is_wiped, peer.locked = peer.blocks[:keep], True, None
            peer.disk.wipe()
        self._later(self.rng.uniform(0.05, 4), lambda: self.consensus.revive(peer))

    async def _wiped(self, fault: str) -> None:
        peer = self._pick()
        if self.consensus.is_needed(peer):
            return
        self.consensus.crash(peer, "all its data is lost")
        peer.wipe()
        self._later(self.rng.uniform(0.05, 4), lambda: self.consensus.revive(peer))

    async def _bit_flip(self, fault: str) -> None:
        peer = self._pick()
        if peer.base and self.consensus.is_needed(peer):
            return  # the owner of a damaged agent clears its node as well, where that has pruned
        self.consensus.crash(peer, "a bit of its state turns over")
        if peer.disk.saved:
            before = peer.disk.saved
            peer.disk.flip(self.rng.randrange(8 * len(before)))
            peer.is_wiped, peer.is_damaged = True, peer.base > 0
            self._check_damage(peer, before)
        self._later(self.rng.uniform(0.05, 4), lambda: self.consensus.revive(peer))

    def _check_damage(self, peer: Peer, before: bytes) -> None:
        """A state that was damaged is refused, or means the same in spite of it."""
        service = self.subject.service
        try:
            read = Replica.decode(service, peer.disk.saved or b"")
        except ConfigError:
            self.judge.require("damage is found", True)
            return
        except Exception as error:  # anything but ConfigError is the finding
            self.judge.require("damage is found", False, f"a damaged state makes the start fail with {error!r}")
            return
        self.judge.require("damage is found", read == Replica.decode(service, before), "a damaged state is believed")

    async def _full_disk(self, fault: str) -> None:
        peer = self._pick()
        peer.disk.is_full = True
        self._note(f"agent {peer.index}'s disk is full")
        self._later(self.rng.uniform(0.5, 4), lambda: self._make_room(peer))

    async def _make_room(self, peer: Peer) -> None:
        peer.disk.is_full = False
        await self.consensus.revive(peer)

    async def _revive_dead(self, peer: Peer) -> None:
        peer.armed = ""
        await self.consensus.revive(peer)

    async def _clock(self, fault: str) -> None:
        wrong = {one.index for one in self.consensus.peers if one.offset_s} | set(self.plan.liars)
        peer = self._pick()
        if len(wrong | {peer.index}) > (self.plan.agents - 1) // 3:
            return  # block time stands as many wrong clocks as liars, together
        peer.offset_s, peer.drift = self.rng.uniform(-20, 20), self.rng.uniform(-0.05, 0.05)
        self._note(f"agent {peer.index}'s clock is off by {peer.offset_s:.1f} s and {peer.drift:.1%}")

    async def _one_way(self, fault: str) -> None:
        deaf = self._pick()
        is_deaf = self.rng.random() < 0.5
        pairs = [pair for pair in self._pairs() if pair[1 if is_deaf else 0] == deaf.index]
        self._note(f"agent {deaf.index} {'hears nobody' if is_deaf else 'is heard by nobody'}")
        self._cut(pairs, self.rng.uniform(0.2, 3))

    async def _partition(self, fault: str) -> None:
        side = {i for i in range(self.plan.agents) if self.rng.random() < 0.5}
        self._note(f"{sorted(side)} and the others do not hear each other")
        self._cut([(a, b) for a, b in self._pairs() if (a in side) != (b in side)], self.rng.uniform(0.2, 3))

    async def _clog(self, fault: str) -> None:
        pairs = [pair for pair in self._pairs() if self.rng.random() < 0.4]
        self._note(f"{len(pairs)} links clog one by one")
        for delay, pair in enumerate(pairs):
            self._later(0.1 * delay, functools.partial(self._cut_for, [pair], self.rng.uniform(0.3, 3)))

    def _cut(self, pairs: list[tuple[int, int]], seconds: float) -> None:
        self.consensus.links.update(dict.fromkeys(pairs, "cut"))
        self._later(seconds, lambda: self._mend(pairs))

    async def _cut_for(self, pairs: list[tuple[int, int]], seconds: float) -> None:
        self._cut(pairs, seconds)

    async def _mend(self, pairs: list[tuple[int, int]]) -> None:
        for pair in pairs:
            self.consensus.links.pop(pair, None)

    async def _flood(self, fault: str) -> None:
        for liar in self.plan.liars:
            if self.judge.settled:
                await self.consensus.flood(self.consensus.peers[liar])

    async def _interrupt(self, fault: str) -> None:
        """Fewer than a quorum must not be enough, and cost nothing."""
        interrupts = self.subject.service.interrupts
        if interrupts and self.judge.settled:
            event = self.rng.choice(interrupts).event
            asking = self.rng.sample(self.consensus.peers, self.rng.randint(1, self.plan.agents))
            self._note(f"agents {sorted(peer.index for peer in asking)} ask for {event}")
            for peer in asking:
                if peer.process is not None and peer.process.app.height:
                    with contextlib.suppress(ConfigError):  # it has yet to see a block
                        peer.process.runner.ask(event)

    async def _rolling(self, fault: str) -> None:
        self._note("the agents are restarted one after the other")
        if self.rollout.plan is None:
            self.rollout.want(self.judge.witness.height)
            self.consensus.spawn(self._ask_for_upgrade())
        for peer in self.consensus.peers:
            self.consensus.crash(peer, "upgrade")
            await asyncio.sleep(self.rng.uniform(0.05, 0.4))
            await self.consensus.revive(peer)

    async def _ask_for_upgrade(self) -> None:
        """Until a quorum has: in any round, and again after restarts."""
        self._note("operators ask for the next version of the code")
        while self.rollout.is_open(self.judge.witness):
            up = [peer.process.runner for peer in self.consensus.peers if peer.is_up and peer.process]
            await self.rollout.ask(up)
            await asyncio.sleep(self.rng.uniform(0.2, 2))

    async def _abroad(self, fault: str) -> None:
        if fault in self.world.faults:
            self.world.disturb(fault)

    def _pick(self) -> Peer:
        return self.rng.choice(self.consensus.peers)

    def _later(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            await work()

        self.consensus.spawn(wait())

    # ---- the second phase

    async def _heal(self) -> None:
        net = self.consensus
        net.loss = net.twice = net.disorder = net.slow_s = 0.0
        net.links.clear()
        self._note("everything heals")
        for peer in net.peers:
            peer.offset_s, peer.drift, peer.armed, peer.disk.is_full = 0.0, 0.0, "", False
        self.world.heal()
        if self.plan.has("blackout"):
            await asyncio.sleep(5)  # long enough for the chain to fall asleep
            for peer in net.peers:
                net.crash(peer, "blackout")
        for peer in net.peers:
            await net.revive(peer)
        self.judge.heal()

    async def _recover(self) -> None:
        """Until the laps are done."""
        net, judge = self.consensus, self.judge
        aim, healed_s = judge.witness.period.state.period + self.plan.laps, net.now_s
        limit = net.now_s + _HEALTHY_LIMIT_S
        while (
            judge.witness.period.state.period < aim and not judge.witness.period.is_final
        ) or self.rollout.is_unfinished(judge.witness):
            for peer in net.peers:  # what heals late: a restart that the first phase had planned
                peer.armed = ""
                if not peer.is_up:
                    await net.revive(peer)
            net.links.clear()
            await asyncio.sleep(0.5)
            self._lie()
            if net.now_s > limit:
                judge.require("periods go on", False, f"no period ended within {_HEALTHY_LIMIT_S:.0f} s")
                return
        judge.require("periods go on", True)
        for peer in net.honest:
            if peer.process is not None:
                known_s = min(peer.process.app.oldest_accusation_s, net.now_s - healed_s)
                judge.require(
                    "lies are recorded",
                    known_s < _RECORDED_S,
                    f"agent {peer.index} has had a proof for {known_s:.1f} s",
                )
        if judge.unrecorded():
            await asyncio.sleep(_RECORDED_S)
        for who in judge.unrecorded():
            is_late = net.now_s - judge.misstated_s[who] >= _RECORDED_S
            judge.require("lies are recorded", not is_late, f"{who} stated a wrong app hash, and is on no record")

    # ---- parts

    def _spawn(self, peer: Peer) -> Process:
        return self.rollout.start(lambda service: self._start(service, peer))

    def _start(self, service: Service, peer: Peer) -> Process:
        return Process(
            service=service,
            genesis=genesis_of(self.subject.service, self.plan.agents),
            n=self.plan.agents,
            index=peer.index,
            life=peer.lives,
            disk=peer.disk,
            archive=peer.archive,
            world=self.world,
            judge=self.judge,
            wall_s=lambda: self.consensus.wall_s(peer),
            at=lambda point: self.consensus.at(peer, point),
            lies=self.lies_rng if peer.is_liar and "lying payload" in self.plan.faults else None,
            may_lie=lambda: "lying payload" in self.consensus.lies,
        )

    def _note(self, line: str) -> None:
        text = f"{asyncio.get_running_loop().time():8.3f} s  {line}"
        self.story.append(text)
        self.trace.update(text.encode() + b"\n")

    def _add_to_trace(self, kind: str, what: Any) -> None:
        self.trace.update(f"{asyncio.get_running_loop().time():.9f} {kind} {what!r}\n".encode())

    def _report(self) -> Report:
        judge = self.judge
        period: Period = judge.witness.period
        for one in judge.violations:
            self.story.append(f"{one.time_s:8.3f} s  BROKEN: {one.invariant}: {one.message}")
        self.trace.update(judge.witness.app_hash + repr(judge.violations).encode())
        return Report(
            plan=self.plan,
            violations=tuple(judge.violations),
            trace=self.trace.hexdigest(),
            periods=period.state.period,
            rounds=period.sequence - 1,
            blocks=len(judge.hashes),
            virtual_s=judge.now_s(),
            story=tuple(self.story[:3] + self.story[3:][-_STORY_LINES:]),
            checks={name: count for name, count in sorted(judge.checks.items()) if count},
        )


_SUDDEN = {
    "crash": "_crash",
    "crash in a handler": "_crash_in_handler",
    "torn write": "_torn_write",
    "truncated log": "_truncated_log",
    "wiped agent": "_wiped",
    "garbage snapshot": "_wiped",  # somebody has to want one
    "bit flip": "_bit_flip",
    "full disk": "_full_disk",
    "clock": "_clock",
    "one-way partition": "_one_way",
    "partition": "_partition",
    "staggered clog": "_clog",
    "mempool flood": "_flood",
    "interrupt": "_interrupt",
    "rolling upgrade": "_rolling",
    **dict.fromkeys(ABROAD, "_abroad"),
}
