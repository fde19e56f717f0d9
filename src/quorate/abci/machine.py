"""The chain's side of the replicated machine: what a block does, and what makes the chain run or sleep. Pure.

The app hash covers everything here that changes what a later block does. CometBFT makes the next block at once while
that hash changes and waits when it does not, so the hash is also the switch of the chain: a block with news (a
payload counted, a tick, a round opened or ended) changes it, one more block proves the new state in its header, and
then the chain sleeps.

- A round's clock starts at the block after the one that opened it: the block that ends a sleep carries the time
  before it.
- The first block carries the genesis time, and the first one of a later version of the service the time before the
  upgrade, which may be hours old: they deliver payloads, end no round and start no clock.
- A block with a payload that does not count is refused as a whole (`judge`): an honest proposer knows the same state,
  so only a faulty one can propose it. A payload that is *missing* in a block says nothing: nodes see different votes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from quorate.abci.evidence import Evidence, InvalidPayload, WrongAppHash
from quorate.abci.genesis import POWER
from quorate.abci.membership import Turnover, powers_of, roster_of, seat
from quorate.abci.payload import SignedPayload, UnsignedPayload
from quorate.abci.statement import BEGINNING, MAX_LANDMARKS, Landmark, at_height
from quorate.abci.transaction import INTERRUPT, Kind, Transaction, tick_round
from quorate.abci.upgrade import FIRST_HEIGHT, NO_UPGRADES, Plan, Target, UpgradeDue, Upgrades, take_over
from quorate.errors import ConfigError, PeerError, ServiceError
from quorate.frozen import changed
from quorate.fsm import Period, Service, Settled, Votes, codec
from quorate.members import Member
from quorate.nesting import load_json
from quorate.offences import DOWNTIME_WINDOW, Offence, OffenceKind, Offences, informed, taken_back
from quorate.signatures import keccak
from quorate.units import Address, Hash, Height, PeriodNumber, RoundNumber

__all__ = [
    "AHEAD",
    "DEMOTED_POWER",
    "MAX_TICKS",
    "Applied",
    "Block",
    "Replica",
    "apply_block",
    "execute",
    "judge",
    "opening_of",
    "payload_for",
    "rehearse",
    "tick_for",
]

MAX_TICKS = 8
"""Ticks of one agent in one round: enough to find a deadline by a late clock, too few to keep a chain awake with."""
AHEAD = 2
"""Rounds ahead of ours for which the mempool holds payloads: a peer may be one block further than this node."""
DEMOTED_POWER = 2
"""Power of a validator that was long absent: it proposes rarely, so the others seldom wait for it. Even, like POWER."""
_DEMOTE_AFTER = 16
"""Absences in a row, in blocks with news; well above n: with timeout_commit 0 a slow honest vote is often missed."""
_dump = json.JSONEncoder(separators=(",", ":")).encode  # made once: each block and each vote needs it


def opening_of(period: Period) -> bytes:
    """The digest of `period` as its round opened: without votes, clock and asks. Acts and payloads belong to one."""
    if not (period.votes or period.clock_ms or period.asks):
        return period.digest()
    none = Votes[object]((), period.n, period.quorum)
    return changed(period, votes=none, clock_ms=0, asks=()).digest()


def payload_for(chain_id: str, period: Period, body: bytes) -> UnsignedPayload:
    """The payload that carries `body` (what `act` returned in canonical encoding, or an ask) into `period`'s round."""
    name = _name_for(period, body)
    return UnsignedPayload(chain_id, period.state.period, period.sequence, name, opening_of(period), body)


def _name_for(period: Period, body: bytes) -> str:
    """The round name under which `body` is signed: an ask goes beside a payload and does not contradict it."""
    return f"{period.round.name}{INTERRUPT}" if Period.is_ask(body) else period.round.name


def tick_for(chain_id: str, period: Period, attempt: int) -> UnsignedPayload:
    """The `attempt`-th tick (from 0) of an agent in `period`'s round."""
    name = tick_round(period.round.name)
    return UnsignedPayload(chain_id, period.state.period, period.sequence, name, opening_of(period), bytes([attempt]))


