"""What proves that a member broke the rules: the bytes that a block carries, and those that a contract checks. Pure.

- Evidence speaks for itself: whoever brings it signs nothing and gains nothing, and what proves nothing is refused.
- One deed has one form: the same two payloads give the same transaction on every node, so the mempool keeps one.
- What a statement of an app hash is held against is agreed state, and comes with no evidence (`why_harmless`).
- Only a round's own payloads can contradict each other. Ticks and asks, whose round name holds a slash, may come
  several times in a round: they are never evidence, and a contract must refuse them, too.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from eth_abi.abi import encode as abi_encode
from eth_utils.address import to_checksum_address

from quorate.abci.payload import MAX_PAYLOAD_BYTES, MAX_ROUND_NAME_BYTES, SignedHeader, SignedPayload
from quorate.abci.statement import Landmark, SignedStatement
from quorate.errors import PeerError
from quorate.fsm import Service, codec
from quorate.units import Address

__all__ = [
    "EQUIVOCATION_ABI",
    "INVALID_PAYLOAD_ABI",
    "MAX_EVIDENCE_BYTES",
    "WRONG_APP_HASH_ABI",
    "Equivocation",
    "Evidence",
    "InvalidPayload",
    "Watch",
    "WrongAppHash",
    "decode",
]

# sender, period, sequence, opening, twice body hash and signature, length of the round's name
_HEAD = struct.Struct(">20sQQ32s32s65s32s65sB")
MAX_EVIDENCE_BYTES = 1 + MAX_PAYLOAD_BYTES  # of the kinds, an invalid payload is the longest

EQUIVOCATION_ABI = "(address,string,uint64,uint64,string,bytes32,bytes32,bytes,bytes32,bytes)"
"""Of `Equivocation.proof`: member, chain, period, sequence, round, opening, then body hash and signature twice."""

INVALID_PAYLOAD_ABI = "(address,string,uint64,uint64,string,bytes32,bytes,bytes)"
"""Of `InvalidPayload.proof`: member, chain, period, sequence, round, opening, body, signature."""

WRONG_APP_HASH_ABI = "(address,string,uint64,bytes32,bytes32,bytes)"
"""Of `WrongAppHash.proof`: member, chain, height, block hash, the app hash that the member stated, signature."""

_REMEMBERED = 1024
_STATEMENT = struct.Struct(">20sQ32s32s65s")  # member, height, block hash, app hash, signature


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

    @cached_property
    def proof(self) -> bytes:
        """For a contract: `abi.encode` by `EQUIVOCATION_ABI`. Its keccak256 is the offence's evidence."""
        one, two = self.first, self.second
        fields = (
            one.sender, self.chain_id, one.period, one.sequence, one.round, one.opening,
            one.body_hash, one.signature, two.body_hash, two.signature,
        )  # fmt: skip
        return abi_encode((EQUIVOCATION_ABI,), (fields,))

    def encode(self) -> bytes:
        """The wire form."""
        one, two, name = self.first, self.second, self.first.round.encode()
        head = _HEAD.pack(
            bytes.fromhex(one.sender[2:]), one.period, one.sequence, one.opening,
            one.body_hash, one.signature, two.body_hash, two.signature, len(name),
        )  # fmt: skip
        return _EQUIVOCATION + head + name

    @staticmethod
    def decode(chain_id: str, data: bytes) -> Equivocation:
        """The evidence in `data`; `PeerError` where there is none, or either signature is not the member's."""
        if not _HEAD.size < len(data) <= (most := _HEAD.size + MAX_ROUND_NAME_BYTES):
            raise PeerError(f"evidence of {len(data)} bytes; {_HEAD.size + 1} to {most} are possible")
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


@dataclass(frozen=True)
class InvalidPayload:
    """A payload that its round's codec refuses: no honest agent signs one."""

    chain_id: str
    payload: SignedPayload
    kind: Literal["invalid payload"] = "invalid payload"

    @property
    def member(self) -> Address:
        """Whose signature it is."""
        return self.payload.sender

    @property
    def sequence(self) -> int:
        """The round that it is for."""
        return self.payload.sequence

    @property
    def period(self) -> int:
        """The period of that round."""
        return self.payload.period

    @cached_property
    def proof(self) -> bytes:
        """For a contract: `abi.encode` by `INVALID_PAYLOAD_ABI`. It proves who signed what, not that it is invalid."""
        one = self.payload
        fields = (
            one.sender, self.chain_id, one.period, one.sequence, one.round, one.opening, one.body, one.signature
        )  # fmt: skip
        return abi_encode((INVALID_PAYLOAD_ABI,), (fields,))

    def encode(self) -> bytes:
        """The wire form."""
        return _INVALID + self.payload.encode()

    @staticmethod
    def decode(chain_id: str, data: bytes) -> InvalidPayload:
        """The evidence in `data`; `PeerError` where there is none. What the codec says to it is not asked here."""
        payload = SignedPayload.decode(data)
        if not payload.is_signed_by_sender(chain_id):
            raise PeerError(f"evidence that {payload.sender} did not sign for {chain_id}", evidence=data)
        return InvalidPayload(chain_id, payload)

    def why_valid(self, service: Service) -> str | None:
        """Why an honest agent may have signed this; None where none does."""
        round = service.rounds.get(self.payload.round)
        if round is None:
            return f"{service.name} has no round {self.payload.round}: another version may have it, or it is an ask"
        try:
            codec.decode(round.payload, self.payload.body)
        except PeerError:
            return None
        return f"it is a valid payload of {round}"


