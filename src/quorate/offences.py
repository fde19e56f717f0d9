"""What members did wrong, as all agents agree on it: who, what, when, and the hash of what proves it. Pure.

| kind | recorded when | what proves it |
| --- | --- | --- |
| equivocation | two payloads of one member for one opening are shown | both signatures: `ecrecover` in a contract |
| invalid payload | a payload that its round's codec refuses is shown | its signature; that it is invalid, the agents |
| wrong app hash | a signed app hash of a decided block is not the agreed one | the signature, and the next header |
| double signing | CometBFT's evidence of it is in a block | that block's header (`evidence_hash`): a light client |
| downtime | a validator missed `DOWNTIME_WINDOW` blocks in a row | the commits of those blocks: a light client |
| not revealing | a sealed round ended without the member's reveal | its commitment in agreed state, and no reveal |
| keeper silence | another keeper did what this one had its time for | the digest that it had to send |

The rules that hold here:
- The record grows by decided blocks alone, is bounded, and the app hash covers it.
- What is proved by signatures is recorded once a round and member, and at most `MAX_LATEST_EACH` times in
  `MAX_AGE` rounds: who has lost its honour can keep neither the chain awake nor the record growing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self, TypeVar

from quorate.fsm import Period, State, codec, keep
from quorate.units import Address, Blocks, Hash, Height, PeriodNumber, RoundNumber, Rounds

__all__ = [
    "DOWNTIME_WINDOW",
    "MAX_AGE",
    "MAX_LATEST_EACH",
    "PROVED",
    "THIS_ROUND",
    "Offence",
    "OffenceKind",
    "Offences",
    "Watched",
    "charge",
    "informed",
    "taken_back",
]

OffenceKind = Literal[
    "equivocation",
    "invalid payload",
    "wrong app hash",
    "double signing",
    "downtime",
    "not revealing",
    "keeper silence",
]

PROVED: frozenset[OffenceKind] = frozenset({"equivocation", "invalid payload", "wrong app hash"})
"""What an agent's own signatures prove; no honest one is ever on record for it."""
MAX_LATEST_EACH = 4
"""Offences of one member and kind that are kept; the counts know of all."""
MAX_LATEST = 128
"""Offences that are kept in all; the oldest are dropped first."""
MAX_COUNTS = 256
"""Pairs of member and kind that are counted: seven kinds of many more members than a service has at a time."""
MAX_AGE = Rounds(1000)
"""A signature for an older round proves nothing any more: nobody keeps what was said for ever."""
DOWNTIME_WINDOW = Blocks(128)
"""Blocks with news. Far above what demotes a validator: a slow vote is often missed, but not 128 times in a row."""

UNSTAMPED = Height(0)
THIS_ROUND = RoundNumber(0)
"""Of what was done in the round that ends now."""


@dataclass(frozen=True)
class Offence:
    """One thing that a member did wrong."""

    kind: OffenceKind
    member: Address
    height: Height
    """The block that recorded it."""
    sequence: RoundNumber
    """The round in which it was done."""
    period: PeriodNumber
    evidence: Hash
    """keccak256 of the proof for a contract, or what the table above says."""

    def __str__(self) -> str:
        return f"{self.member}: {self.kind} in round {self.sequence}"


