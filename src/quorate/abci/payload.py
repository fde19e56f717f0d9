"""A payload: what one agent sends into one round, signed by its Ethereum key and worth nothing anywhere else.

The signature (EIP-712) covers the chain's id, the period, the sequence number of the round (it counts rounds since
genesis and never repeats), the round's name, the `opening` (the digest of the agreed state when the round opened: an
act that was started for a block which was never decided cannot vote in another one's place) and the body. So a
payload that is sent again, moved to another round, or taken from another chain does not verify or is out of date.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

from quorate.errors import PeerError
from quorate.signatures import address_of, domain_separator, keccak, recover, text_hash, typed_digest
from quorate.units import Address

__all__ = [
    "MAX_BODY_BYTES",
    "MAX_PAYLOAD_BYTES",
    "MAX_ROUND_NAME_BYTES",
    "SignedHeader",
    "SignedPayload",
    "UnsignedPayload",
    "header_digest",
    "payload_digest",
]

MAX_BODY_BYTES = 8192
MAX_ROUND_NAME_BYTES = 64
_HEAD = struct.Struct(">20sQQ32s65sB")  # sender, period, sequence, opening, signature, length of the round's name
MAX_PAYLOAD_BYTES = _HEAD.size + MAX_ROUND_NAME_BYTES + MAX_BODY_BYTES

_DOMAIN = domain_separator("Quorate payload")
_TYPE = "Payload(string chain,uint64 period,uint64 sequence,string round,bytes32 opening,bytes32 body)"
_UINT64 = 1 << 64


def payload_digest(chain_id: str, period: int, sequence: int, round_name: str, opening: bytes, body: bytes) -> bytes:
    """The 32 bytes that an agent signs for a payload (EIP-712; `body` is covered by its keccak256)."""
    return header_digest(chain_id, period, sequence, round_name, opening, keccak(body))


def header_digest(
    chain_id: str, period: int, sequence: int, round_name: str, opening: bytes, body_hash: bytes
) -> bytes:
    """As `payload_digest`, for who knows only the body's keccak256: a contract, say."""
    return typed_digest(
        _DOMAIN,
        _TYPE,
        text_hash(chain_id),
        period.to_bytes(32, "big"),
        sequence.to_bytes(32, "big"),
        text_hash(round_name),
        opening,
        body_hash,
    )


@dataclass(frozen=True)
class UnsignedPayload:
    """What is to be signed: the request that an agent's signing boundary judges."""

    chain_id: str
    period: int
    sequence: int
    round: str
    opening: bytes
    body: bytes

    def __post_init__(self) -> None:
        if problem := _problem(self.period, self.sequence, self.round, self.opening, self.body):
            raise ValueError(problem)

    def digest(self) -> bytes:
        """The 32 bytes to sign."""
        return payload_digest(self.chain_id, self.period, self.sequence, self.round, self.opening, self.body)

    def signed(self, sender: Address, signature: bytes) -> SignedPayload:
        """This payload with `sender`'s 65-byte signature of `digest()`."""
        return SignedPayload(sender, self.period, self.sequence, self.round, self.opening, self.body, signature)


@dataclass(frozen=True)
class SignedHeader:
    """A signed payload with its body as a hash: all that the signature covers, in a few bytes."""

    sender: Address
    period: int
    sequence: int
    round: str
    opening: bytes
    body_hash: bytes
    signature: bytes

    def is_signed_by_sender(self, chain_id: str) -> bool:
        """True where the signature is `sender`'s, made for the chain `chain_id`."""
        digest = header_digest(chain_id, self.period, self.sequence, self.round, self.opening, self.body_hash)
        return recover(digest, self.signature) == self.sender


@dataclass(frozen=True)
class SignedPayload:
    """A payload with its signature. It names no chain: the one who checks it knows which chain it is on."""

    sender: Address
    period: int
    sequence: int
    round: str
    opening: bytes
    body: bytes
    signature: bytes

    @cached_property
    def header(self) -> SignedHeader:
        """What of it was signed."""
        return SignedHeader(
            self.sender, self.period, self.sequence, self.round, self.opening, keccak(self.body), self.signature
        )

    def is_signed_by_sender(self, chain_id: str) -> bool:
        """True where the signature is `sender`'s, made for the chain `chain_id`."""
        return self.header.is_signed_by_sender(chain_id)

    def encode(self) -> bytes:
        """The wire form; there is exactly one for a payload."""
        name = self.round.encode()
        sender = bytes.fromhex(self.sender.removeprefix("0x"))
        head = _HEAD.pack(sender, self.period, self.sequence, self.opening, self.signature, len(name))
        return head + name + self.body

    @staticmethod
    def decode(data: bytes) -> SignedPayload:
        """The payload in `data`; `PeerError` where there is none. The signature is not looked at."""
        if not _HEAD.size < len(data) <= MAX_PAYLOAD_BYTES:
            raise PeerError(
                f"a payload of {len(data)} bytes; {_HEAD.size + 1} to {MAX_PAYLOAD_BYTES} are possible", evidence=data
            )
        sender, period, sequence, opening, signature, name_size = _HEAD.unpack_from(data)
        name, body = data[_HEAD.size : _HEAD.size + name_size], data[_HEAD.size + name_size :]
        if len(name) != name_size or not name.isascii():
            raise PeerError(
                f"a payload whose round name is {name!r}; ASCII of {name_size} bytes was announced", evidence=data
            )
        round_name = name.decode("ascii")
        if problem := _problem(period, sequence, round_name, opening, body):
            raise PeerError(problem, evidence=data)
        return SignedPayload(address_of(sender), period, sequence, round_name, opening, body, signature)


def _problem(period: int, sequence: int, round_name: str, opening: bytes, body: bytes) -> str:
    """What is wrong with these fields, in words; empty where nothing is."""
    if not (0 <= period < _UINT64 and 0 < sequence < _UINT64):
        return f"period {period}, sequence {sequence}; expected unsigned 64-bit integers, sequence from 1"
    if not round_name.isascii() or not 0 < len(round_name) <= MAX_ROUND_NAME_BYTES:
        return f"the round name {round_name!r}; expected 1 to {MAX_ROUND_NAME_BYTES} ASCII characters"
    if len(opening) != 32:
        return f"an opening of {len(opening)} bytes; expected 32"
    if len(body) > MAX_BODY_BYTES:
        return f"a body of {len(body)} bytes; at most {MAX_BODY_BYTES} are carried"
    return ""
