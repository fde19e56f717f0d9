"""Vouchers: what is signed is what the contract reads, any change of it breaks the signature, nothing odd is read."""

from __future__ import annotations

import ast
import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from quorate.chain import CallReverted, Channel, InferencePayments, Refusal, SignedVoucher, Voucher, Wallet, load_abi
from quorate.chain import payments as module
from quorate.chain.revert import explain
from quorate.errors import PeerError
from quorate.signatures import keccak
from quorate.units import Address, Hash, Wei
from tests.unit.scripted_chain import scripted_chain
from tests.unit.test_chain_contracts import uses_of

PAYER, STRANGER = Wallet.from_key(b"\x01" * 32), Wallet.from_key(b"\x02" * 32)
PAYMENTS = Address("0x" + "12" * 20)
OPERATOR = Address("0x" + "34" * 20)
NOW = 1_900_000_000
VOUCHER = Voucher(
    chain_id=31337,
    payments=PAYMENTS,
    payer=PAYER.address,
    operator=OPERATOR,
    epoch=3,
    total=Wei(10**18),
    units=1234,
    receipt_hash=Hash("0x" + "ab" * 32),
    expiry=NOW + 60,
)
CHANNEL = Channel(Wei(2 * 10**18), Wei(10**17), 3, 0)


def _changed(**changes: Any) -> Voucher:
    return dataclasses.replace(VOUCHER, **changes)


def test_the_digest_is_the_one_that_wallets_make() -> None:
    names = "name:string version:string chainId:uint256 verifyingContract:address"
    members = "payer:address operator:address epoch:uint64 total:uint128 units:uint64 receiptHash:bytes32 expiry:uint64"
    typed = {
        "types": {
            "EIP712Domain": [dict(zip(("name", "type"), one.split(":"), strict=True)) for one in names.split()],
            "Voucher": [dict(zip(("name", "type"), one.split(":"), strict=True)) for one in members.split()],
        },
        "primaryType": "Voucher",
        "domain": {"name": "Quorate payments", "version": "1", "chainId": 31337, "verifyingContract": PAYMENTS},
        "message": {
            "payer": PAYER.address,
            "operator": OPERATOR,
            "epoch": 3,
            "total": 10**18,
            "units": 1234,
            "receiptHash": b"\xab" * 32,
            "expiry": NOW + 60,
        },
    }
    signed = Account.from_key(b"\x01" * 32).sign_typed_data(full_message=typed)
    assert VOUCHER.signed(PAYER) == (VOUCHER, bytes(signed.signature))


def test_the_digest_stays_what_it_was() -> None:
    """Vouchers outlive the code that signed them. Known from eth_account's encoder, as above."""
    assert VOUCHER.digest().hex() == "4a19e9e51f838b7eef76fd57129e82397b0c2563fef18ac63f76483276a2ce58"


@given(st.sampled_from([field.name for field in dataclasses.fields(Voucher)]), st.integers(1, 2**63))
def test_whatever_is_changed_in_a_voucher_it_is_no_longer_signed(name: str, change: int) -> None:
    value: Any = getattr(VOUCHER, name)
    other: Any = f"0x{int(value, 16) ^ change:0{len(value) - 2}x}" if isinstance(value, str) else value ^ change
    changed = _changed(**{name: other})
    assert SignedVoucher(changed, VOUCHER.signed(PAYER).signature).signer != PAYER.address


@pytest.mark.parametrize(("name", "bits"), [("epoch", 64), ("total", 128), ("units", 64), ("expiry", 64)])
def test_a_number_that_does_not_fit_is_not_signed(name: str, bits: int) -> None:
    _changed(**{name: 2**bits - 1}).digest()
    for wrong in (2**bits, -1):
        with pytest.raises(ValueError, match=f"{name} is .*{bits} bits"):
            _changed(**{name: wrong}).digest()


