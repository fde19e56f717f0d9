"""Payloads and the transactions that carry them: worth something on one chain, in one round, from one member."""

from __future__ import annotations

from dataclasses import replace

import pytest
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from quorate.abci import MAX_BODY_BYTES, SignedPayload, UnsignedPayload, payload_digest
from quorate.abci.transaction import Kind, Roll, encode_bundle, encode_single, tick_round
from quorate.errors import PeerError
from quorate.signatures import keccak
from tests.chain_of_agents.keys import Key, keys

CHAIN = "chain-1"
MEMBERS = keys(4)
ROLL = Roll(CHAIN, [key.address for key in MEMBERS])
OPENING = bytes(range(32))


def _signed(key: Key = MEMBERS[0], *, chain: str = CHAIN, name: str = "AddRound", body: bytes = b"1") -> SignedPayload:
    unsigned = UnsignedPayload(chain, 2, 7, name, OPENING, body)
    return unsigned.signed(key.address, key.sign_digest(unsigned.digest()))


def test_the_digest_is_what_any_eip712_library_computes() -> None:
    message = encode_typed_data(
        {"name": "Quorate payload", "version": "1"},
        {
            "Payload": [
                {"name": "chain", "type": "string"},
                {"name": "period", "type": "uint64"},
                {"name": "sequence", "type": "uint64"},
                {"name": "round", "type": "string"},
                {"name": "opening", "type": "bytes32"},
                {"name": "body", "type": "bytes32"},
            ]
        },
        {"chain": CHAIN, "period": 2, "sequence": 7, "round": "AddRound", "opening": OPENING, "body": keccak(b"1")},
    )
    expected = keccak(b"\x19" + message.version + message.header + message.body)
    assert payload_digest(CHAIN, 2, 7, "AddRound", OPENING, b"1") == expected


@given(
    st.integers(0, 2**64 - 1),
    st.integers(1, 2**64 - 1),
    st.text(st.characters(max_codepoint=127), min_size=1, max_size=64),
    st.binary(max_size=300),
)
def test_decoding_undoes_encoding(period: int, sequence: int, name: str, body: bytes) -> None:
    payload = SignedPayload(MEMBERS[0].address, period, sequence, name, OPENING, body, bytes(65))
    assert SignedPayload.decode(payload.encode()) == payload


@given(st.data())
def test_no_bit_can_be_changed_unnoticed(data: st.DataObject) -> None:
    wire = bytearray(_signed().encode())
    at = data.draw(st.integers(0, len(wire) - 1))
    wire[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(PeerError):
        ROLL.payload(bytes(wire))


@given(st.binary(max_size=600))
def test_random_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    for reading in (SignedPayload.decode, ROLL.payload, ROLL.transaction):
        with pytest.raises(PeerError):
            reading(data)


def test_a_payload_for_another_chain_of_a_stranger_or_forged_is_refused() -> None:
    assert ROLL.payload(_signed().encode()) == _signed()
    with pytest.raises(PeerError, match="did not sign for the chain chain-1"):
        ROLL.payload(_signed(chain="chain-2").encode())
    with pytest.raises(PeerError, match="no member"):
        ROLL.payload(_signed(Key("stranger")).encode())
    with pytest.raises(PeerError, match="did not sign"):
        ROLL.payload(replace(_signed(), sender=MEMBERS[1].address).encode())


def test_a_signature_cannot_be_turned_into_a_second_valid_one() -> None:
    """With (r, n - s) a third party could send the same payload in other bytes."""
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    payload = _signed()
    s = order - int.from_bytes(payload.signature[32:64], "big")
    twin = payload.signature[:32] + s.to_bytes(32, "big") + bytes([55 - payload.signature[64]])
    with pytest.raises(PeerError, match="did not sign"):
        ROLL.payload(replace(payload, signature=twin).encode())


def test_too_large_a_body_is_refused_when_made_and_when_read() -> None:
    with pytest.raises(ValueError, match="8193 bytes"):
        UnsignedPayload(CHAIN, 0, 1, "AddRound", OPENING, bytes(MAX_BODY_BYTES + 1))
    largest = _signed(body=bytes(MAX_BODY_BYTES))
    assert ROLL.payload(largest.encode()) == largest
    with pytest.raises(PeerError):
        ROLL.payload(largest.encode() + b"\0")


def test_a_bundle_carries_one_payload_a_member_in_their_order() -> None:
    payloads = tuple(_signed(key) for key in MEMBERS)
    assert ROLL.transaction(encode_bundle(payloads)).payloads == payloads
    for wrong in ((), payloads[::-1], (payloads[0], payloads[0]), (*payloads, _signed(body=b"2"))):
        with pytest.raises(PeerError, match="bundle"):
            ROLL.transaction(encode_bundle(wrong))
    with pytest.raises(PeerError, match="cut off"):
        ROLL.transaction(encode_bundle(payloads)[:-1])


def test_a_tick_is_never_taken_for_a_payload_nor_a_payload_for_a_tick() -> None:
    tick, payload = _signed(name=tick_round("AddRound")), _signed()
    assert ROLL.transaction(encode_single(Kind.TICK, tick)).payloads == (tick,)
    with pytest.raises(PeerError, match="a payload transaction"):
        ROLL.transaction(encode_single(Kind.PAYLOAD, tick))
    with pytest.raises(PeerError, match="a tick transaction"):
        ROLL.transaction(encode_single(Kind.TICK, payload))
