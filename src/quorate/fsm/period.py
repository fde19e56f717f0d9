"""The replicated machine: blocks in, state out.

Rules that hold here: nothing reads a clock, a random number, a file or an environment; the same payloads and block
times in the same order give the same bytes on every machine. Time is block time in milliseconds, handed in.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from quorate.errors import ConfigError, PeerError, ServiceError
from quorate.fsm import codec
from quorate.fsm.round import ROUND_TIMEOUT, AnyRound
from quorate.fsm.service import Service
from quorate.fsm.state import State
from quorate.fsm.votes import Outcome, Votes, quorum_of
from quorate.units import Address

__all__ = ["Period", "Settled"]


@dataclass(frozen=True)
class Settled:
    """A round that ended: its name, the event, and which round since genesis it was."""

    round_name: str
    event: str
    sequence: int


@dataclass(frozen=True)
class Period:
    """Where a service is: the round, the agreed state, and the payloads of the round so far."""

    service: Service
    members: tuple[Address, ...]
    """Who may send payloads, sorted."""
    round: AnyRound
    state: State
    sequence: int = 1
    """Counts rounds since genesis, from 1. A payload is bound to it, so it never counts in another round."""
    votes: Votes[Any] = dataclasses.field(default_factory=lambda: Votes.of(()))
    clock_ms: int = 0
    """Block time at which the round's time began; 0 while no block came after the one that opened the round."""
    origin: str = ""
    """Hex digest of the agreed state with which the current period began; the beacon's material."""

    @staticmethod
    def start(service: Service, members: Iterable[Address], state: State | None = None) -> Period:
        """The machine at genesis."""
        ordered = tuple(sorted(members))
        if not ordered or len(set(ordered)) != len(ordered):
            raise ConfigError(f"the members of {service.name} are {list(ordered)}; expected at least one, each once")
        first = codec.conform(service.state, service.state() if state is None else state)
        return Period(service, ordered, service.start, first, 1, _no_votes(ordered), 0, _digest_of(first))

    @property
    def n(self) -> int:
        """How many agents may send."""
        return len(self.members)

    @property
    def quorum(self) -> int:
        """More than two thirds of the members."""
        return quorum_of(self.n)

    @property
    def is_final(self) -> bool:
        """True when the service has come to rest: no payload counts and no time runs."""
        return self.round in self.service.final

    @property
    def deadline_ms(self) -> int | None:
        """The block time from which on the round is over; None while its clock does not run."""
        return self.clock_ms + self.round.timeout_ms if self.clock_ms and not self.is_final else None

    def missing(self) -> tuple[Address, ...]:
        """The members that have not sent in this round."""
        return tuple(member for member in self.members if member not in self.votes)

    def beacon(self, chain_id: str) -> int:
        """H(chain id, period number, agreed state when the period began) as an integer of 256 bits.

        All agents know it alike, it changes every period, and no agent can choose it alone. It is no secret and no
        fair coin: it is known as soon as the period begins, and whoever decides a field that `keep` carries into the
        next period (a keeper alone; a quorum otherwise) can try contents until the next number suits. If no kept
        field changes, it can be computed for all periods ahead. Good to rotate keepers; never stake money on it.
        """
        material = codec.encode([chain_id, self.state.period, self.origin])
        return int.from_bytes(hashlib.sha256(b"quorate beacon" + material).digest(), "big")

    def refusal(self, sender: Address, sequence: int, payload: bytes) -> str | None:
        """Why this payload does not count now, or None."""
        try:
            self._read(sender, sequence, payload)
        except PeerError as error:
            return error.message
        return None

    def deliver(self, sender: Address, sequence: int, payload: bytes) -> Period:
        """Count a payload; one that does not count (see `refusal`) changes nothing."""
        try:
            value = self._read(sender, sequence, payload)
        except PeerError:
            return self
        votes = Votes.of([*self.votes.items(), (sender, value)], n=self.n, quorum=self.quorum)
        return dataclasses.replace(self, votes=votes)

    def end_block(self, time_ms: int) -> tuple[Period, Settled | None]:
        """End the block of this time: settle the round by its rule, else by its deadline; else start its clock.

        A round's clock starts at the block after the one that opened it, whose time may be old by a whole sleep of
        the chain.
        """
        if self.is_final:
            return self, None
        outcome = self.round.settle(self.state, self.votes)
        deadline = self.deadline_ms
        if outcome is None and deadline is not None and time_ms >= deadline:
            outcome = self.round.at_deadline(self.state, self.votes) or Outcome(ROUND_TIMEOUT, self.state)
        if outcome is not None:
            return self._follow(outcome), Settled(self.round.name, outcome.event, self.sequence)
        return (self if self.clock_ms else dataclasses.replace(self, clock_ms=time_ms)), None

    @cached_property
    def _encoded(self) -> bytes:
        stored = _Stored(
            service=self.service.name,
            spec_hash=self.service.spec_hash,
            members=self.members,
            round=self.round.name,
            state=codec.encode(self.state).decode(),
            sequence=self.sequence,
            votes=tuple((sender, codec.encode(payload).decode()) for sender, payload in self.votes.items()),
            clock_ms=self.clock_ms,
            origin=self.origin,
        )
        return codec.encode(stored)

    def encode(self) -> bytes:
        """All of it as canonical JSON, for durable storage."""
        return self._encoded

    def digest(self) -> bytes:
        """32 bytes that are equal exactly when everything agreed is: what the chain's app hash is made of."""
        return hashlib.sha256(self._encoded).digest()

    @staticmethod
    def decode(service: Service, data: bytes) -> Period:
        """The period whose encoding is `data`; `ConfigError` if another service or version of it wrote that."""
        try:
            stored: _Stored = codec.decode(_Stored, data)
            if (stored.service, stored.spec_hash) != (service.name, service.spec_hash):
                written, running = (
                    f"{stored.service} {stored.spec_hash[:12]}",
                    f"{service.name} {service.spec_hash[:12]}",
                )
                raise ConfigError(
                    f"the stored state is of the service {written}; this is {running}",
                    fix="Run the version of the service that wrote it, or start a new chain.",
                )
            if (round := service.rounds.get(stored.round)) is None:
                raise PeerError(f"{stored.round} is none of its rounds")
            state = codec.decode(service.state, stored.state.encode())
            pairs = [(sender, codec.decode(round.payload, payload.encode())) for sender, payload in stored.votes]
        except PeerError as error:  # no peer: our own disk
            raise ConfigError(f"the stored state of {service.name} is damaged: {error.message}") from error
        n = len(stored.members)
        votes = Votes.of(pairs, n=n, quorum=quorum_of(n))
        return Period(service, stored.members, round, state, stored.sequence, votes, stored.clock_ms, stored.origin)

    def _read(self, sender: Address, sequence: int, payload: bytes) -> Any:
        """The value of a payload that counts; `PeerError` says why it does not."""
        if sender not in self.members:
            raise PeerError(f"{sender} is no member of {self.service.name}", evidence=payload)
        if sequence != self.sequence:
            raise PeerError(
                f"for round {sequence}, but round {self.sequence} ({self.round}) is going on", evidence=payload
            )
        if self.is_final:
            raise PeerError(f"{self.round} is final: nothing is decided there", evidence=payload)
        if sender in self.votes:
            raise PeerError(f"{sender} has already sent in round {sequence} ({self.round})", evidence=payload)
        return codec.decode(self.round.payload, payload)

    def _follow(self, outcome: Outcome[str, State]) -> Period:
        """The next round, opened with the state that this one agreed on."""
        edge = (self.round.name, outcome.event)
        if edge not in self.service.table:
            raise ServiceError(
                f"{self.round} ({self.round.where}) ended with {outcome.event}, which its rule does not announce",
                fix=f"Name it in the rule's return annotation; it names {sorted(self.round.events)}.",
            )
        state = codec.conform(self.service.state, outcome.state)
        origin = self.origin if state.period == self.state.period else _digest_of(state)
        return Period(
            self.service,
            self.members,
            self.service.table[edge],
            state,
            self.sequence + 1,
            _no_votes(self.members),
            0,
            origin,
        )


@dataclass(frozen=True)
class _Stored:
    """The form on disk; state and payloads are their own canonical encodings, read by the types the round names."""

    service: str
    spec_hash: str
    members: tuple[Address, ...]
    round: str
    state: str
    sequence: int
    votes: tuple[tuple[Address, str], ...]
    clock_ms: int
    origin: str


def _no_votes(members: tuple[Address, ...]) -> Votes[Any]:
    return Votes((), len(members), quorum_of(len(members)))


def _digest_of(state: State) -> str:
    return hashlib.sha256(codec.encode(state)).hexdigest()
