"""A key is kept encrypted, and shown to nobody."""

from __future__ import annotations

import json
import logging
import os
import pickle
from pathlib import Path

import pytest
from eth_account import Account

from quorate.chain import Wallet, read_passphrase
from quorate.errors import ConfigError
from quorate.signatures import recover

KEY = bytes(range(1, 33))
FAST = 2**10  # scrypt's cost: the test is not about guessing


def test_a_saved_key_comes_back_with_its_passphrase_only(tmp_path: Path) -> None:
    wallet, path = Wallet.from_key(KEY), tmp_path / "key.json"
    wallet.save_keystore(path, "open sesame", scrypt_n=FAST)
    assert Wallet.from_keystore(path, "open sesame") == wallet
    with pytest.raises(ConfigError, match="the passphrase does not fit"):
        Wallet.from_keystore(path, "open")


def test_the_file_is_readable_by_its_owner_only_and_holds_no_key(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    Wallet.from_key(KEY).save_keystore(path, "open sesame", scrypt_n=FAST)
    assert path.stat().st_mode & 0o777 == 0o600
    assert KEY.hex() not in path.read_text()
    stored = json.loads(path.read_text())
    assert (stored["version"], stored["crypto"]["kdf"]) == (3, "scrypt")
    assert bytes(Account.decrypt(stored, "open sesame")) == KEY


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    Wallet.from_key(KEY).save_keystore(path, "a", scrypt_n=FAST)
    with pytest.raises(ConfigError, match="never overwritten"):
        Wallet.create().save_keystore(path, "a", scrypt_n=FAST)
    assert Wallet.from_keystore(path, "a").address == Wallet.from_key(KEY).address


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 3}', '{"version": 9}', "{"])
def test_a_file_that_is_no_keystore_is_said_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no keystore of version 3"):
        Wallet.from_keystore(path, "a")


def test_a_missing_file_and_an_empty_passphrase_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Wallet.from_keystore(tmp_path / "none.json", "a")
    with pytest.raises(ConfigError, match="needs a passphrase"):
        Wallet.create().save_keystore(tmp_path / "key.json", "")


def test_printing_logging_and_pickling_never_show_the_key(caplog: pytest.LogCaptureFixture) -> None:
    wallet = Wallet.from_key(KEY)
    logging.getLogger().warning("%r %s", wallet, wallet)
    shown = caplog.text + repr(wallet) + str(wallet) + f"{[wallet]}"
    assert wallet.address in shown
    assert KEY.hex() not in shown
    assert str(int.from_bytes(KEY, "big")) not in shown
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(wallet)
    with pytest.raises(AttributeError):
        vars(wallet)["_account"] if hasattr(wallet, "__dict__") else wallet.key  # type: ignore[attr-defined]


def test_a_signature_is_the_wallets_and_of_32_bytes_only() -> None:
    wallet = Wallet.create()
    assert recover(b"\x07" * 32, wallet.sign_digest(b"\x07" * 32)) == wallet.address
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        wallet.sign_digest(bytes(31))


def test_the_passphrase_comes_from_the_environment_or_an_open_file() -> None:
    assert read_passphrase({"QUORATE_PASSPHRASE": "a b"}) == "a b"
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe\n")
    os.close(writer)
    assert read_passphrase({"QUORATE_PASSPHRASE": "a", "QUORATE_PASSPHRASE_FD": str(reader)}) == "from a pipe"
    with pytest.raises(ConfigError, match="no passphrase"):
        read_passphrase({})
    with pytest.raises(ConfigError, match="expected an open file descriptor"):
        read_passphrase({"QUORATE_PASSPHRASE_FD": "nonsense"})
