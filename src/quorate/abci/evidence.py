"""What proves that a member broke the rules: the bytes that a block carries, and those that a contract checks. Pure.

- Evidence speaks for itself: whoever brings it signs nothing and gains nothing, and what proves nothing is refused.
- One deed has one form: the same two payloads give the same transaction on every node, so the mempool keeps one.
- Only a round's own payloads can contradict each other. Ticks and asks, whose round name holds a slash, may come
  several times in a round: they are never evidence, and a contract must refuse them, too.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from eth_abi.abi import encode as abi_encode
from eth_utils.address import to_checksum_address

from quorate.abci.payload import MAX_ROUND_NAME_BYTES, SignedHeader, SignedPayload
from quorate.errors import PeerError
from quorate.signatures import keccak
from quorate.units import Address, Hash

__all__ = ["EQUIVOCATION_ABI", "MAX_EVIDENCE_BYTES", "Equivocation", "Watch"]

# sender, period, sequence, opening, twice body hash and signature, length of the round's name
_HEAD = struct.Struct(">20sQQ32s32s65s32s65sB")
MAX_EVIDENCE_BYTES = _HEAD.size + MAX_ROUND_NAME_BYTES

EQUIVOCATION_ABI = "(address,string,uint64,uint64,string,bytes32,bytes32,bytes,bytes32,bytes)"
"""Of `Equivocation.proof`: member, chain, period, sequence, round, opening, then body hash and signature twice."""

_REMEMBERED = 1024


@dataclass(frozen=True)
class Equivocation:
    """Two payloads of one member for one opening of one round, as headers, that of the smaller body hash first."""

    chain_id: str
    first: SignedHeader
    second: SignedHeader
    kind: Literal["equivocation"] = "equivocation"

    @staticmethod
    def of(chain_id: str, one: SignedHeader, other: SignedHeader) -> Equivocation:
        """The evidence that these two are, in its one form; `PeerError` where they contradict each other in nothing."""
        first, second = sorted((one, other), key=lambda header: header.body_hash)
        if "/" in first.round:
            raise PeerError(f"two payloads for {first.round}; ticks and asks may come several times")
        if _slot(first) != _slot(second) or first.body_hash == second.body_hash:
            raise PeerError("two payloads that do not contradict each other", fix="Show two bodies for one opening.")
        return Equivocation(chain_id, first, second)

    @property
    def member(self) -> Address:
        """Whose signatures they are."""
        return self.first.sender

    @property
    def sequence(self) -> int:
        """The round that both are for."""
        return self.first.sequence

    @property
    def period(self) -> int:
        """The period of that round."""
        return self.first.period

    @property
    def proof(self) -> bytes:
        """For a contract: `abi.encode` by `EQUIVOCATION_ABI`. Its keccak256 is the offence's evidence."""
        one, two = self.first, self.second
        fields = (
            one.sender, self.chain_id, one.period, one.sequence, one.round, one.opening,
            one.body_hash, one.signature, two.body_hash, two.signature,
        )  # fmt: skip
        return abi_encode((EQUIVOCATION_ABI,), (fields,))

    @property
    def digest(self) -> Hash:
        """keccak256 of `proof`."""
        return Hash("0x" + keccak(self.proof).hex())

    def encode(self) -> bytes:
        """The wire form."""
        one, two, name = self.first, self.second, self.first.round.encode()
        head = _HEAD.pack(
            bytes.fromhex(one.sender[2:]), one.period, one.sequence, one.opening,
            one.body_hash, one.signature, two.body_hash, two.signature, len(name),
        )  # fmt: skip
        return head + name

    @staticmethod
    def decode(chain_id: str, data: bytes) -> Equivocation:
        """The evidence in `data`; `PeerError` where there is none, or either signature is not the member's."""
        if not _HEAD.size < len(data) <= MAX_EVIDENCE_BYTES:
            raise PeerError(f"evidence of {len(data)} bytes; {_HEAD.size + 1} to {MAX_EVIDENCE_BYTES} are possible")
        raw, period, sequence, opening, body, signed, other_body, other_signed, size = _HEAD.unpack_from(data)
        name = data[_HEAD.size :]
        if len(name) != size or not name.isascii():
            raise PeerError(f"evidence for the round {name!r}; ASCII of {size} bytes was announced", evidence=data)
        sender, round_name = Address(to_checksum_address(raw)), name.decode("ascii")
        one = SignedHeader(sender, period, sequence, round_name, opening, body, signed)
        two = SignedHeader(sender, period, sequence, round_name, opening, other_body, other_signed)
        found = Equivocation.of(chain_id, one, two)
        if (found.first, found.second) != (one, two):
            raise PeerError("evidence whose smaller body hash is not the first", evidence=data)
        if not all(header.is_signed_by_sender(chain_id) for header in (one, two)):
            raise PeerError(f"evidence that {sender} did not sign twice for {chain_id}", evidence=data)
        return found


class Watch:
    """Hears every signed payload that reaches this node, and says when one contradicts an earlier one.

    Remembers the last 1024 slots (one agent's word for one opening), and nothing across a restart: all nodes watch.
    """

    def __init__(self, chain_id: str) -> None:
        self._chain_id = chain_id
        self._heard: OrderedDict[object, SignedHeader] = OrderedDict()

    def heard(self, payload: SignedPayload) -> Equivocation | None:
        """The evidence that `payload`, whose signature was checked, makes with what was heard before."""
        if "/" in payload.round:
            return None
        header = payload.header
        before = self._heard.setdefault(_slot(header), header)
        if len(self._heard) > _REMEMBERED:
            self._heard.popitem(last=False)
        return None if before.body_hash == header.body_hash else Equivocation.of(self._chain_id, before, header)


def _slot(header: SignedHeader) -> object:
    return header.sender, header.period, header.sequence, header.round, header.opening
