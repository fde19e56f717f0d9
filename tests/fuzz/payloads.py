"""Bytes that a peer calls a transaction, a payload's body, or a stored state."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from quorate.abci.machine import Block, Replica, _checksum, apply_block, execute, payload_for, tick_for
from quorate.abci.payload import SignedPayload, UnsignedPayload
from quorate.abci.transaction import Kind, Roll, Transaction, encode_bundle, encode_single
from quorate.errors import ConfigError, PeerError
from quorate.fsm import Period, codec
from quorate.units import Address
from tests.chain_of_agents.keys import keys
from tests.fuzz.engine import Target, label_of, mutate_bytes, mutate_json
from tests.property.test_fsm import SERVICE, Delegate, Opinion

__all__ = ["CHAIN", "Payloads", "mutate_wire"]

CHAIN = "chain-1"
_KEYS = {key.address: key for key in keys(5)}
_MEMBERS = [key.address for key in keys(4)]
_HINTS: tuple[Any, ...] = (Opinion, Delegate, int, str, tuple[str, ...], dict[str, tuple[int, ...]], int | None, bool)


class Payloads(Target):
    """`SignedPayload`, `Roll`, the codec and `Replica`: each accepts exactly what it writes, or says no and forgets."""

    name = "payloads"

    def __init__(self) -> None:
        start = Replica.start(Period.start(SERVICE, _MEMBERS))
        first = apply_block(start, Block(1, 1_000, ())).replica
        running = apply_block(first, Block(2, 2_000, ())).replica
        voted = execute(running, Transaction(Kind.PAYLOAD, (_vote(running, 0, 3),)))
        self._replicas = [running, voted]

    def seeds(self) -> Iterable[bytes]:
        running, voted = self._replicas
        yield encode_bundle(_vote(running, sender, 3) for sender in range(3))
        yield encode_single(Kind.PAYLOAD, _vote(running, 1, 7))
        halt = payload_for(CHAIN, running.period, running.period.ask("HALT"))
        yield encode_single(Kind.PAYLOAD, _signed(halt, _MEMBERS[2]))
        yield encode_single(Kind.TICK, _signed(tick_for(CHAIN, running.period, 0), _MEMBERS[3]))
        yield _vote(running, 1, 7).encode()
        yield codec.encode(Opinion("FOR", _weight(1), ("a",), {"b": 1, "c": None}))
        yield codec.encode(("a", "b"))
        yield voted.encode()

    def mutate(self, data: bytes, other: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.5 and (changed := mutate_wire(data, rng)) is not None:
            return changed
        if rng.random() < 0.5:
            try:
                value = json.loads(data)
                if isinstance(value, list) and len(value) > 6 and rng.random() < 0.8:
                    return _another_state(value, rng)
                value = mutate_json(value, rng)
                return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
            except (ValueError, RecursionError, TypeError):
                pass
        return mutate_bytes(data, other, rng)

    def run(self, data: bytes) -> str:
        labels = [_payload(data), _state(data), max(_codec(hint, data) for hint in _HINTS)]
        try:
            tx = Roll(CHAIN, _MEMBERS).transaction(data)
        except PeerError as error:
            return " / ".join([label_of(error), *labels])
        wire = encode_bundle(tx.payloads) if tx.kind is Kind.BUNDLE else encode_single(tx.kind, tx.payloads[0])
        assert wire == data, "two encodings of one transaction"
        for payload in tx.payloads:
            assert payload.sender in _MEMBERS, "a stranger's payload counts"
            assert payload.is_signed_by_sender(CHAIN), "a payload counts that its sender did not sign"
        return " / ".join([tx.kind.name, *(_executed(replica, tx) for replica in self._replicas), *labels])


def _another_state(fields: list[Any], rng: random.Random) -> bytes:
    """A stored state of other content whose checksum fits, as a peer could offer it in a snapshot."""
    *fields, _ = fields
    if rng.random() < 0.5:
        lines = base64.b64decode(fields[5]).split(b"\n")
        at = rng.randrange(len(lines))
        line = json.dumps(mutate_json(json.loads(lines[at]), rng), sort_keys=True, separators=(",", ":"))
        lines[at] = line.encode()
        fields[5] = base64.b64encode(b"\n".join(lines)).decode()
    else:
        fields = mutate_json(fields, rng)
    if not isinstance(fields, list):
        return json.dumps(fields).encode()
    checksum = _checksum(json.dumps(fields, separators=(",", ":")))
    return json.dumps([*fields, checksum], separators=(",", ":")).encode()


def mutate_wire(data: bytes, rng: random.Random) -> bytes | None:
    """A transaction or payload with another content, signed anew as a rule; None where `data` is neither."""
    roll = Roll(CHAIN, _MEMBERS)
    try:
        if data[:1] and data[0] in tuple(Kind):
            tx = roll.transaction(data)
            kind, payloads = tx.kind, list(tx.payloads)
        else:
            kind, payloads = None, [SignedPayload.decode(data)]
    except PeerError:
        return None
    at = rng.randrange(len(payloads))
    try:
        payloads[at] = _changed(payloads[at], rng)
        if kind is None:
            return payloads[at].encode()
        if rng.random() < 0.2:
            payloads = rng.sample(payloads * 2, rng.randint(0, len(payloads) + 1))
        if rng.random() < 0.5:
            payloads.sort(key=lambda payload: payload.sender)
        if rng.random() < 0.15:
            kind = rng.choice(list(Kind))
        return encode_single(kind, payloads[0]) if kind is not Kind.BUNDLE and payloads else encode_bundle(payloads)
    except (ValueError, struct.error):
        return None


def _changed(payload: SignedPayload, rng: random.Random) -> SignedPayload:
    match rng.randrange(7):
        case 0:
            payload = replace(payload, sender=rng.choice(list(_KEYS)))
        case 1:
            payload = replace(payload, sequence=max(0, payload.sequence + rng.choice((-1, 1, 2, 2**40))))
        case 2:
            payload = replace(payload, period=rng.choice((0, 1, 2**64 - 1)))
        case 3:
            payload = replace(payload, opening=rng.choice((bytes(32), payload.opening[:-1] + b"x")))
        case 4:
            name = rng.choice(("JudgeRound", "JudgeRound/tick", "x", "é", "", "x" * 64, payload.round + "/tick"))
            payload = replace(payload, round=name)
        case 5:
            payload = replace(payload, body=_body(payload.body, rng))
        case _:
            payload = replace(payload, body=mutate_bytes(payload.body, b"!HALT", rng)[:9_000])
    if rng.random() < 0.15:
        return replace(payload, signature=mutate_bytes(payload.signature, b"", rng)[:65].ljust(65, b"\0"))
    return _signed(payload, payload.sender)


def _body(body: bytes, rng: random.Random) -> bytes:
    try:
        return codec.encode(mutate_json(json.loads(body), rng))
    except Exception:  # what cannot be encoded is of no use here
        return rng.choice((b"!HALT", b"!", b"[]", bytes([rng.randrange(9)])))


def _signed(payload: UnsignedPayload | SignedPayload, sender: Address) -> SignedPayload:
    unsigned = UnsignedPayload(CHAIN, payload.period, payload.sequence, payload.round, payload.opening, payload.body)
    key = _KEYS.get(sender, _KEYS[_MEMBERS[0]])
    return unsigned.signed(sender, key.sign_digest(unsigned.digest()))


def _vote(replica: Replica, sender: int, weight: int) -> SignedPayload:
    body = codec.encode(Opinion("FOR", _weight(weight)))
    return _signed(payload_for(CHAIN, replica.period, body), _MEMBERS[sender])


def _weight(number: int) -> Any:
    return number


def _payload(data: bytes) -> str:
    try:
        payload = SignedPayload.decode(data)
    except PeerError as error:
        return label_of(error)
    assert payload.encode() == data, "two encodings of one payload"
    return "payload"


def _codec(hint: Any, data: bytes) -> str:
    try:
        value = codec.decode(hint, data)
    except PeerError as error:
        _require_evidence(error, data)
        return "-"
    assert codec.encode(value) == data, f"two encodings of one {hint}"
    assert codec.conform(hint, value) == value
    return "+"


def _require_evidence(error: PeerError, data: bytes) -> None:
    assert error.evidence == data, "what was refused is not the evidence"
    assert len(error.message) < 2_000, "a message as long as what it is about"


def _state(data: bytes) -> str:
    try:
        replica = Replica.decode(SERVICE, data)
    except ConfigError as error:
        return label_of(error)
    again = Replica.decode(SERVICE, replica.encode())
    assert again.app_hash == replica.app_hash, "a state that is read and written is another one"
    return "state"


def _executed(replica: Replica, tx: Transaction) -> str:
    before = replica.encode()
    try:
        after = execute(replica, tx)
    except PeerError as error:
        assert replica.encode() == before, "a refused transaction changed the state"
        return label_of(error)
    assert replica.encode() == before, "an agreed state was changed in its place"
    assert after.app_hash != replica.app_hash, "a payload counts and changes nothing"
    assert Replica.decode(SERVICE, after.encode()) == after, "a state that is not read as it was written"
    try:
        execute(after, tx)
    except PeerError:
        return "counted"
    raise AssertionError("a transaction counts twice")