@dataclass(frozen=True)
class Offences:
    """The record: the newest offences, and how many there were of each member and kind."""

    latest: tuple[Offence, ...] = ()
    """In the order in which they were recorded."""
    counts: tuple[tuple[Address, OffenceKind, int], ...] = ()
    """Sorted by member and kind."""

    @cached_property
    def encoding(self) -> bytes:
        """In canonical JSON; made once, for every block needs it."""
        return codec.encode(self)

    def plus(self, offence: Offence) -> Offences:
        """This record and `offence`; what is beyond the bounds is dropped, oldest first."""
        same = [one for one in self.latest if (one.kind, one.member) == (offence.kind, offence.member)]
        too_old = same[0] if len(same) >= MAX_LATEST_EACH else None
        latest = (*(one for one in self.latest if one is not too_old), offence)[-MAX_LATEST:]
        count = self.count(offence.kind, offence.member) + 1
        others = [one for one in self.counts if one[:2] != (offence.member, offence.kind)]
        if len(others) >= MAX_COUNTS:
            others.remove(min(others, key=lambda one: (one[2], one)))
        return Offences(latest, tuple(sorted([*others, (offence.member, offence.kind, count)])))

    def count(self, kind: OffenceKind, member: Address) -> int:
        """How often `member` was recorded for this."""
        return next((n for who, what, n in self.counts if (who, what) == (member, kind)), 0)

    def of(self, member: Address) -> tuple[Offence, ...]:
        """What is kept of `member`, oldest first."""
        return tuple(one for one in self.latest if one.member == member)

    def recorded_in(self, height: int) -> tuple[Offence, ...]:
        """What the block at `height` recorded."""
        return tuple(one for one in self.latest if one.height == height)

    def why_not(self, kind: OffenceKind, member: Address, sequence: int, now: int) -> str | None:
        """Why a proof of this is refused in round `now`; None where it is news. `sequence` is the round of the deed."""
        if not now - MAX_AGE <= sequence:
            return f"{kind} in round {sequence} is too old; round {now} is going on, and {MAX_AGE} rounds are kept"
        proved = [one for one in self.latest if (one.kind, one.member) == (kind, member)]
        if any(one.sequence == sequence for one in proved):
            return f"{kind} of {member} in round {sequence} is on record"
        if sum(one.sequence >= now - MAX_AGE for one in proved) >= MAX_LATEST_EACH:
            return f"{kind} of {member} is on record {MAX_LATEST_EACH} times in {MAX_AGE} rounds: that is enough"
        return None


@dataclass(frozen=True)
class Watched(State):
    """A state through which a service sees the record, and its rules add to it (`charge`).

    A rule finds in `offences` all that was recorded before its block; so does an interrupt's `when`. The machine
    itself (`quorate.abci`) writes the field, when a round ends: nothing that a rule takes out of it is forgotten.
    """

    offences: Offences = keep(Offences())

    def ended_in(self, ended: RoundNumber) -> Self:
        """This state, which the rule of the round `ended` made: for states that note what may be charged later."""
        return self


S = TypeVar("S", bound=State)


def charge(
    state: S,
    kind: OffenceKind,
    member: Address,
    evidence: Hash,
    *,
    sequence: RoundNumber = THIS_ROUND,
    period: PeriodNumber | None = None,
) -> S:
    """`state` with an offence on record that the rule which calls this has found; as it was where nobody watches.

    `sequence` and `period` are those of the deed, if it was not in the round that ends now. Height, and this round's
    number, are the machine's to add: they are 0 until the block is over. One piece of evidence counts once.
    """
    if not isinstance(state, Watched) or any(
        (one.kind, one.member, one.evidence) == (kind, member, evidence) for one in state.offences.latest
    ):
        return state
    lap = PeriodNumber(state.period) if period is None else period
    found = Offence(kind, member, UNSTAMPED, sequence, lap, evidence)
    return replace(state, offences=state.offences.plus(found))


def informed(period: Period, record: Offences) -> Period:
    """`period` as the rule of its round shall see it: with the record as it is now, where the service watches it."""
    state = period.state
    if not isinstance(state, Watched) or state.offences == record:
        return period
    return replace(period, state=replace(state, offences=record))


def taken_back(period: Period, record: Offences, height: Height, ended: RoundNumber) -> tuple[Period, Offences]:
    """The period after the round `ended`, and the record with what that round's rule has added to it."""
    state = period.state
    if not isinstance(state, Watched):
        return period, record
    for one in state.offences.latest:
        if one.height == UNSTAMPED:
            record = record.plus(replace(one, height=height, sequence=one.sequence or ended))
    return informed(replace(period, state=state.ended_in(ended)), record), record
