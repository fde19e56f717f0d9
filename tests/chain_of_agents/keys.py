"""Ethereum keys of test agents: the same at every run."""

from __future__ import annotations

from coincurve import PrivateKey
from eth_utils.address import to_checksum_address

from quorate.chain.wallet import Wallet
from quorate.signatures import keccak
from quorate.units import Address

__all__ = ["Key", "key_of", "keys"]


class Key:
    """The key that `name` hashes to."""

    def __init__(self, name: str) -> None:
        self._key = PrivateKey(keccak(text=name))
        public = self._key.public_key.format(compressed=False)[1:]
        self.address = Address(to_checksum_address(keccak(public)[12:]))

    def wallet(self) -> Wallet:
        """The same key as an agent's keystore holds it."""
        return Wallet.from_key(self._key.secret)

    def sign_digest(self, digest: bytes) -> bytes:
        signature: bytes = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes([signature[64] + 27])


def keys(n: int) -> list[Key]:
    """The keys of agents 0 to n - 1, in the order of their addresses (as the members of a chain are)."""
    return sorted((Key(f"agent {index}") for index in range(n)), key=lambda key: key.address)


def key_of(index: int, n: int) -> Key:
    """The key of agent `index` of a chain that began with `n`: one of its members, or one who came later."""
    return keys(n)[index] if index < n else Key(f"agent {index}")