@dataclass(frozen=True)
class Replica:
    """All that the nodes hold alike after a block."""

    period: Period
    opening: bytes
    """`opening_of(period)`, kept because every payload is compared with it."""
    height: int = 0
    hot: int = 0
    """Height of the last block with news."""
    ticks: tuple[tuple[Address, int], ...] = ()
    """How many ticks each agent has spent in this round, sorted."""
    absences: tuple[tuple[str, int], ...] = ()
    """Blocks with news that a validator (by its CometBFT address) has missed in a row, sorted."""
    demoted: str = ""
    """The one validator that runs with `DEMOTED_POWER`."""
    turnover: Turnover = field(default_factory=Turnover)
    upgrades: Upgrades = NO_UPGRADES
    inherited: bytes = b""
    """The app hash that an older version gave for this height, where no block of this one has come yet."""
    offences: Offences = field(default_factory=Offences)
    landmarks: tuple[Landmark, ...] = ()
    """The last blocks that changed the app hash. That of the newest is this state's own: all that it cannot cover."""

    @staticmethod
    def start(period: Period, has_landmarks: bool = False) -> Replica:
        """The replica before the first block, as the genesis has it (`Genesis.has_landmarks`)."""
        return Replica(period, opening_of(period), landmarks=(BEGINNING,) if has_landmarks else ()).knowing_itself()

    @cached_property
    def app_hash(self) -> bytes:
        """32 bytes; equal on all nodes after the same blocks, and equal to the last one's where a block had no news."""
        return self.inherited or self._hash_over(self.period.digest())

    def _hash_over(self, period_digest: bytes) -> bytes:
        fields = [self.hot, self.ticks, self.absences, self.demoted]
        if self.turnover.height:  # else the hashes of chains that began before members could change stay what they were
            fields.append(self.turnover.plain())
        rest = _dump(fields).encode()
        if self.upgrades != NO_UPGRADES:  # likewise
            rest += self.upgrades.encoding
        if self.offences.counts:  # likewise
            rest += b"offences" + self.offences.encoding
        if self.landmarks:  # not in chains that began before there were any
            *before, last = self.landmarks
            rest += b"landmarks" + _dump([*before, last[:-1]]).encode()
        return hashlib.sha256(period_digest + rest).digest()

    def knowing_itself(self) -> Replica:
        """This state with its own app hash in its newest landmark, which is never believed from elsewhere."""
        if not self.landmarks:
            return self
        *before, last = self.landmarks
        known = changed(self, landmarks=(*before, last._replace(app_hash=self.app_hash.hex())))
        known.__dict__["app_hash"] = self.app_hash  # it covers all of them but this
        return known

    @property
    def members(self) -> tuple[Member, ...]:
        """The members as the agreed state has them; empty where they are those of the genesis for good."""
        return roster_of(self.period)

    def why_not(self, payload: SignedPayload) -> str | None:
        """Why this verified payload would not count in the next block; None where it counts."""
        if payload.sequence != self.period.sequence:
            return f"it is for round {payload.sequence}; round {self.period.sequence} is going on"
        if payload.opening != self.opening or payload.period != self.period.state.period:
            return f"it answers another opening of round {payload.sequence} than the agreed one"
        if payload.round != (name := _name_for(self.period, payload.body)):
            return f"it is for {payload.round}; round {payload.sequence} is {name}"
        return self.period.refusal(payload.sender, payload.sequence, payload.body)

    def why_no_tick(self, tick: SignedPayload) -> str | None:
        """Why this verified tick would not count in the next block; None where it counts."""
        if (tick.sequence, tick.opening, tick.period) != (self.period.sequence, self.opening, self.period.state.period):
            return f"the tick is for round {tick.sequence}; round {self.period.sequence} is going on"
        if tick.round != tick_round(self.period.round.name) or not self.period.clock_ms or self.period.is_final:
            return f"no clock runs for {tick.round}"
        if tick.sender not in self.period.members:
            return f"{tick.sender} is no member any more"
        if len(tick.body) != 1 or not self.ticks_of(tick.sender) <= tick.body[0] < MAX_TICKS:
            return f"tick {tick.body.hex()} of {tick.sender}, who has spent {self.ticks_of(tick.sender)} of {MAX_TICKS}"
        return None

    def why_no_evidence(self, evidence: Evidence) -> str | None:
        """Why this evidence, whose signatures were checked, would not count in the next block; None where it counts."""
        sequence, _ = self.round_of(evidence)
        if sequence > self.period.sequence + AHEAD:
            return f"it is about round {sequence}; round {self.period.sequence} is going on"
        if evidence.member not in {*self.period.members, *(one.address for one in self.turnover.former)}:
            return f"{evidence.member} is no member any more"
        if isinstance(evidence, InvalidPayload):
            if self.upgrades.began > FIRST_HEIGHT and evidence.payload.opening != self.opening:
                return "it may be of another version of the service, in which it is valid"
            if (why := evidence.why_valid(self.period.service)) is not None:
                return why
        if isinstance(evidence, WrongAppHash):
            why = evidence.why_harmless(at_height(self.landmarks, evidence.height))
            if why is not None:
                return why
        return self.offences.why_not(evidence.kind, evidence.member, sequence, self.period.sequence)

    def round_of(self, evidence: Evidence) -> tuple[int, int]:
        """The round in which the deed was done, and its period; that going on where nobody knows."""
        if not isinstance(evidence, WrongAppHash):
            return evidence.sequence, evidence.period
        landmark = at_height(self.landmarks, evidence.height)
        now = (self.period.sequence, self.period.state.period)
        return now if landmark is None else (landmark.sequence, landmark.period)

    def ticks_of(self, sender: Address) -> int:
        """How many ticks `sender` has spent in this round."""
        return dict(self.ticks).get(sender, 0)

    def refuse_next(self, height: int) -> None:
        """Raise `UpgradeDue` where the block of `height` belongs to another version than this code is."""
        if self.upgrades.due is not None and self.upgrades.is_due(height):
            raise UpgradeDue(self.period.service.name, self.period.service.version, self.upgrades.due)

    def encode(self) -> bytes:
        """For durable storage. Its checksum lets `decode` find damage; the app hash would not cover the height."""
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:
        period = base64.b64encode(self.period.encode()).decode()
        fields = [self.height, self.hot, self.ticks, self.absences, self.demoted, period, self.turnover.plain()]
        fields += (json.loads(self.upgrades.encoding), json.loads(self.offences.encoding), self.landmarks)
        text = _dump(fields)
        return f'{text[:-1]},"{_checksum(text)}"]'.encode()

    @staticmethod
    def decode(service: Service, data: bytes) -> Replica:
        """The replica in `data`, taken over where an older version wrote it and the change to this one is due.

        `ConfigError` where that is damaged, another service's, or another version's.
        """
        try:
            *fields, checksum = load_json(data)
            if _checksum(_dump(fields)) != checksum:
                raise ConfigError("the stored state is damaged: its checksum does not fit", fix=_DAMAGE_FIX)
            height, hot, ticks, absences, demoted, period, *later = fields
            stored = base64.b64decode(period, validate=True)
            upgrades = codec.decode(Upgrades, codec.encode(later[1])) if len(later) > 1 else NO_UPGRADES
            decoded, upgrades_now = take_over(service, stored, upgrades, height)
            replica = Replica(
                decoded,
                opening_of(decoded),
                height,
                hot,
                tuple((Address(who), count) for who, count in ticks),
                tuple((who, count) for who, count in absences),
                demoted,
                Turnover.read(later[0]) if later else Turnover(),  # from before members could change
                upgrades,
                offences=codec.decode(Offences, codec.encode(later[2])) if len(later) > 2 else Offences(),
                landmarks=tuple(Landmark(*one) for one in later[3]) if len(later) > 3 else (),
            )
            if upgrades_now is upgrades:
                return replica.knowing_itself()
            theirs = replica._hash_over(hashlib.sha256(stored).digest())
            taken = changed(replica, ticks=(), upgrades=upgrades_now, inherited=theirs)
            return taken.knowing_itself()
        except (ValueError, TypeError, PeerError, ServiceError) as error:
            raise ConfigError(f"the stored state is damaged: {error}", fix=_DAMAGE_FIX) from error


