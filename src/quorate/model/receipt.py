"""A receipt: what an operator signs under an answer, so that the answer has somebody who is liable for it.

It binds the exact bytes of the request and of the answer, the model's manifest, the token counts and the time, for one
registry on one chain. The client's nonce in it makes it worthless under any other request, an equal one too. It proves
who answered, not that the answer was computed as claimed: that is what audits are for.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from eth_utils.address import is_checksum_address

from quorate.errors import Malformed
from quorate.nesting import load_json
from quorate.signatures import SIGNATURE_BYTES, domain_separator, from_hex, keccak, recover, typed_digest
from quorate.units import Address, Hash

__all__ = ["RECEIPT_HEADER", "Receipt", "SignedReceipt", "hash_of"]

RECEIPT_HEADER = "X-Quorate-Receipt"
_LONGEST_HEADER = 4096
_LONGEST_MODEL = 64  # bytes; as in contracts/src/interfaces/IOperatorRegistry.sol
_TYPE = (
    "Receipt(address operator,address client,string model,bytes32 manifestHash,bytes32 requestHash,bytes32 answerHash,"
    "uint64 promptTokens,uint64 completionTokens,uint64 issuedAt,bytes32 nonce)"
)


def hash_of(body: bytes) -> Hash:
    """keccak256 of a body as it went over the wire."""
    return Hash("0x" + keccak(body).hex())


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What the operator's key signs."""

    chain_id: int
    registry: Address
    operator: Address
    """The operator's account in the registry; the signature is by its registered key."""
    client: Address
    model: str
    manifest_hash: Hash
    request_hash: Hash
    answer_hash: Hash
    prompt_tokens: int
    completion_tokens: int
    issued_at: int
    """Seconds since 1970 by the operator's clock."""
    nonce: Hash
    """Of the client's request (`ModelRequest.nonce`)."""

    def digest(self) -> bytes:
        """The 32 bytes to sign (EIP-712)."""
        return typed_digest(
            domain_separator("Quorate receipt", chain_id=self.chain_id, contract=self.registry),
            _TYPE,
            _word(self.operator),
            _word(self.client),
            keccak(text=self.model),
            _word(self.manifest_hash),
            _word(self.request_hash),
            _word(self.answer_hash),
            _number(self.prompt_tokens),
            _number(self.completion_tokens),
            _number(self.issued_at),
            _word(self.nonce),
        )

    def as_json(self) -> dict[str, Any]:
        """The receipt by field, as it travels and is kept."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class SignedReceipt(NamedTuple):
    """A receipt and the signature under it."""

    receipt: Receipt
    signature: bytes

    @property
    def signer(self) -> Address | None:
        """Whose key signed it; None if the signature is none."""
        return recover(self.receipt.digest(), self.signature)

    def header(self) -> str:
        """The value of the header `X-Quorate-Receipt`."""
        text = json.dumps({"receipt": self.receipt.as_json(), "signature": "0x" + self.signature.hex()}, sort_keys=True)
        return base64.urlsafe_b64encode(text.encode()).decode()

    @classmethod
    def from_header(cls, value: str) -> SignedReceipt:
        """The receipt in a header; raises Malformed for anything but a complete one."""
        if len(value) > _LONGEST_HEADER:
            raise Malformed(f"its receipt has {len(value)} characters; at most {_LONGEST_HEADER} are read")
        try:
            parts = load_json(base64.b64decode(value, altchars=b"-_", validate=True))
            if not isinstance(parts, dict) or parts.keys() != {"receipt", "signature"}:
                raise ValueError("expected the fields receipt and signature")
            return cls(_receipt_from(parts["receipt"]), from_hex(parts["signature"], SIGNATURE_BYTES))
        except (ValueError, binascii.Error) as error:
            raise Malformed(f"its receipt cannot be read: {error}") from None


def _receipt_from(raw: object) -> Receipt:
    names = {field.name for field in fields(Receipt)}
    if not isinstance(raw, Mapping) or raw.keys() != names:
        raise ValueError(f"expected a receipt with the fields {', '.join(sorted(names))}")
    for name in ("registry", "operator", "client"):
        if not (isinstance(raw[name], str) and is_checksum_address(raw[name])):
            raise ValueError(f"{name} is no checksummed address")
    for name in ("manifest_hash", "request_hash", "answer_hash", "nonce"):
        from_hex(raw[name], 32)
    for name in ("chain_id", "prompt_tokens", "completion_tokens", "issued_at"):
        if type(raw[name]) is not int or not 0 <= raw[name] < 2**64:
            raise ValueError(f"{name} is no unsigned 64-bit integer")
    if not isinstance(raw["model"], str) or not 1 <= len(raw["model"].encode()) <= _LONGEST_MODEL:
        raise ValueError(f"model is no name of 1 to {_LONGEST_MODEL} bytes")
    return Receipt(**raw)


def _word(text: str) -> bytes:
    return bytes.fromhex(text[2:]).rjust(32, b"\0")


def _number(value: int) -> bytes:
    return value.to_bytes(32, "big")
