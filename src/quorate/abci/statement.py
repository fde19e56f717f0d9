"""What an agent says of its own state: "the block B led me to the app hash H". Who says what is not so, has diverged.

CometBFT shows no application what another one computed: the consensus of a node whose hash is not the header's ends,
and that is all that can be seen of it. But the state after block h is worked out when h is proposed, so the vote *for*
h can already say it: before anybody knows that it is wrong, and before the header of h + 1 ends the node that has it.

The rules that hold here:
- A statement names the block by its hash, and a block leads to one state. So an honest agent says the same of it
  however often it dies and replays, and what it says of a block that is never decided is held against nobody.
- What is agreed is in the state: `Landmark`s, the last blocks that changed the app hash. No other block has a
  statement or becomes a landmark, so neither keeps a chain awake.
- A statement is believed by nobody: each node compares it with its own hash, and looks at the signature where they
  differ. So the honest case costs one signature and no check.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from quorate.errors import PeerError
from quorate.signatures import SIGNATURE_BYTES, domain_separator, recover, text_hash, typed_digest
from quorate.units import Address

__all__ = [
    "BEGINNING",
    "BLOCK_HASH_BYTES",
    "MAX_LANDMARKS",
    "MAX_PREFIX_BYTES",
    "Landmark",
    "SignedStatement",
    "UnsignedStatement",
    "at_height",
    "join",
    "split",
]

MAX_LANDMARKS = 16
"""Blocks whose app hash is remembered: who has said otherwise is accused in the next of them."""
BLOCK_HASH_BYTES = 32

_HASH_BYTES = 32
_MARK = bytes(20)
"""Begins an extension with a statement: a payload begins with its sender, and nobody has the address zero."""
_SIGNATURE_AT = len(_MARK) + _HASH_BYTES
MAX_PREFIX_BYTES = _SIGNATURE_AT + SIGNATURE_BYTES

_DOMAIN = domain_separator("Quorate app hash")
_TYPE = "Statement(string chain,uint64 height,bytes32 block,bytes32 appHash)"


class Landmark(NamedTuple):
    """A decided block that changed the app hash, and what it led to."""

    height: int
    sequence: int
    """The round that was open after it."""
    period: int
    block: str
    """Its hash, in hex."""
    app_hash: str
    """The agreed one after it, in hex."""


BEGINNING = Landmark(0, 0, 0, "", "")
"""Before the first block: of a chain whose genesis says that there are landmarks."""


@dataclass(frozen=True)
class UnsignedStatement:
    """What is to be signed: the request that an agent's signing boundary judges."""

    chain_id: str
    height: int
    block: bytes
    """The block's hash, as CometBFT signs it; 32 bytes."""
    app_hash: bytes
    """The app hash after that block, as this agent has computed it; 32 bytes."""

    def digest(self) -> bytes:
        """The 32 bytes to sign (EIP-712, in a domain of its own: no payload can be taken for it)."""
        height = self.height.to_bytes(32, "big")
        return typed_digest(_DOMAIN, _TYPE, text_hash(self.chain_id), height, self.block, self.app_hash)


@dataclass(frozen=True)
class SignedStatement:
    """A statement with its signature. It names no chain: the one who checks it knows which chain it is on."""

    member: Address
    height: int
    block: bytes
    app_hash: bytes
    signature: bytes

    def is_signed_by_member(self, chain_id: str) -> bool:
        """True where the signature is `member`'s, made for the chain `chain_id`."""
        digest = UnsignedStatement(chain_id, self.height, self.block, self.app_hash).digest()
        return recover(digest, self.signature) == self.member


def at_height(landmarks: Iterable[Landmark], height: int) -> Landmark | None:
    """The landmark of that height; None where its block changed no hash, is forgotten, or is not decided yet."""
    return next((one for one in landmarks if one.height == height), None)


def join(app_hash: bytes, signature: bytes) -> bytes:
    """What stands before the payload (if any) in a vote extension with a statement of the block that is voted for."""
    return _MARK + app_hash + signature


def split(extension: bytes) -> tuple[tuple[bytes, bytes] | None, bytes]:
    """What a vote extension holds: (app hash, signature), if it states one, and the payload's bytes.

    `PeerError` where a statement is cut off. Nothing else is looked at.
    """
    if not extension.startswith(_MARK):
        return None, extension
    if len(extension) < MAX_PREFIX_BYTES:
        raise PeerError(f"a statement of {len(extension)} bytes; it takes {MAX_PREFIX_BYTES}", evidence=extension)
    return (extension[len(_MARK) : _SIGNATURE_AT], extension[_SIGNATURE_AT:MAX_PREFIX_BYTES]), extension[
        MAX_PREFIX_BYTES:
    ]