def rehearse(service: Service, data: bytes) -> Period:
    """What `service` would go on from, if the change to it from the version that stored `data` were due now.

    Raises what that change would raise (`ConfigError`: no migration, or one that fails).
    """
    height, _, _, _, _, period, *_ = json.loads(data)
    due = Upgrades(due=Plan(Target.of(service), height + 1))
    return take_over(service, base64.b64decode(period), due, height)[0]


_DAMAGE_FIX = (
    "Keep the agent's keys and signing state, move its app.db and node data away, and let it catch up from its peers."
)


@dataclass(frozen=True)
class Block:
    """What of a decided (or proposed) block matters here. `txs` holds None for bytes that are no transaction."""

    height: int
    time_ms: int
    txs: tuple[Transaction | None, ...]
    absent: tuple[str, ...] = ()
    """Validators that did not vote for the block before, by their CometBFT address."""
    present: tuple[str, ...] = ()
    misbehaved: tuple[str, ...] = ()
    """Validators whom CometBFT convicts in this block of signing twice, or a block that was never decided."""
    hash: bytes = b""
    """What CometBFT signs: it covers the evidence, and the votes that were missing."""
    owners: Mapping[str, Address] = field(default_factory=dict)
    """Whose validators they are; nobody else is put on record."""


@dataclass(frozen=True)
class Applied:
    """What a block did."""

    replica: Replica
    accepted: tuple[bool, ...]
    """For each transaction, whether all that it carries counted."""
    settled: Settled | None
    powers: tuple[tuple[str, int], ...] = ()
    """New voting powers, by CometBFT address; they hold two blocks later."""
    proofs: tuple[bytes, ...] = ()
    """For a contract: what proves the offences that evidence in this block has put on record."""


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def judge(replica: Replica, txs: Sequence[Transaction]) -> str | None:
    """Why a proposal of these transactions must be refused; None where it is sound. Depends on (replica, txs) only."""
    for index, tx in enumerate(txs):
        if tx.kind is Kind.BUNDLE and index:
            return f"transaction {index} is a bundle; only the first may be one"
        try:
            replica = execute(replica, tx)
        except PeerError as error:
            return f"transaction {index}: {error.message}"
    return None


