"""A key that signs, and the encrypted file that keeps it. The key leaves this module only encrypted.

The file is a keystore of version 3 (scrypt, AES-128-CTR): what geth, open-aea and eth-account read, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_keyfile.keyfile import create_keyfile_json, decode_keyfile_json
from eth_typing import Hash32

from quorate.durable import sync_folder
from quorate.errors import ConfigError
from quorate.units import Address

__all__ = ["PASSPHRASE", "Wallet", "read_passphrase"]

PASSPHRASE = "QUORATE_PASSPHRASE"  # noqa: S105 (the variable's name, not its value)
_SCRYPT_N = 2**18  # what geth takes: about a second and 256 MB an attempt


class Wallet:
    """An account on an EVM chain that can sign. Printing, copying into logs or pickling it never shows the key."""

    __slots__ = ("_account", "address")

    def __init__(self, account: LocalAccount) -> None:
        self._account = account
        self.address = Address(account.address)

    @classmethod
    def create(cls) -> Wallet:
        """A new key from the system's random numbers."""
        return cls(Account.create())

    @classmethod
    def from_key(cls, key: bytes) -> Wallet:
        """A known key of 32 bytes: of a test, or of a local chain's rich accounts."""
        return cls(Account.from_key(key))

    @classmethod
    def from_keystore(cls, path: Path, passphrase: str) -> Wallet:
        """The key in an encrypted file; raises ConfigError where the file or the passphrase is wrong."""
        try:
            keystore = dict(json.loads(path.read_text()))
            return cls(Account.from_key(decode_keyfile_json(keystore, passphrase)))
        except OSError as error:
            raise ConfigError(f"the keystore {path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, NotImplementedError) as error:
            reason = "the passphrase does not fit" if "MAC" in str(error) else "it is no keystore of version 3"
            fix = f"set {PASSPHRASE} to the passphrase that it was saved with" if "MAC" in str(error) else ""
            raise ConfigError(f"the keystore {path} cannot be opened: {reason}", fix=fix) from None

    def save_keystore(self, path: Path, passphrase: str, *, scrypt_n: int = _SCRYPT_N) -> None:
        """Writes the key, encrypted, to a new file that only its owner can read; raises ConfigError if the file is
        there.

        A smaller `scrypt_n` (a power of two) opens faster and resists guessing less: for local chains only.
        """
        if not passphrase:
            raise ConfigError("a keystore needs a passphrase", fix=f"set {PASSPHRASE}")
        keystore = create_keyfile_json(bytes(self._account.key), passphrase, kdf="scrypt", iterations=scrypt_n)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise ConfigError(
                f"{path} is there already; a key is never overwritten", fix="choose another path"
            ) from None
        with os.fdopen(handle, "w") as file:
            json.dump(keystore, file)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)

    def sign_digest(self, digest: bytes) -> bytes:
        """The signature r, s, v (65 bytes, v 27 or 28) of a 32-byte EIP-712 digest."""
        if len(digest) != 32:
            raise ValueError(f"a digest has 32 bytes, not {len(digest)}")
        return bytes(self._account.unsafe_sign_hash(Hash32(digest)).signature)

    def sign_transaction(self, transaction: Mapping[str, Any]) -> bytes:
        """The signed transaction as a node takes it."""
        return bytes(self._account.sign_transaction(dict(transaction)).raw_transaction)

    def __repr__(self) -> str:
        return f"Wallet({self.address})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a wallet is not pickled: its key would be written unencrypted")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wallet) and other.address == self.address

    def __hash__(self) -> int:
        return hash(self.address)


def read_passphrase(environ: Mapping[str, str]) -> str:
    """The passphrase from the environment: the variable itself, or the file descriptor that QUORATE_PASSPHRASE_FD
    names.

    Never an argument of a command: those can be read by everybody on the machine.
    """
    if descriptor := environ.get(f"{PASSPHRASE}_FD"):
        try:
            with os.fdopen(int(descriptor), "r") as file:
                return file.readline().rstrip("\n")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{PASSPHRASE}_FD is {descriptor}; expected an open file descriptor ({error})") from error
    if passphrase := environ.get(PASSPHRASE):
        return passphrase
    raise ConfigError(
        "no passphrase for the keystore", fix=f"set {PASSPHRASE}, or {PASSPHRASE}_FD to a file descriptor"
    )
