"""What must hold in every simulated run, by name. The one list: `INVARIANTS`.

`Judge` hears of everything that happens and notes what breaks an invariant. It believes no agent: what a block should
have done it works out itself, from the decided blocks alone.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from quorate.abci import genesis
from quorate.abci.machine import MAX_TICKS, Applied, Block, Replica, apply_block, execute
from quorate.abci.payload import MAX_BODY_BYTES, UnsignedPayload
from quorate.abci.transaction import Roll, Transaction
from quorate.errors import PeerError, QuorateError
from quorate.frozen import changed
from quorate.fsm import BACK, NO_MAJORITY, ROUND_TIMEOUT, AnyRound, Outcome, Period, Service, Votes, codec
from quorate.fsm.state import is_kept
from quorate.offences import PROVED, Watched, informed
from quorate.units import Address, RoundNumber

__all__ = ["INVARIANTS", "Judge", "Violation"]

INVARIANTS: Mapping[str, str] = MappingProxyType({
    # Consensus and the ABCI requirements (the number is CometBFT's)
    "agreement": "No two honest agents hold different blocks at one height.",
    "equal app hashes": "After the same block all honest agents have the same app hash.",
    "proposal in time": "1: PrepareProposal answers within 100 ms.",
    "proposal size": "2: a proposal keeps the size that CometBFT allows.",
    "proposal accepted": "3: an honest proposal is accepted by every honest agent.",
    "proposal judged alike": "4, 5: all honest agents, asked once or twice, judge a proposal alike.",
    "extension accepted": "6: an honest vote extension is accepted by every honest agent.",
    "extension judged alike": "7, 8: all honest agents, asked once or twice, judge a vote extension alike.",
    "handlers change nothing": "9: prepare, process, extend and verify change neither state nor disk.",
    "block alone decides": "10, 11: the state after a block follows from the decided blocks alone.",
    "equal results": "12: FinalizeBlock's results and validator updates are equal on all.",
    "mempool settles": "13: an honest agent's own fresh payload passes CheckTx; no stale one stays.",
    "junk is refused": "No honest agent accepts a proposal in which anything does not count.",
    "proposal fills": "A payload that honest votes carried, and the proposer saw, is in its proposal.",
    # Crashes
    "durable before answered": "When Commit answers, the state is on the disk.",
    "written in Commit only": "No state is written outside Commit.",
    "never ahead of its node": "An agent's state is never of a block that its node has not stored.",
    "replay gives the same": "What a restarted agent replays ends in the hash that was agreed.",
    "read back as written": "A stored state reads back as it was.",
    "damage is found": "A damaged state is refused, never used.",
    "snapshot is proven": "An agent takes a snapshot only if it is the agreed state of its height, whoever gives it.",
    "snapshots serve": "Whoever offers a snapshot keeps the blocks above it; nobody prunes what an agent still needs.",
    # The machine
    "one vote each": "A round counts at most one payload of each member, and of nobody else.",
    "no forged vote": "A payload that counts for an honest agent is one that it signed for this opening.",
    "bounded payloads": "Nothing beyond the size limit counts.",
    "bounded ticks": "No agent spends more ticks in a round than allowed.",
    "legal transition": "A round is followed by the one that the service's table names, and counted by one.",
    "interrupts": "A round is interrupted when a quorum asked or the condition holds, never else, and is come back to.",
    "pure rule": "A rule gives the same outcome when asked twice and in another order.",
    "rule settles": "A round ends exactly when its rule or its deadline says so, with the rule's outcome.",
    "quorum stands behind": "What a quorum rule agrees on, at least quorum - f honest agents sent.",
    "declared fields cross": "Into a new period go the declared fields and nothing else.",
    "block time grows": "Block time grows with every block, and stays within the honest clocks.",
    "clock starts fresh": "A round's clock starts at the block after the one that opened it.",
    "deadline kept": "No round times out early, none outlives a block past its deadline.",
    "sleeps without news": "The app hash changes with news and only then, and the chain rests.",
    "hash covers all": "Two states that differ in votes, clock, ticks or agreed fields have different app hashes.",
    "even powers": "Every power is even, and at most one validator is demoted.",
    "version taken over": "The next version of the code begins with state, round and hash of the one before.",
    # Agents
    "one word": "An honest agent never signs two payloads for one opening, however often it dies between.",
    "the honest stay clean": "No honest agent is ever on record for what only a liar signs.",
    "lies are recorded": "In a healthy network what an honest node can prove of a liar is on record within 5 s.",
    "one history": "What a client reads or acts on is a state of the one agreed history, and at one agent never an "
    "older one than before; what it writes takes effect once, after it was sent: its history is linearizable.",
    "signs nothing undecided": "On-chain an agent signs only what a committed block agreed on.",
    "nobody fails": "No application, act or handler of an honest agent fails.",
    # Effects
    "authorised": "The Safe executes only what the quorum agreed on, with a threshold of signatures, as a call.",
    "exactly once": "An agreed intent happens at most once.",
    "nothing is lost": "What the agents agree has happened, has happened on the canonical chain.",
    "caps kept": "No transaction passes the owner's limits on gas and fees.",
    "value conserved": "No coin is made or lost.",
    "service's own": "What the service itself promises (its World's `problems`).",
    # Progress
    "rounds end": "With a healthy quorum every round ends within its time limit.",
    "ready rounds end": "Once all agents of a healthy network have signed their payloads, the round ends within 3 s.",
    "periods go on": "After the faults the service completes new periods.",
})  # fmt: skip

_LATE_S = 12.0  # beyond a round's limit: ticks back off to 6.4 s, and a sleeping chain's clock starts a block late
_READY_S = 3.0
_Stack = tuple[tuple[str, str], ...]
_Asks = tuple[tuple[str, Address], ...]


@dataclass(frozen=True)
class Violation:
    """An invariant that did not hold."""

    invariant: str
    time_s: float
    message: str


@dataclass
class Judge:
    """Follows one run; `violations` says what broke."""

    service: Service
    chain_id: str
    members: tuple[Address, ...]
    now_s: Callable[[], float]
    honest: frozenset[Address]
    epoch_s: float
    """The wall clocks' time when the run began."""
    violations: list[Violation] = field(default_factory=list)
    checks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(INVARIANTS, 0))
    """How often each invariant was looked at."""
    settled: list[Any] = field(default_factory=list)
    is_healthy: bool = False
    """True in the second phase: what is late is then a violation."""
    may_linger: bool = False
    """True while somebody floods the mempools on purpose."""
    first: Period | None = None
    """The machine before the first block, where the service's state knows its members; else it is made of them."""
    has_landmarks: bool = False
    """As in the genesis."""

    def __post_init__(self) -> None:
        first = self.first or Period.start(self.service, self.members)
        self.witness = Replica.start(first, self.has_landmarks)
        self._genesis = self.witness
        self.expected: list[Applied] = []
        """What each decided block did, by height - 1."""
        self.hashes: list[bytes] = []
        self.before: Period = self.witness.period
        """The period in which the last block's payloads were counted, before it ended."""
        self._roll = Roll(self.chain_id, self.members)
        self._signed: dict[tuple[Address, bytes], set[bytes]] = defaultdict(set)
        self._asked: dict[Address, set[bytes]] = defaultdict(set)
        self._first_words: dict[tuple[Address, bytes], bytes] = {}
        self.intents: set[Any] = set()
        """Whatever a decided block agreed to have the Safe do."""
        self._reads: dict[tuple[Address, int], int] = {}
        self._opened_s = self._lead_s = 0.0
        self._time_ms = 0
        self._ready: dict[bytes, set[Address]] = {}
        self._ready_s: dict[bytes, float] = {}
        self._idle_blocks = 0
        self.successor: Service | None = None
        """The version that may be agreed on in this run."""
        self.misstated_s: dict[Address, float] = {}
        """Since when it can be proved, in the second phase, that an agent signed a wrong app hash."""
        self._last_of_old = (0, b"")  # height and digest of the last state of the older version, as the next one has it

    @property
    def is_broken(self) -> bool:
        """True from the first violation on."""
        return bool(self.violations)

    def require(self, invariant: str, holds: bool, message: str | Callable[[], str] = "") -> None:
        """Note that `invariant` was looked at, and whether it held."""
        self.checks[invariant] += 1  # a KeyError is a slip of ours
        if not holds:
            text = message if isinstance(message, str) else message()
            self.violations.append(Violation(invariant, self.now_s(), text))

    def signed(self, who: Address, life: int, payload: UnsignedPayload) -> None:
        """`who` signed a payload (or tick)."""
        self._signed[who, payload.opening].add(payload.body)
        if Period.is_ask(payload.body):
            self._asked[who].add(payload.body)
            return  # beside its part in the round
        if self.is_healthy and "/" not in payload.round:
            ready = self._ready.setdefault(payload.opening, set())
            ready.add(who)
            if len(ready) == len(self.members):
                self._ready_s.setdefault(payload.opening, self.now_s())
        if who in self.honest and "/" not in payload.round:  # ticks and asks may come several times
            first = self._first_words.setdefault((who, payload.opening), payload.body)
            self.require("one word", first == payload.body, f"{who} signed {first!r}, in life {life} {payload.body!r}")

    def read(self, who: Address, life: int, height: int, digest: bytes) -> None:
        """`who` was told, or told a client, that the agreed state at `height` has this digest (or this app hash)."""
        last = self._reads.get((who, life), 0)
        agreed = None
        if height <= len(self.expected):
            agreed = self.expected[height - 1].replica if height else self._genesis
        self.require(
            "one history",
            agreed is not None
            and height >= last
            and (digest in (agreed.app_hash, agreed.period.digest()) or (height, digest) == self._last_of_old),
            lambda: f"{who} reads a state of height {height} after {last}; it is none, or not the agreed one",
        )
        self._reads[who, life] = height

    def decided(self, block: Block, wire: Iterable[bytes], block_hash: bytes) -> Applied:
        """A block of the next height was decided: what it must do."""
        before, height = self.witness, block.height
        txs = tuple(map(self._read, wire))
        counted = self._count(before, txs)
        applied = apply_block(before, dataclasses.replace(block, txs=txs))
        self.expected.append(applied)
        self.hashes.append(block_hash)
        self.require("block time grows", block.time_ms > self._time_ms, f"{block.time_ms} after {self._time_ms}")
        self._time_ms = block.time_ms
        self.before = counted.period
        self._check_votes(counted)
        self._check_round(counted, applied, block)
        self._check_news(before, applied, any(applied.accepted))
        recorded = applied.replica.offences.recorded_in(height)
        wronged = [str(one) for one in recorded if one.kind in PROVED and one.member in self.honest]
        self.require("the honest stay clean", not wronged, ", ".join(wronged))
        self.require(
            "even powers",
            all(power % 2 == 0 for _, power in applied.powers) and genesis.POWER % 2 == 0 and len(applied.powers) <= 1,
            f"{applied.powers}",
        )
        self._check_stored(applied.replica)
        self._check_cover(applied.replica)
        self.witness = self._taken_over(applied.replica)
        state = applied.replica.period.state
        self.intents.update(getattr(state, "unsettled", ()))
        if applied.settled is not None:
            self.settled.append(applied.settled)
        if applied.settled is not None or height == applied.replica.upgrades.began:
            self._opened_s = self.now_s()
        assert height == applied.replica.height  # noqa: S101  # apply_block's own promise
        return applied

    def misstated(self, applied: Applied, liars: Iterable[Address]) -> None:
        """These have signed another app hash than the decided block led to."""
        replica = applied.replica
        if self.is_healthy and any(one.height == replica.height for one in replica.landmarks[-1:]):
            for who in liars:
                self.misstated_s.setdefault(who, self.now_s())

    def unrecorded(self) -> list[Address]:
        """Who stated a wrong app hash in the second phase, and is on no record for that."""
        record = self.witness.offences
        return [who for who in self.misstated_s if not record.count("wrong app hash", who)]

    def _taken_over(self, replica: Replica) -> Replica:
        """What the next block begins with: where it is due, the next version's state, made from this one."""
        if self.successor is None or not replica.upgrades.is_due(replica.height + 1):
            return replica
        new = Replica.decode(self.successor, replica.encode())
        self._last_of_old = (replica.height, new.period.digest())
        self.require("version taken over", new.app_hash == replica.app_hash, "the new version answers another hash")
        state, sequence = new.period.state, new.period.sequence
        old = replica.period
        same = (state, new.period.round, sequence) == (old.state, old.round, old.sequence + 1)
        self.require("version taken over", same and not new.period.votes, lambda: f"{state} after {old.state}")
        return new

    def accepted(self, wire: Iterable[bytes]) -> None:
        """An honest agent accepted these transactions as the next block: all of them must count."""
        replica = self.witness
        for data in wire:
            tx = self._read(data)
            try:
                replica = replica if tx is None else execute(replica, tx)
            except PeerError:
                tx = None
            if tx is None:
                self.require("junk is refused", False, f"{data[:20].hex()}... was accepted, and does not count")
                return
        self.require("junk is refused", True)

    def check_progress(self) -> None:
        """In the second phase: the round going on is not overdue."""
        is_changing = self.witness.inherited != b""  # nobody acts before the new version's first block
        if self.is_healthy and not self.witness.period.is_final and not is_changing:
            waits_s = self.now_s() - self._ready_s.get(self.witness.opening, self.now_s())
            self.require(
                "ready rounds end",
                waits_s < _READY_S or len(self.honest) < len(self.members),
                lambda: f"{self.witness.period.round} waits for {waits_s:.1f} s with all payloads signed",
            )
            over_s = self.now_s() - self._opened_s - self.witness.period.round.timeout_ms / 1000
            self.require(
                "rounds end",
                over_s < _LATE_S + self._lead_s,
                lambda: (
                    f"{self.witness.period.round} is {over_s:.1f} s overdue; missing {self.witness.period.missing()}"
                ),
            )

    def heal(self) -> None:
        """The second phase begins: times are counted from here.

        Where more than f clocks were wrong, block time may have run ahead. It goes on once the clocks have caught up.
        """
        self.is_healthy = True
        self._lead_s = max(0.0, self._time_ms / 1000 - self.epoch_s - self.now_s())
        self._opened_s = max(self._opened_s, self.now_s())

    def _read(self, data: bytes) -> Transaction | None:
        try:
            return self._roll.transaction(data)
        except PeerError:
            return None

    def _count(self, replica: Replica, txs: tuple[Transaction | None, ...]) -> Replica:
        for tx in txs:
            try:
                replica = replica if tx is None else execute(replica, tx)
            except PeerError:
                continue
        return replica

    def _check_votes(self, counted: Replica) -> None:
        votes, members = counted.period.votes, set(self.members)
        senders = votes.senders()
        self.require(
            "one vote each", len(set(senders)) == len(senders) and set(senders) <= members, f"votes of {senders}"
        )
        for sender, payload in votes.items():
            body = codec.encode(payload)
            self.require("bounded payloads", len(body) <= MAX_BODY_BYTES, f"{len(body)} bytes of {sender}")
            if sender in self.honest:
                known = self._signed[sender, counted.opening]
                self.require("no forged vote", body in known, lambda s=sender, b=body: f"{s} never signed {b!r}")  # type: ignore[misc]
        for event, who in counted.period.asks:
            if who in self.honest:
                said = counted.period.ask(event) in self._asked[who]
                self.require("no forged vote", said, lambda e=event, w=who: f"{w} never asked for {e}")  # type: ignore[misc]
        for who, count in counted.ticks:
            self.require("bounded ticks", 0 < count <= MAX_TICKS and who in members, f"{who} spent {count}")

    def _check_round(self, counted: Replica, applied: Applied, block: Block) -> None:
        period, after, settled = informed(counted.period, counted.offences), applied.replica.period, applied.settled
        is_over = period.clock_ms > 0 and block.time_ms >= period.clock_ms + period.round.timeout_ms
        quorum = 2 * len(self.members) // 3 + 1
        self.require(
            "quorum stands behind", (period.quorum, period.votes.quorum) == (quorum, quorum), "another quorum is used"
        )
        is_first = block.height == applied.replica.upgrades.began  # of this version of the code
        outcome = None if period.is_final or is_first else self._outcome(period)
        if outcome is None and is_over and not period.is_final and not is_first:
            outcome = period.round.at_deadline(period.state, period.votes) or Outcome(ROUND_TIMEOUT, period.state)
        due = None if period.is_final or is_first else self._due(period, outcome)
        if settled is None:
            self._check_split(period, is_first)
            self.require("interrupts", due is None or due[0] is period.round, lambda: f"{period.round} stands: {due}")
            self.require("rule settles", outcome is None, lambda: f"{period.round} should have ended with {outcome}")
            self.require("deadline kept", not is_over or period.is_final, f"{period.round} outlives its deadline")
            clock = 0 if is_first or period.is_final else period.clock_ms or block.time_ms
            self.require("clock starts fresh", after.clock_ms == clock, f"clock {after.clock_ms}, expected {clock}")
            self.require("legal transition", after.sequence == period.sequence and after.round is period.round)
            return
        event = outcome.event if outcome is not None else due[1][-1][0] if due and due[1] else ""
        agreed = period.state if outcome is None else outcome.state
        self.require(
            "rule settles" if outcome is not None else "interrupts",
            (event, _with_record(agreed, after.state, settled.sequence)) == (settled.event, after.state),
            lambda: f"{period.round} ended with {settled.event}, its rule says {outcome}, interrupts {due}",
        )
        self.require("deadline kept", settled.event != ROUND_TIMEOUT or is_over, f"{period.round} timed out early")
        self.require("clock starts fresh", after.clock_ms == 0, f"{after.round} opens with the clock {after.clock_ms}")
        self.require(
            "interrupts", (after.round, after.interrupted, after.asks) == due, f"{after.interrupted}, expected {due}"
        )
        self.require(
            "legal transition",
            (due is not None and after.round is due[0])
            and (after.sequence, settled.sequence) == (period.sequence + 1, period.sequence)
            and not after.votes.pairs
            and applied.replica.ticks == (),
            f"{period.round} {settled.event} -> {after.round} ({after.sequence} after {period.sequence})",
        )
        self._check_quorum(period, settled.event, after)
        self._check_lap(period, after)

    def _due(self, period: Period, outcome: Outcome[str, Any] | None) -> tuple[AnyRound, _Stack, _Asks] | None:
        """The round that follows, the interrupts going on and asked for there; None where the outcome has no edge."""
        target: AnyRound | None = period.round
        state, stack = period.state, period.interrupted
        if outcome is not None:
            target, state = period.service.table.get((period.round.name, outcome.event)), outcome.state
            if target is BACK and stack:
                target, stack = period.service.rounds[stack[-1][1]], stack[:-1]
            elif target is not None and target.name in period.service.main:
                stack = ()
        if target is None or target is BACK:
            return None
        asks = period.asks if state.period == period.state.period else ()
        asked = [event for event, _ in asks]
        for one in () if target in period.service.final else period.service.interrupts:
            is_due = asked.count(one.event) > 2 * len(self.members) / 3 or (one.when is not None and one.when(state))
            if is_due and one.event not in [event for event, _ in stack] and (outcome is not None or period.asks):
                return one.to, (*stack, (one.event, target.name)), tuple(ask for ask in asks if ask[0] != one.event)
        return target, stack, asks

    def _check_split(self, period: Period, is_first: bool) -> None:
        """An impossible majority ends a round at once, never by its deadline alone."""
        if not is_first and period.round.traits is not None and NO_MAJORITY in period.round.traits.events:
            values = list(period.votes.values())
            best = max((values.count(one) for one in values), default=0)
            may_win = best + period.n - len(values) >= 2 * period.n // 3 + 1
            self.require("rule settles", may_win, f"{period.round} waits for a majority that cannot come")

    def _outcome(self, period: Period) -> Outcome[str, Any] | None:
        first = period.round.settle(period.state, period.votes)
        turned = Votes.of(reversed(period.votes.items()), n=period.n, quorum=period.quorum)
        for again in (period.round.settle(period.state, period.votes), period.round.settle(period.state, turned)):
            self.require("pure rule", first == again, lambda a=again: f"{period.round}: {first}, then {a}")  # type: ignore[misc]
        return first

    def _check_quorum(self, period: Period, event: str, after: Period) -> None:
        """What the ready-made rules promise, recomputed from the counted payloads."""
        traits = period.round.traits
        rule = getattr(period.round.settle, "settle", period.round.settle).__qualname__.partition(".")[0]
        if traits is None or rule not in ("same", "only_keeper", "each", "from_all"):
            return
        if rule == "same":
            best = max((list(period.votes.values()).count(one) for one in period.votes.values()), default=0)
            is_split = best + len(self.members) - len(period.votes) < 2 * len(self.members) // 3 + 1
            self.require("rule settles", is_split == (event == NO_MAJORITY) or event == ROUND_TIMEOUT, f"{event}")
        if event != "DONE":
            return
        stored = getattr(after.state, next(iter(traits.stores(period.round.payload))))
        if rule in ("each", "from_all"):
            least = len(self.members) if rule == "from_all" else 2 * len(self.members) // 3 + 1
            holds = stored == period.votes.items() and len(stored) >= least
            self.require("quorum stands behind", holds, f"{rule} settled with {len(stored)} payloads")
        elif rule == "only_keeper":
            keeper = getattr(period.state, next(iter(traits.reads)))
            self.require(
                "quorum stands behind", period.votes.get(keeper) == stored, f"{keeper} did not send {stored!r}"
            )
        else:
            backers = [who for who, payload in period.votes.items() if payload == stored and who in self.honest]
            liars = len(self.members) - len(self.honest)
            least = max(1, (2 * len(self.members) // 3 + 1) - liars)
            self.require(
                "quorum stands behind",
                len(backers) >= least,
                f"{stored!r} was agreed on with the honest {backers}; expected at least {least}",
            )

    def _check_lap(self, period: Period, after: Period) -> None:
        before, state = period.state, after.state
        self.require("declared fields cross", state.period in (before.period, before.period + 1), f"{state.period}")
        if state.period == before.period:
            return
        for one in dataclasses.fields(state):
            kept = is_kept(one)
            wanted = getattr(before, one.name) if kept else getattr(type(state)(), one.name)
            if one.name != "period" and not (one.name == "offences" and isinstance(state, Watched)):
                self.require("declared fields cross", getattr(state, one.name) == wanted, f"{one.name} crossed")

    def _check_news(self, before: Replica, applied: Applied, has_counted: bool) -> None:
        after = applied.replica
        has_clock = after.period.clock_ms != before.period.clock_ms
        is_news = has_counted or applied.settled is not None or has_clock or after.height == after.upgrades.began
        self.require(
            "sleeps without news",
            (after.app_hash != before.app_hash) == is_news,
            f"block {after.height} {'has' if is_news else 'has no'} news; its hash says otherwise",
        )
        self._idle_blocks = 0 if is_news else self._idle_blocks + 1
        self.require(
            "sleeps without news",
            self._idle_blocks < 40 or self.may_linger,
            f"{self._idle_blocks} blocks in a row without news",
        )

    def _check_cover(self, replica: Replica) -> None:
        period = replica.period
        fewer = Votes(period.votes.pairs[1:], period.n, period.quorum)
        others = [
            changed(period, votes=fewer) if period.votes.pairs else None,
            changed(period, clock_ms=period.clock_ms + 1),
            changed(period, sequence=period.sequence + 1),
            changed(period, asks=(*period.asks, ("?", self.members[0]))),
            changed(period, interrupted=(*period.interrupted, ("?", period.round.name))),
            changed(period, state=dataclasses.replace(period.state, period=period.state.period + 1)),
        ]
        hashes = [changed(replica, period=other).app_hash for other in others if other is not None]
        hashes.append(changed(replica, ticks=((self.members[0], MAX_TICKS + 1),)).app_hash)
        began = changed(replica.upgrades, began=replica.upgrades.began + 1)
        hashes.append(changed(replica, upgrades=began).app_hash)
        if replica.landmarks:  # another one with each block: all in turn
            index = replica.height % len(replica.landmarks)
            one, is_last = replica.landmarks[index], index == len(replica.landmarks) - 1
            for other in (one._replace(block="00" * 32), one if is_last else one._replace(app_hash="00" * 32)):
                landmarks = (*replica.landmarks[:index], other, *replica.landmarks[index + 1 :])
                if other is not one:
                    hashes.append(changed(replica, landmarks=landmarks).app_hash)
        self.require("hash covers all", replica.app_hash not in hashes, f"at height {replica.height}")

    def _check_stored(self, replica: Replica) -> None:
        try:
            again = Replica.decode(replica.period.service, replica.encode())
            same = (again, again.app_hash) == (replica, replica.app_hash)
        except QuorateError:
            same = False
        self.require("read back as written", same, f"the state of height {replica.height} reads back otherwise")


def _with_record(state: Any, after: Any, ended: int) -> Any:
    """`state` with the record that `after` holds, and the round's number: the machine writes them, no rule."""
    if not isinstance(state, Watched):
        return state
    return dataclasses.replace(state.ended_in(RoundNumber(ended)), offences=after.offences)
