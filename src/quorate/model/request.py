"""A signed request: how an operator knows who asks, and that nobody replays or redirects the question.

The header `X-Quorate-Auth` carries address, time, nonce and an EIP-712 signature. The signature covers the operator,
the path and the body's hash, for one registry on one chain: it opens nothing at another operator, path, chain or time.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from eth_utils.address import is_checksum_address

from quorate.chain import Wallet
from quorate.errors import PeerError
from quorate.nesting import load_json
from quorate.signatures import SIGNATURE_BYTES, domain_separator, from_hex, keccak, recover, typed_digest
from quorate.units import Address, Hash

__all__ = ["AUTH_HEADER", "Authorization", "ModelRequest", "RequestSigner", "WalletSigner"]

AUTH_HEADER = "X-Quorate-Auth"
_LONGEST_HEADER = 1024
_TYPE = "Request(address operator,string path,bytes32 bodyHash,uint64 time,bytes32 nonce)"


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """What a client signs before an operator listens to it."""

    chain_id: int
    registry: Address
    operator: Address
    path: str
    """`/v1/chat/completions` or `/v1/embeddings`."""
    body_hash: Hash
    time: int
    """Seconds since 1970 by the client's clock."""
    nonce: Hash
    """32 random bytes, never used again."""

    def digest(self) -> bytes:
        """The 32 bytes to sign (EIP-712)."""
        return typed_digest(
            domain_separator("Quorate request", chain_id=self.chain_id, contract=self.registry),
            _TYPE,
            bytes.fromhex(self.operator[2:]).rjust(32, b"\0"),
            keccak(text=self.path),
            bytes.fromhex(self.body_hash[2:]),
            self.time.to_bytes(32, "big"),
            bytes.fromhex(self.nonce[2:]),
        )


class RequestSigner(Protocol):
    """Signs requests to operators: in an agent its decision maker, elsewhere a wallet."""

    address: Address

    async def sign_request(self, request: ModelRequest) -> bytes:
        """The signature (65 bytes) of `request.digest()` by the key of `address`."""
        ...


class WalletSigner:
    """A `RequestSigner` over a wallet in this process."""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet
        self.address = wallet.address

    async def sign_request(self, request: ModelRequest) -> bytes:
        """The wallet's signature of the request."""
        return self._wallet.sign_digest(request.digest())


class Authorization(NamedTuple):
    """The header's content: who asks, when, with which nonce, and the signature."""

    client: Address
    time: int
    nonce: Hash
    signature: bytes

    def is_for(self, request: ModelRequest) -> bool:
        """True where `client` signed exactly this request."""
        return recover(request.digest(), self.signature) == self.client

    def header(self) -> str:
        """The value of the header `X-Quorate-Auth`."""
        parts = {
            "address": self.client,
            "nonce": self.nonce,
            "signature": "0x" + self.signature.hex(),
            "time": self.time,
        }
        return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()

    @classmethod
    def from_header(cls, value: str) -> Authorization:
        """The content of a header; raises PeerError, with the header as evidence, for anything but a complete one."""
        try:
            if len(value) > _LONGEST_HEADER:
                raise ValueError(f"it has {len(value)} characters; at most {_LONGEST_HEADER} are read")
            parts = load_json(base64.b64decode(value, altchars=b"-_", validate=True))
            if not isinstance(parts, dict) or parts.keys() != {"address", "nonce", "signature", "time"}:
                raise ValueError("expected the fields address, nonce, signature and time")
            client, time = parts["address"], parts["time"]
            if not (isinstance(client, str) and is_checksum_address(client)):
                raise ValueError("address is no checksummed address")
            if type(time) is not int or not 0 <= time < 2**64:
                raise ValueError("time is no unsigned 64-bit integer")
            nonce = Hash("0x" + from_hex(parts["nonce"], 32).hex())
            return cls(Address(client), time, nonce, from_hex(parts["signature"], SIGNATURE_BYTES))
        except (ValueError, binascii.Error) as error:
            raise PeerError(
                f"{AUTH_HEADER} cannot be read: {error}",
                evidence=value[:_LONGEST_HEADER].encode(errors="surrogateescape"),  # as HTTP headers are decoded
            ) from None
