"""Signatures of Ethereum keys: who signed a digest. One place for the whole project, in C underneath.

Every digest signed here is an EIP-712 one (0x19 0x01 ...), so that no signature of ours can be taken for a transaction.
"""

from __future__ import annotations

import re
from functools import lru_cache

from coincurve import PublicKey
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from quorate.units import Address

__all__ = [
    "SIGNATURE_BYTES",
    "address_of",
    "domain_separator",
    "from_hex",
    "keccak",
    "recover",
    "text_hash",
    "typed_digest",
]

SIGNATURE_BYTES = 65
_HEX = re.compile("0x[0-9a-f]*")
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


def recover(digest: bytes, signature: bytes) -> Address | None:
    """The address whose key signed the 32-byte `digest`; None where `signature` is no valid one.

    `signature` is r (32 bytes), s (32), v (1; 27 or 28, as Ethereum writes it). A high s is refused (EIP-2), so that
    nobody can turn one valid signature into a second one.
    """
    if len(digest) != 32 or len(signature) != SIGNATURE_BYTES or signature[64] not in (27, 28):
        return None
    if not 0 < int.from_bytes(signature[32:64], "big") <= _HALF_ORDER:
        return None
    try:
        key = PublicKey.from_signature_and_message(signature[:64] + bytes([signature[64] - 27]), digest, hasher=None)
    except ValueError:  # no such point on the curve
        return None
    return address_of(keccak(key.format(compressed=False)[1:])[12:])


@lru_cache(1024)
def address_of(raw: bytes) -> Address:
    """The address whose 20 bytes are `raw`, with its checksum (EIP-55). Remembered: members' come again and again."""
    return Address(to_checksum_address(raw))


@lru_cache(1024)
def text_hash(text: str) -> bytes:
    """keccak256 of a text that comes again and again: a type, a chain's id, a round's name."""
    return bytes(keccak(text=text))


def from_hex(text: object, length: int) -> bytes:
    """The `length` bytes that `text` writes as `0x` and lower-case hex; `ValueError` for any other spelling.

    One spelling only, so that equal hashes are equal strings. `bytes.fromhex` alone skips blanks.
    """
    if not isinstance(text, str) or len(text) != 2 + 2 * length or not _HEX.fullmatch(text):
        raise ValueError(f"expected {length} bytes as 0x and lower-case hex")
    return bytes.fromhex(text[2:])


def domain_separator(
    name: str, *, version: str = "1", chain_id: int | None = None, contract: str | None = None
) -> bytes:
    """The EIP-712 domain separator for the fields that are given; 32 bytes."""
    fields = ["string name", "string version"]
    parts = [keccak(text=name), keccak(text=version)]
    if chain_id is not None:
        fields.append("uint256 chainId")
        parts.append(chain_id.to_bytes(32, "big"))
    if contract is not None:
        fields.append("address verifyingContract")
        parts.append(bytes.fromhex(contract.removeprefix("0x")).rjust(32, b"\0"))
    return keccak(keccak(text=f"EIP712Domain({','.join(fields)})") + b"".join(parts))


def typed_digest(separator: bytes, type_text: str, *words: bytes) -> bytes:
    """The EIP-712 digest of a flat struct: `type_text` is its encoded type, `words` its members, 32 bytes each."""
    if any(len(word) != 32 for word in words):
        raise ValueError("a member of a typed struct is encoded in 32 bytes; hash dynamic ones first")
    return keccak(b"\x19\x01" + separator + keccak(text_hash(type_text) + b"".join(words)))
