"""Keystores of a run on this machine: their passphrase is new each time and is in the children's environment only."""

from __future__ import annotations

import secrets
from pathlib import Path

from quorate.chain.wallet import PASSPHRASE, Wallet

__all__ = ["PASSPHRASE", "new_passphrase", "save_keystore"]

_LIGHT_SCRYPT_N = 2**12  # the passphrase has 256 random bits: there is nothing to guess, so opening may be fast


def new_passphrase() -> str:
    """32 random bytes as text."""
    return secrets.token_urlsafe(32)


def save_keystore(wallet: Wallet, path: Path, passphrase: str) -> None:
    """Write the wallet's key, encrypted, to a new file that opens in a moment."""
    wallet.save_keystore(path, passphrase, scrypt_n=_LIGHT_SCRYPT_N)