@dataclass(frozen=True)
class WrongAppHash:
    """A statement of the app hash after a block; an offence where that block was decided and led to another one."""

    chain_id: str
    statement: SignedStatement
    kind: Literal["wrong app hash"] = "wrong app hash"

    @property
    def member(self) -> Address:
        """Whose signature it is."""
        return self.statement.member

    @property
    def height(self) -> int:
        """Of the block that it is about."""
        return self.statement.height

    @property
    def proof(self) -> bytes:
        """For a contract: `abi.encode` by `WRONG_APP_HASH_ABI`. It proves who said what of which block.

        What is agreed stands in the header after that block (`last_block_id`, `app_hash`), which a light client knows.
        """
        one = self.statement
        fields = (one.member, self.chain_id, one.height, one.block, one.app_hash, one.signature)
        return abi_encode((WRONG_APP_HASH_ABI,), (fields,))

    def encode(self) -> bytes:
        """The wire form."""
        one = self.statement
        member = bytes.fromhex(one.member[2:])
        return _WRONG_HASH + _STATEMENT.pack(member, one.height, one.block, one.app_hash, one.signature)

    @staticmethod
    def decode(chain_id: str, data: bytes) -> WrongAppHash:
        """The evidence in `data`; `PeerError` where there is none. Whether the statement is wrong is not asked here."""
        if len(data) != _STATEMENT.size:
            raise PeerError(f"a statement of {len(data)} bytes as evidence; expected {_STATEMENT.size}", evidence=data)
        raw, height, block, app_hash, signature = _STATEMENT.unpack(data)
        statement = SignedStatement(Address(to_checksum_address(raw)), height, block, app_hash, signature)
        if not statement.is_signed_by_member(chain_id):
            raise PeerError(f"a statement that {statement.member} did not sign for {chain_id}", evidence=data)
        return WrongAppHash(chain_id, statement)

    def why_harmless(self, agreed: Landmark | None) -> str | None:
        """Why an honest agent may have signed this, or nobody can tell any more; None where none does.

        `agreed` is what is known of the block of that height.
        """
        one = self.statement
        if agreed is None:
            return f"what block {one.height} led to is not known here: it had no news, is long gone, or is to come"
        if one.block.hex() != agreed.block:
            return f"the block {one.block.hex()[:12]} of height {one.height} was never decided"
        return "it is the agreed one" if one.app_hash.hex() == agreed.app_hash else None


Evidence = Equivocation | InvalidPayload | WrongAppHash
_EQUIVOCATION, _INVALID, _WRONG_HASH = b"\1", b"\2", b"\3"


def decode(chain_id: str, data: bytes) -> Evidence:
    """The evidence in `data`; `PeerError` where there is none, or a signature in it is not the member's."""
    if data[:1] == _EQUIVOCATION:
        return Equivocation.decode(chain_id, data[1:])
    if data[:1] == _INVALID:
        return InvalidPayload.decode(chain_id, data[1:])
    if data[:1] == _WRONG_HASH:
        return WrongAppHash.decode(chain_id, data[1:])
    raise PeerError(f"evidence that begins with {data[:1].hex() or 'nothing'}; expected 01 to 03", evidence=data)


class Watch:
    """Hears every signed payload that reaches this node, and says when one is invalid, or contradicts an earlier one.

    Remembers the last 1024 slots (one agent's word for one opening), and nothing across a restart: all nodes watch.
    """

    def __init__(self, chain_id: str, service: Service) -> None:
        self._chain_id, self._service = chain_id, service
        self._heard: OrderedDict[object, SignedHeader] = OrderedDict()

    def heard(self, payload: SignedPayload) -> Evidence | None:
        """The evidence that `payload`, whose signature was checked, is or makes with what was heard before."""
        if "/" in payload.round:
            return None
        header = payload.header
        before = self._heard.setdefault(_slot(header), header)
        if len(self._heard) > _REMEMBERED:
            self._heard.popitem(last=False)
        if before.body_hash != header.body_hash:
            return Equivocation.of(self._chain_id, before, header)
        alone = InvalidPayload(self._chain_id, payload)
        return alone if alone.why_valid(self._service) is None else None


def _slot(header: SignedHeader) -> object:
    return header.sender, header.period, header.sequence, header.round, header.opening
