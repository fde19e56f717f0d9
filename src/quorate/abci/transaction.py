"""The bytes of a block: its kinds of transaction, made of signed payloads. Pure.

1 bundle      payloads that rode on the vote extensions of the last commit; only a proposer writes it, and first
2 payload     one payload that came late or while the chain slept, through the mempool
3 tick        one signed "look at the time": it makes a block when a deadline is over and nobody has anything to say
4 upgrade     one signed ask for another version of the service's code
5 evidence    that a member broke the rules (`quorate.abci.evidence`); from anybody, unsigned, for it proves itself
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from quorate.abci.evidence import MAX_EVIDENCE_BYTES, Evidence
from quorate.abci.evidence import decode as decode_evidence
from quorate.abci.payload import SignedPayload
from quorate.abci.upgrade import ASK_ROUND
from quorate.errors import PeerError
from quorate.units import Address

__all__ = [
    "INTERRUPT",
    "MAX_TX_BYTES",
    "Kind",
    "Roll",
    "Transaction",
    "encode_bundle",
    "encode_evidence",
    "encode_single",
    "tick_round",
]

MAX_TX_BYTES = 1 + MAX_EVIDENCE_BYTES
"""The largest transaction that the mempool takes (a bundle never passes through it)."""
INTERRUPT = "/ask"
"""Marks the name under which an ask for an interrupt is signed: it goes beside a payload and contradicts nothing."""
_SIZE_BYTES = 2
T = TypeVar("T")
_CACHED_PAYLOADS = 4096
_CACHED_TRANSACTIONS = 256  # of the mempool and the next block, which are read again at each step


class Kind(IntEnum):
    """The first byte of a transaction."""

    BUNDLE = 1
    PAYLOAD = 2
    TICK = 3
    UPGRADE = 4
    EVIDENCE = 5


_KINDS = {kind.value: kind for kind in Kind}


@dataclass(frozen=True)
class Transaction:
    """A transaction whose payloads are well formed and signed by members."""

    kind: Kind
    payloads: tuple[SignedPayload, ...]
    evidence: Evidence | None = None


def encode_bundle(payloads: Iterable[SignedPayload]) -> bytes:
    """The proposer's transaction for these payloads."""
    wires = [payload.encode() for payload in payloads]
    return bytes([Kind.BUNDLE]) + b"".join(len(wire).to_bytes(_SIZE_BYTES, "big") + wire for wire in wires)


def encode_single(kind: Kind, payload: SignedPayload) -> bytes:
    """The mempool's transaction for one payload or tick."""
    return bytes([kind]) + payload.encode()


def encode_evidence(evidence: Evidence) -> bytes:
    """The transaction that brings `evidence` before all."""
    return bytes([Kind.EVIDENCE]) + evidence.encode()


def tick_round(round_name: str) -> str:
    """The name under which a tick of `round_name` is signed; no round's own name holds a slash."""
    return f"{round_name}/tick"


_MARKS = {Kind.PAYLOAD: ("", INTERRUPT), Kind.TICK: (tick_round(""),), Kind.UPGRADE: (ASK_ROUND,)}


class Roll:
    """Who may speak on this chain: decodes what peers send and refuses whoever is no member.

    Depends on the chain's id, the members and the bytes alone, so every node gives the same answer at any time.
    Remembers what it has verified (a payload is seen up to five times on its way into a block, and a recovery costs
    0.1 ms).
    """

    def __init__(
        self, chain_id: str, members: Iterable[Address], heard: Callable[[SignedPayload], None] | None = None
    ) -> None:
        """`heard` is told of each payload that was verified anew; what it does changes no answer."""
        self.chain_id = chain_id
        self._heard = heard
        self.members = frozenset(members)
        self._verified: dict[bytes, SignedPayload] = {}
        self._read: dict[bytes, Transaction] = {}

    def payload(self, wire: bytes) -> SignedPayload:
        """The payload in `wire`; `PeerError` where it is malformed, forged, foreign or not a member's."""
        if (known := self._verified.get(wire)) is not None:
            return known
        payload = SignedPayload.decode(wire)
        if payload.sender not in self.members:
            raise PeerError(f"a payload from {payload.sender}, who is no member of {self.chain_id}", evidence=wire)
        if not payload.is_signed_by_sender(self.chain_id):
            raise PeerError(
                f"a payload that {payload.sender} did not sign for the chain {self.chain_id}", evidence=wire
            )
        _remember(self._verified, wire, payload, _CACHED_PAYLOADS)
        if self._heard is not None:
            self._heard(payload)
        return payload

    def transaction(self, data: bytes) -> Transaction:
        """The transaction in `data`; `PeerError` where it is none, or any of its payloads is refused."""
        if (known := self._read.get(data)) is None:
            known = self._transaction(data)
            _remember(self._read, data, known, _CACHED_TRANSACTIONS)
        return known

    def _transaction(self, data: bytes) -> Transaction:
        kind = _KINDS.get(data[0]) if data else None
        if kind is None:
            raise PeerError(
                f"a transaction that begins with {data[:1].hex() or 'nothing'}; expected 01 to {max(Kind):02x}",
                evidence=data,
            )
        if kind is Kind.BUNDLE:
            return Transaction(kind, tuple(self._bundled(data)))
        if kind is Kind.EVIDENCE:
            evidence = decode_evidence(self.chain_id, data[1:])
            if evidence.member not in self.members:
                raise PeerError(f"evidence against {evidence.member}, who is no member", evidence=data)
            return Transaction(kind, (), evidence)
        payload = self.payload(data[1:])
        _, slash, mark = payload.round.partition("/")
        if slash + mark not in _MARKS[kind]:
            raise PeerError(f"a {kind.name.lower()} transaction with a payload for {payload.round}", evidence=data)
        return Transaction(kind, (payload,))

    def _bundled(self, data: bytes) -> list[SignedPayload]:
        payloads: list[SignedPayload] = []
        at = 1
        while at < len(data):
            size = int.from_bytes(data[at : at + _SIZE_BYTES], "big")
            wire = data[at + _SIZE_BYTES : at + _SIZE_BYTES + size]
            if len(wire) != size or len(payloads) == len(self.members):
                raise PeerError(
                    f"a bundle that is cut off at byte {at}, or has more payloads than members", evidence=data
                )
            payloads.append(self.payload(wire))
            at += _SIZE_BYTES + size
        senders = [payload.sender for payload in payloads]
        if not senders or senders != sorted(set(senders)):
            raise PeerError("a bundle that is empty, or not in the order of its senders", evidence=data)
        return payloads


def _remember(cache: dict[bytes, T], key: bytes, value: T, most: int) -> None:
    """Keep `value`; the oldest makes room."""
    if len(cache) >= most:
        cache.pop(next(iter(cache)))
    cache[key] = value