def execute(replica: Replica, tx: Transaction) -> Replica:
    """`replica` with all that `tx` carries; `PeerError` where any of it does not count now."""
    if tx.kind is Kind.UPGRADE:
        (ask,) = tx.payloads
        return changed(replica, upgrades=replica.upgrades.asked(replica.period, ask))
    if tx.evidence is not None:
        return _convict(replica, tx.evidence)
    for payload in tx.payloads:
        problem = replica.why_no_tick(payload) if tx.kind is Kind.TICK else replica.why_not(payload)
        if problem is not None:
            raise PeerError(f"{payload.sender}: {problem}", evidence=payload.encode())
        if tx.kind is Kind.TICK:
            spent = {**dict(replica.ticks), payload.sender: payload.body[0] + 1}
            replica = changed(replica, ticks=tuple(sorted(spent.items())))
        else:
            period = replica.period.deliver(payload.sender, payload.sequence, payload.body)
            replica = changed(replica, period=period)
    return replica


def _convict(replica: Replica, evidence: Evidence) -> Replica:
    if (problem := replica.why_no_evidence(evidence)) is not None:
        raise PeerError(f"evidence against {evidence.member}: {problem}", evidence=evidence.encode())
    sequence, period = replica.round_of(evidence)
    where = Height(replica.height + 1), RoundNumber(sequence), PeriodNumber(period)
    offence = Offence(evidence.kind, evidence.member, *where, _hash_of(evidence.proof))
    return changed(replica, offences=replica.offences.plus(offence))


def _note(replica: Replica, block: Block, kind: OffenceKind, validators: Iterable[str]) -> Replica:
    """What the block itself proves of these validators: its hash is the evidence."""
    record, now = replica.offences, replica.period
    for who in sorted(set(validators) & set(block.owners)):
        where = Height(block.height), RoundNumber(now.sequence), PeriodNumber(now.state.period)
        record = record.plus(Offence(kind, block.owners[who], *where, Hash("0x" + block.hash.hex())))
    return replica if record is replica.offences else changed(replica, offences=record)


def _remember(replica: Replica, block: Block) -> Replica:
    """With this block, which has changed the app hash, as the newest landmark."""
    if not replica.landmarks:
        return replica
    period = replica.period
    last = Landmark(block.height, period.sequence, period.state.period, block.hash.hex(), "")
    return changed(replica, landmarks=(*replica.landmarks[1 - MAX_LANDMARKS :], last)).knowing_itself()


def _hash_of(proof: bytes) -> Hash:
    return Hash("0x" + keccak(proof).hex())


