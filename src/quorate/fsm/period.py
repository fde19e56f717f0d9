"""The replicated machine: blocks in, state out.

Rules that hold here: nothing reads a clock, a random number, a file or an environment; the same payloads and block
times in the same order give the same bytes on every machine. Time is block time in milliseconds, handed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from quorate.errors import ConfigError, PeerError, ServiceError
from quorate.frozen import changed
from quorate.fsm import codec
from quorate.fsm.round import ROUND_TIMEOUT, AnyRound
from quorate.fsm.service import BACK, Service
from quorate.fsm.state import State
from quorate.fsm.votes import Outcome, Votes, quorum_of
from quorate.units import Address

__all__ = ["Period", "Settled"]

_Rest = tuple[int, int, str, tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]
_ASK = b"!"  # no JSON begins so: a request to interrupt is never mistaken for a payload


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
    votes: Votes[Any] = field(default_factory=lambda: Votes.of(()))
    clock_ms: int = 0
    """Block time at which the round's time began; 0 while no block came after the one that opened the round."""
    origin: str = ""
    """Hex digest of the agreed state with which the current period began; the beacon's material."""
    asks: tuple[tuple[str, Address], ...] = ()
    """Who asks for which interrupt (event, member), sorted; an ask stands until the interrupt or the period's end."""
    interrupted: tuple[tuple[str, str], ...] = ()
    """The interrupts that are going on, innermost last: the event, and the round to come back to."""

    @staticmethod
    def start(service: Service, members: Iterable[Address], state: State | None = None) -> Period:
        """The machine at genesis."""
        ordered = tuple(sorted(members))
        if not ordered or len(set(ordered)) != len(ordered):
            raise ConfigError(f"the members of {service.name} are {list(ordered)}; expected at least one, each once")
        first = codec.conform(service.state, service.state() if state is None else state)
        return Period(service, ordered, service.start, first, 1, Votes.of((), n=len(ordered)), 0, _digest_of(first))

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
        field changes, it can be computed for all periods ahead. Good to rotate keepers; where something hangs on it,
        draw lots (`quorate.rounds.draw`).
        """
        material = codec.encode([chain_id, self.state.period, self.origin])
        return int.from_bytes(hashlib.sha256(b"quorate beacon" + material).digest(), "big")

    def ask(self, event: str) -> bytes:
        """The payload by which a member asks for the interrupt `event`, in any round and beside its payload there."""
        return _ASK + event.encode()

    @staticmethod
    def is_ask(payload: bytes) -> bool:
        """Whether `payload` asks for an interrupt: it stands beside the sender's payload of the round."""
        return payload.startswith(_ASK)

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
        if self.is_ask(payload):
            return changed(self, asks=tuple(sorted({*self.asks, (value, sender)})))
        return changed(self, votes=self.votes.plus(sender, value, payload))

    def end_block(self, time_ms: int) -> tuple[Period, Settled | None]:
        """End the block of this time: settle the round by its rule, else by its deadline; else start its clock.

        A round's clock starts at the block after the one that opened it, whose time may be old by a whole sleep of
        the chain. A round that nothing settles is left for the interrupt that a quorum asks for.
        """
        if self.is_final:
            return self, None
        outcome = self.round.settle(self.state, self.votes)
        deadline = self.deadline_ms
        if outcome is None and deadline is not None and time_ms >= deadline:
            outcome = self.round.at_deadline(self.state, self.votes) or Outcome(ROUND_TIMEOUT, self.state)
        if outcome is not None:
            return self._follow(outcome), Settled(self.round.name, outcome.event, self.sequence)
        left = self._enter(self.round, self.state, self.asks, self.interrupted) if self.asks else self
        if left.interrupted != self.interrupted:
            return left, Settled(self.round.name, left.interrupted[-1][0], self.sequence)
        return (self if self.clock_ms else changed(self, clock_ms=time_ms)), None

    @cached_property
    def _sealed(self) -> tuple[bytes, bytes]:
        head = _encode_texts(self.service.name, self.service.spec_hash, self.round.name, *self.members)
        rest = codec.encode((self.sequence, self.clock_ms, self.origin, self.asks, self.interrupted))
        senders = _encode_texts(*self.votes.senders())
        whole = b"\n".join((head, self.state._encoding, rest, senders, *self.votes.encodings))
        return whole, hashlib.sha256(whole).digest()

    def encode(self) -> bytes:
        """All of it as lines of canonical JSON, for durable storage."""
        return self._sealed[0]

    def digest(self) -> bytes:
        """32 bytes that are equal exactly when everything agreed is: what the chain's app hash is made of."""
        return self._sealed[1]

    @staticmethod
    def decode(service: Service, data: bytes) -> Period:
        """The period whose encoding is `data`; `ConfigError` if another service or version of it wrote that."""
        try:
            head, state, rest, senders, *payloads = data.split(b"\n")
            name, spec_hash, round_name, *members = codec.decode(tuple[str, ...], head)
            if (name, spec_hash) != (service.name, service.spec_hash):
                theirs, ours = f"{name} {spec_hash[:12]}", f"{service.name} {service.spec_hash[:12]}"
                fix = "Run the version of the service that wrote it, or start a new chain."
                raise ConfigError(f"the stored state is of the service {theirs}; this is {ours}", fix=fix)
            if (round := service.rounds.get(round_name)) is None:
                raise PeerError(f"{round_name} is none of its rounds")
            sequence, clock_ms, origin, asks, interrupted = codec.decode(_Rest, rest)
            agreed = codec.decode(service.state, state)
            sent = [codec.decode(round.payload, payload) for payload in payloads]
            votes = Votes.of(zip(codec.decode(tuple[str, ...], senders), sent, strict=True), n=len(members))
        except (PeerError, ValueError) as error:  # no peer: our own disk; or too few lines or texts
            raise ConfigError(f"the stored state of {service.name} is damaged: {error}") from error
        return Period(service, tuple(members), round, agreed, sequence, votes, clock_ms, origin, asks, interrupted)

    def _read(self, sender: Address, sequence: int, payload: bytes) -> Any:
        """The value of a payload that counts; `PeerError` says why it does not."""
        if sender not in self.members:
            raise PeerError(f"{sender} is no member of {self.service.name}", evidence=payload)
        if sequence != self.sequence:
            here = f"round {self.sequence} ({self.round}) is going on"
            raise PeerError(f"for round {sequence}, but {here}", evidence=payload)
        if self.is_final:
            raise PeerError(f"{self.round} is final: nothing is decided there", evidence=payload)
        if self.is_ask(payload):
            return self._read_ask(sender, payload)
        if sender in self.votes:
            raise PeerError(f"{sender} has already sent in round {sequence} ({self.round})", evidence=payload)
        return codec.decode(self.round.payload, payload)

    def _read_ask(self, sender: Address, payload: bytes) -> str:
        for one in self.service.interrupts:
            if self.ask(one.event) == payload:
                if one.event in dict(self.interrupted) or (one.event, sender) in self.asks:
                    raise PeerError(f"{one.event} is going on, or {sender} has asked for it", evidence=payload)
                return one.event
        raise PeerError(f"{payload[:80]!r} asks for an interrupt that {self.service.name} has not", evidence=payload)

    def _follow(self, outcome: Outcome[str, State]) -> Period:
        """The next round, opened with the state that this one agreed on."""
        edge = (self.round.name, outcome.event)
        if edge not in self.service.table:
            raise ServiceError(
                f"{self.round} ({self.round.where}) ended with {outcome.event}, which its rule does not announce",
                fix=f"Name it in the rule's return annotation; it names {sorted(self.round.events)}.",
            )
        state = codec.conform(self.service.state, outcome.state)
        asks = self.asks if state.period == self.state.period else ()
        if (target := self.service.table[edge]) is BACK:
            *outer, (_, name) = self.interrupted
            return self._enter(self.service.rounds[name], state, asks, tuple(outer))
        return self._enter(target, state, asks, () if target.name in self.service.main else self.interrupted)

    def _enter(
        self, target: AnyRound, state: State, asks: tuple[tuple[str, Address], ...], inside: tuple[tuple[str, str], ...]
    ) -> Period:
        """The period in which `target` opens, or the first interrupt that is due in its place."""
        for one in () if target in self.service.final else self.service.interrupts:
            wanted = sum(event == one.event for event, _ in asks) >= self.quorum or (one.when and one.when(state))
            if wanted and one.event not in dict(inside):
                asks = tuple(ask for ask in asks if ask[0] != one.event)
                target, inside = one.to, (*inside, (one.event, target.name))
                break
        origin = self.origin if state.period == self.state.period else _digest_of(state)
        votes = Votes[Any].of((), n=self.n)
        return Period(self.service, self.members, target, state, self.sequence + 1, votes, 0, origin, asks, inside)


@lru_cache(64)
def _encode_texts(*texts: str) -> bytes:
    return codec.encode(texts)


def _digest_of(state: State) -> str:
    return hashlib.sha256(state._encoding).hexdigest()