@pytest.mark.parametrize(
    ("change", "now", "expected"),
    [
        ({}, NOW, Refusal.NONE),
        ({}, NOW + 60, Refusal.NONE),
        ({}, NOW + 61, Refusal.EXPIRED),
        ({"epoch": 2}, NOW, Refusal.OTHER_EPOCH),
        ({"epoch": 4}, NOW, Refusal.OTHER_EPOCH),
        ({"total": Wei(10**17)}, NOW, Refusal.NOTHING_NEW),
        ({"total": Wei(10**17 + 1)}, NOW, Refusal.NONE),
        ({"total": Wei(2 * 10**18)}, NOW, Refusal.NONE),
        ({"total": Wei(2 * 10**18 + 1)}, NOW, Refusal.NOT_COVERED),
    ],
)
def test_what_a_voucher_is_worth_is_known_before_it_is_sent(
    change: dict[str, Any], now: int, expected: Refusal
) -> None:
    voucher = _changed(**change)
    assert voucher.signed(PAYER).refusal(CHANNEL, now) == expected
    worse = voucher.signed(STRANGER).refusal(CHANNEL, now)
    assert worse == (Refusal.NOT_SIGNED if expected == Refusal.NONE else expected)


def test_a_voucher_travels_as_a_header() -> None:
    signed = VOUCHER.signed(PAYER)
    assert SignedVoucher.from_header(signed.header()) == signed
    largest = dataclasses.replace(VOUCHER, epoch=2**64 - 1, total=Wei(2**128 - 1), units=2**64 - 1, expiry=2**64 - 1)
    assert SignedVoucher.from_header(largest.signed(PAYER).header()).voucher == largest


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": True},
        {"epoch": 1.0},
        {"epoch": "1"},
        {"epoch": -1},
        {"epoch": 2**64},
        {"total": 2**128},
        {"total": None},
        {"chain_id": 2**64},
        {"payer": PAYER.address.lower()},
        {"payments": "0x"},
        {"operator": 5},
        {"receipt_hash": "0x" + "AB" * 32},
        {"receipt_hash": "0x" + "ab" * 31},
        {"more": 1},
    ],
)
def test_a_header_that_is_no_exact_voucher_is_refused(change: dict[str, Any]) -> None:
    parts = json.loads(base64.urlsafe_b64decode(VOUCHER.signed(PAYER).header()))
    parts["voucher"] |= change
    with pytest.raises(PeerError, match="the voucher cannot be read"):
        SignedVoucher.from_header(base64.urlsafe_b64encode(json.dumps(parts).encode()).decode())


@pytest.mark.parametrize("header", ["", "e30=", "bm9uZQ==", "!", "W10=", "x" * 3000, "[" * 2000])
def test_a_header_of_something_else_is_refused(header: str) -> None:
    with pytest.raises(PeerError, match="the voucher"):
        SignedVoucher.from_header(header)


def test_every_function_that_the_wrapper_names_is_in_the_abi() -> None:
    abi = load_abi("InferencePayments")
    tree = ast.parse(Path(module.__file__).read_text())
    named = {call.args[0].value for call in _calls(tree, "_call")}
    assert len(named) == 6
    for function, count in uses_of(tree):
        abi.function(function, count)
    assert named <= set(abi.functions)
    assert {"Redeemed", "CloseStarted"} <= set(abi.events)


def _calls(tree: ast.AST, name: str) -> list[Any]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name
    ]


def test_a_voucher_for_another_contract_or_chain_is_not_sent() -> None:
    place = InferencePayments(scripted_chain({}), PAYMENTS)
    assert place.redeem(VOUCHER.signed(PAYER)).to == PAYMENTS
    for changed in (
        dataclasses.replace(VOUCHER, chain_id=1),
        dataclasses.replace(VOUCHER, payments=OPERATOR),
    ):
        with pytest.raises(ValueError, match="is worth nothing to"):
            place.redeem_many(OPERATOR, [changed.signed(PAYER)])


def test_a_refused_voucher_says_why_in_words() -> None:
    selector = keccak(text="VoucherRefused(uint8,uint256,uint256)")[:4]
    data = selector + b"".join(number.to_bytes(32, "big") for number in (5, 10, 4))
    assert explain(data)[2] == "VoucherRefused(why: NOT_COVERED, stated: 10, known: 4)"
    strange = selector + b"".join(number.to_bytes(32, "big") for number in (77, 10, 4))
    assert explain(strange)[2] == "VoucherRefused(why: 77, stated: 10, known: 4)"
    assert CallReverted("it", data).arguments["why"] == Refusal.NOT_COVERED