def apply_block(replica: Replica, block: Block) -> Applied:
    """The state after `block`. Total: of whatever a decided block holds, a transaction counts whole or not at all.

    Raises `UpgradeDue` for a block that another version of the service's code has to execute.
    """
    if block.height != replica.height + 1:
        raise ConfigError(
            f"CometBFT delivers block {block.height} to an application at height {replica.height}", fix=_DAMAGE_FIX
        )
    replica.refuse_next(block.height)
    current = changed(replica, inherited=b"") if replica.inherited else replica
    accepted = []
    for tx in block.txs:
        counted = _execute_if_sound(current, tx)
        accepted.append(counted is not None)
        current = counted or current
    is_first = block.height == replica.upgrades.began  # its time is that of the votes before it: any age
    current = _note(current, block, "double signing", block.misbehaved)
    has_news = any(accepted) or is_first or current.offences != replica.offences
    settled = None
    powers: dict[str, int] = {}
    if not is_first:
        current, settled = _end(current, block.time_ms)
        current, powers = _turn_over(current, replica.members, block.height)
    if current.upgrades.asks:
        decided = current.upgrades.decided(current.period, block.height)
        current = changed(current, upgrades=decided)
    if has_news or settled:
        current, others = _count_absences(changed(current, hot=block.height), block)
        powers |= others
        away = [who for who, count in current.absences if who in block.absent and count % DOWNTIME_WINDOW == 0]
        current = _note(current, block, "downtime", away)
    current = changed(current, height=block.height)
    if has_news or settled or current.period.clock_ms != replica.period.clock_ms:
        current = _remember(current, block)
    counted_txs = [tx for tx, counts in zip(block.txs, accepted, strict=True) if tx and counts]
    proofs = tuple(tx.evidence.proof for tx in counted_txs if tx.evidence)
    return Applied(current, tuple(accepted), settled, tuple(sorted(powers.items())), proofs)


def _execute_if_sound(replica: Replica, tx: Transaction | None) -> Replica | None:
    try:
        return None if tx is None else execute(replica, tx)
    except PeerError:
        return None  # its result code in the block says so


def _end(replica: Replica, time_ms: int) -> tuple[Replica, Settled | None]:
    before = replica.period
    period, settled = (seen := informed(before, replica.offences)).end_block(time_ms)
    if settled is None:  # the round goes on, from the state that it opened with
        period = period if seen is before else changed(before, clock_ms=period.clock_ms)
        return changed(replica, period=period), None
    height, ended = Height(replica.height + 1), RoundNumber(settled.sequence)
    period, offences = taken_back(seat(period), replica.offences, height, ended)
    after = changed(replica, period=period, opening=opening_of(period), ticks=(), offences=offences)
    return after, settled


def _turn_over(replica: Replica, before: tuple[Member, ...], height: int) -> tuple[Replica, dict[str, int]]:
    """Where the members are others than `before`: remember who goes, and say what the validators' powers become."""
    if replica.members == before:
        return replica, {}
    turnover = replica.turnover.after(height, before, replica.members)
    demoted = "" if replica.demoted in {one.validator_address for one in turnover.former} else replica.demoted
    return changed(replica, turnover=turnover, demoted=demoted), powers_of(before, replica.members)


def _count_absences(replica: Replica, block: Block) -> tuple[Replica, dict[str, int]]:
    """Lower the power of one validator that was long absent, and raise it again at its first vote.

    One at a time: with two of 3f+1 lowered, f Byzantine ones could hold a third. Counted in blocks with news only,
    because the counts are part of the app hash and would otherwise keep the chain awake while one agent is away.
    """
    gone = {one.validator_address for one in replica.turnover.former}  # their last votes come after they went
    before = {who: count for who, count in replica.absences if who not in gone}
    absences = {who: before.get(who, 0) + 1 for who in block.absent if who not in gone}
    demoted, powers = replica.demoted, dict[str, int]()
    if demoted and demoted in block.present:
        powers[demoted] = POWER
        demoted = ""
    elif not demoted:
        n = len(block.absent) + len(block.present)
        longest = max(absences, key=lambda who: (absences[who], who), default="")
        if longest and absences[longest] >= max(_DEMOTE_AFTER, 4 * n):
            powers[longest] = DEMOTED_POWER
            demoted = longest
    kept = {**{who: count for who, count in before.items() if who not in block.present}, **absences}
    return changed(replica, absences=tuple(sorted(kept.items())), demoted=demoted), powers
