"""The Safe's digest, its addresses and the order of its signatures, without a chain."""

from __future__ import annotations

import pytest
from eth_account.messages import encode_typed_data

from quorate.chain import Safe, SafeTransaction, Wallet
from quorate.chain.safe import _CANONICAL, _abi, _creation, compute_create2
from quorate.signatures import keccak
from quorate.units import Address, Call, Wei
from tests.unit.scripted_chain import scripted_chain

SAFE = Address("0x" + "11" * 20)
TARGET = Address("0x" + "22" * 20)
TRANSACTION = SafeTransaction((Call(TARGET, Wei(3), "0xdeadbeef"),), nonce=7)
OWNERS = [Wallet.from_key(bytes([n]) * 32) for n in (1, 2, 3)]


def test_the_digest_is_the_one_that_eth_account_computes() -> None:
    """The integration tests compare it with safe-eth-py and with the contract, too."""
    types = {
        "EIP712Domain": [{"name": "chainId", "type": "uint256"}, {"name": "verifyingContract", "type": "address"}],
        "SafeTx": [
            {"name": name, "type": kind}
            for kind, name in (
                ("address", "to"),
                ("uint256", "value"),
                ("bytes", "data"),
                ("uint8", "operation"),
                ("uint256", "safeTxGas"),
                ("uint256", "baseGas"),
                ("uint256", "gasPrice"),
                ("address", "gasToken"),
                ("address", "refundReceiver"),
                ("uint256", "nonce"),
            )
        ],
    }
    zero = "0x" + "00" * 20
    message = {
        "to": TARGET,
        "value": 3,
        "data": bytes.fromhex("deadbeef"),
        "operation": 0,
        "safeTxGas": 0,
        "baseGas": 0,
    }
    message |= {"gasPrice": 0, "gasToken": zero, "refundReceiver": zero, "nonce": 7}
    domain = {"chainId": 31337, "verifyingContract": SAFE}
    payload = {"types": types, "primaryType": "SafeTx", "domain": domain, "message": message}
    signable = encode_typed_data(full_message=payload)
    assert TRANSACTION.digest(31337, SAFE) == keccak(b"\x19" + signable.version + signable.header + signable.body)


def test_a_digest_holds_for_one_chain_one_safe_one_nonce_and_one_call() -> None:
    others = [
        TRANSACTION.digest(1, SAFE),
        TRANSACTION.digest(31337, TARGET),
        SafeTransaction(TRANSACTION.calls, 8).digest(31337, SAFE),
        SafeTransaction((Call(TARGET, Wei(4), "0xdeadbeef"),), 7).digest(31337, SAFE),
        SafeTransaction((Call(TARGET, Wei(3), "0xdeadbeee"),), 7).digest(31337, SAFE),
        SafeTransaction(TRANSACTION.calls, 7, gas=1).digest(31337, SAFE),
    ]
    assert len({TRANSACTION.digest(31337, SAFE), *others}) == 7


def test_signatures_are_put_in_the_owners_order_however_they_come() -> None:
    safe = Safe(scripted_chain({}), SAFE)
    signatures = {owner.address: owner.sign_digest(safe.digest(TRANSACTION)) for owner in OWNERS}
    calls = {
        safe.execution(TRANSACTION, dict(order)).data for order in (signatures.items(), reversed(signatures.items()))
    }
    assert len(calls) == 1
    data = bytes.fromhex(calls.pop()[10:])
    packed = _abi("Safe").function("execTransaction", 10).decode_arguments(data)[-1]
    ordered = sorted(signatures, key=lambda owner: int(owner, 16))
    assert packed == b"".join(signatures[owner] for owner in ordered)


def test_a_signature_over_something_else_is_refused() -> None:
    safe = Safe(scripted_chain({}), SAFE)
    wrong = OWNERS[0].sign_digest(SafeTransaction(TRANSACTION.calls, 8).digest(31337, SAFE))
    with pytest.raises(ValueError, match=f"the signature given as {OWNERS[0].address}'s is"):
        safe.execution(TRANSACTION, {OWNERS[0].address: wrong})
    with pytest.raises(ValueError, match="no valid signature"):
        safe.execution(TRANSACTION, {OWNERS[0].address: bytes(65)})


@pytest.mark.parametrize("name", ["Safe", "ProxyFactory", "CompatibilityFallbackHandler", "MultiSendCallOnly"])
def test_safe_eth_pys_bytecode_is_what_safe_deployed_on_public_chains(name: str) -> None:
    """Its canonical address depends on every byte of the creation code (CREATE2 by Safe's own deployer, salt 0)."""
    deployer = Address("0x914d7Fec6aaC8cd542e72Bca78B30650d45643d7")
    assert compute_create2(deployer, bytes(32), _creation(name)) == _CANONICAL[name]


@pytest.mark.parametrize(("owners", "threshold"), [(0, 1), (3, 0), (3, 4)])
async def test_a_threshold_that_does_not_fit_the_owners_is_refused(owners: int, threshold: int) -> None:
    addresses = [owner.address for owner in OWNERS[:owners]]
    with pytest.raises(ValueError, match=f"a threshold of {threshold} does not fit"):
        await Safe.deploy(scripted_chain({}), OWNERS[0], addresses, threshold)


async def test_an_owner_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="1 different owners of 2"):
        await Safe.deploy(scripted_chain({}), OWNERS[0], [OWNERS[0].address] * 2, 1)
