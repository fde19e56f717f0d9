from __future__ import annotations

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from quorate.signatures import domain_separator, recover, typed_digest

ACCOUNT = Account.from_key(b"\x01" * 32)
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@given(st.binary(min_size=32, max_size=32))
def test_a_signature_names_its_signer(digest: bytes) -> None:
    assert recover(digest, bytes(ACCOUNT.unsafe_sign_hash(digest).signature)) == ACCOUNT.address


@given(st.binary(min_size=32, max_size=32), st.integers(0, 64), st.integers(1, 255))
def test_a_changed_byte_never_names_the_same_signer(digest: bytes, place: int, change: int) -> None:
    signature = bytearray(ACCOUNT.unsafe_sign_hash(digest).signature)
    signature[place] ^= change
    assert recover(digest, bytes(signature)) != ACCOUNT.address


def test_the_malleable_twin_of_a_signature_is_refused() -> None:
    signature = bytes(ACCOUNT.unsafe_sign_hash(b"\x02" * 32).signature)
    high_s = (ORDER - int.from_bytes(signature[32:64], "big")).to_bytes(32, "big")
    assert recover(b"\x02" * 32, signature[:32] + high_s + bytes([55 - signature[64]])) is None


@given(st.binary(max_size=70))
def test_junk_is_no_signature_and_raises_nothing(junk: bytes) -> None:
    assert recover(b"\x02" * 32, junk) != ACCOUNT.address


def test_a_digest_equals_the_one_that_wallets_make() -> None:
    typed = {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "Greeting": [{"name": "count", "type": "uint256"}],
        },
        "primaryType": "Greeting",
        "domain": {"name": "Test", "version": "1", "chainId": 31337, "verifyingContract": ACCOUNT.address},
        "message": {"count": 7},
    }
    separator = domain_separator("Test", chain_id=31337, contract=ACCOUNT.address)
    digest = typed_digest(separator, "Greeting(uint256 count)", (7).to_bytes(32, "big"))
    assert recover(digest, bytes(ACCOUNT.sign_typed_data(full_message=typed).signature)) == ACCOUNT.address


def test_a_member_that_is_not_32_bytes_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        typed_digest(b"\x00" * 32, "A(bytes b)", b"\x01")
