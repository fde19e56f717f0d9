"""The client, the Safe and the registry against a real anvil."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dao.deploy import check, deploy, load_settings
from quorate.chain import (
    CallReverted,
    Chain,
    Model,
    NonceTooLow,
    Offer,
    OperatorRegistry,
    Safe,
    Timelock,
    Token,
    Wallet,
    load_abi,
)
from quorate.errors import ChainError, ConfigError, Underpriced, Unreachable
from quorate.units import Address, Call, Hash, Wei
from tests.integration.evm_chain import ROOT, LocalChain, local_chain, rich_wallet, tool

pytestmark = pytest.mark.integration

ONE = 10**18
SENDER, OTHER = rich_wallet(0), rich_wallet(1)
SOMEBODY = Address("0x00000000000000000000000000000000DeaDBeef")
SETTINGS = load_settings(ROOT / "dao/settings.yaml", minimum_stake=100, unbonding_delay_s=60)


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalChain]:
    async with local_chain(tmp_path) as local:
        yield local


def _payment(amount: int = 1) -> Call:
    return Call(SOMEBODY, Wei(amount), "0x")


async def test_sends_of_one_account_at_once_all_arrive_once(local: LocalChain) -> None:
    hashes = await asyncio.gather(*(local.chain.send(SENDER, _payment()) for _ in range(10)))
    receipts = [await local.chain.wait(sent) for sent in hashes]
    assert all(receipt.succeeded for receipt in receipts)
    assert await local.chain.balance(SOMEBODY) == 10
    assert await local.chain.transaction_count(SENDER.address) == 10


async def test_two_connections_with_one_account_do_not_lose_a_send(local: LocalChain) -> None:
    async with await Chain.connect(local.node.url) as second:
        sends = [chain.send(SENDER, _payment(10**i)) for i, chain in enumerate([local.chain, second] * 5)]
        for sent in await asyncio.gather(*sends):
            await local.chain.wait(sent)
    assert await local.chain.balance(SOMEBODY) == 1_111_111_111


async def test_a_signed_transaction_may_be_sent_again_by_anybody(local: LocalChain) -> None:
    signed = await local.chain.sign(SENDER, _payment())
    assert await local.chain.receipt(signed.hash) is None
    assert await local.chain.send_raw(signed.raw) == signed.hash
    await local.chain.wait(signed.hash)
    assert await local.chain.send_raw(signed.raw) == signed.hash
    assert await local.chain.balance(SOMEBODY) == 1


async def test_a_transaction_whose_nonce_another_took_is_an_error(local: LocalChain) -> None:
    late = await local.chain.sign(SENDER, _payment(2))
    await local.chain.wait(await local.chain.send(SENDER, _payment(1)))
    with pytest.raises(NonceTooLow):
        await local.chain.send_raw(late.raw)


async def test_pending_transactions_are_known_replaced_and_waited_for(local: LocalChain) -> None:
    await local.node.rpc("evm_setAutomine", False)
    first = await local.chain.sign(SENDER, _payment(1))
    await local.chain.send_raw(first.raw)
    assert await local.chain.send_raw(first.raw) == first.hash
    with pytest.raises(ChainError, match=f"{first.hash} is still in no block after 0.2 s"):
        await local.chain.wait(first.hash, timeout_s=0.2)

    same_fee = await local.chain.sign(SENDER, _payment(2), nonce=first.nonce, fees=first.fees)
    with pytest.raises(Underpriced):
        await local.chain.send_raw(same_fee.raw)
    with pytest.raises(Underpriced, match="above the ceiling"):
        first.fees.bumped(first.fees.maximum)
    bumped = await local.chain.sign(SENDER, _payment(3), nonce=first.nonce, fees=first.fees.bumped(Wei(10**12)))
    await local.chain.send_raw(bumped.raw)
    await local.node.rpc("evm_mine")
    assert (await local.chain.wait(bumped.hash)).succeeded
    assert await local.chain.receipt(first.hash) is None
    assert await local.chain.balance(SOMEBODY) == 3


async def test_confirmations_are_waited_for_and_a_reorg_takes_a_receipt_away(local: LocalChain) -> None:
    snapshot = await local.node.rpc("evm_snapshot")
    sent = await local.chain.send(SENDER, _payment())
    receipt = await local.chain.wait(sent)
    with pytest.raises(ChainError, match=f"in block {receipt.block}, without its confirmations"):
        await local.chain.wait(sent, confirmations=2, timeout_s=0.2)
    await local.node.rpc("anvil_mine", "0x2")
    assert await local.chain.wait(sent, confirmations=2) == receipt
    await local.node.rpc("evm_revert", snapshot)
    with pytest.raises(ChainError, match="in no block"):
        await local.chain.wait(sent, timeout_s=0.2)


async def test_a_wrong_chain_and_a_silent_node_are_told_apart(local: LocalChain) -> None:
    with pytest.raises(ConfigError, match="serves chain 31337; expected chain 1"):
        await Chain.connect(local.node.url, 1)
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:1 gave no answer to eth_chainId") as silent:
        await Chain.connect("http://user:secret@127.0.0.1:1/v3/apikey?key=secret")
    assert "secret" not in str(silent.value)
    assert "apikey" not in str(silent.value)


async def test_a_contract_that_is_not_there_is_said_so(local: LocalChain) -> None:
    with pytest.raises(ChainError, match="there is no such contract"):
        await Token(local.chain, SOMEBODY).balance_of(SENDER.address)


async def test_an_empty_account_is_told_to_get_coins(local: LocalChain) -> None:
    with pytest.raises(ChainError) as refused:
        await local.chain.send(Wallet.create(), _payment(), gas=21_000)
    assert "coin" in refused.value.fix


async def test_the_daos_deployer_keeps_nothing_and_the_check_sees_if_it_did(local: LocalChain) -> None:
    dao = await deploy(local.chain, SENDER, {OTHER.address: Wei(ONE)}, Wei(ONE), SETTINGS)
    with pytest.raises(CallReverted, match="AccessControlUnauthorizedAccount"):
        timelock = Timelock(local.chain, dao.timelock)
        await local.chain.send(SENDER, timelock.grant_role(Timelock.PROPOSER, SENDER.address))
    await local.node.rpc("anvil_impersonateAccount", dao.timelock)
    await local.node.rpc("anvil_setBalance", dao.timelock, hex(ONE))
    grant = Timelock(local.chain, dao.timelock).grant_role(Timelock.PROPOSER, SENDER.address)
    await local.node.rpc("eth_sendTransaction", {"from": dao.timelock, "to": grant.to, "data": grant.data})
    with pytest.raises(ChainError, match="the deployer is no proposer"):
        await check(local.chain, dao, SENDER.address)


async def test_an_operator_registers_stakes_pauses_and_leaves(local: LocalChain) -> None:
    dao = await deploy(local.chain, SENDER, {OTHER.address: Wei(1000 * ONE)}, Wei(0), SETTINGS)
    registry, token = OperatorRegistry(local.chain, dao.registry), Token(local.chain, dao.token)
    model, key = Model("minilm", Hash("0x" + "ab" * 32)), Wallet.create().address
    assert await registry.operator_of(OTHER.address) is None

    async def send(call: Call) -> None:
        await local.chain.wait(await local.chain.send(OTHER, call))

    offer = Offer(key=key, endpoint="http://127.0.0.1:1", models=(model,), region="eu", device_class="h200", capacity=4)
    await send(registry.register(offer))
    assert await registry.operators() == ()
    await send(token.approve(registry.address, Wei(300 * ONE)))
    await send(registry.stake(Wei(300 * ONE)))
    (operator,) = await registry.operators()
    assert (operator.account, operator.key, operator.model("minilm")) == (OTHER.address, key, model)
    assert operator.model("other") is None
    assert operator.offer == offer
    await send(registry.set_price("minilm", Wei(7), Wei(9)))
    found = await registry.operator_of(OTHER.address)
    assert found is not None
    assert found.models == (replace(model, price_in=Wei(7), price_out=Wei(9)),)
    assert await registry.account_of(key) == OTHER.address
    assert await registry.is_active(OTHER.address)
    await send(registry.pause())
    assert not await registry.is_active(OTHER.address)
    await send(registry.unpause())
    await send(registry.start_unbonding(Wei(300 * ONE)))
    assert await registry.operators() == ()
    with pytest.raises(CallReverted, match="StillUnbonding") as early:
        await local.chain.send(OTHER, registry.withdraw())
    assert early.value.error == "StillUnbonding"
    await local.node.move_time_to(early.value.arguments["withdrawableAt"])
    await send(registry.withdraw())
    assert await token.balance_of(OTHER.address) == 1000 * ONE


async def test_only_whom_the_timelock_names_can_take_a_stake(local: LocalChain) -> None:
    dao = await deploy(local.chain, SENDER, {OTHER.address: Wei(1000 * ONE)}, Wei(0), SETTINGS)
    registry, token = OperatorRegistry(local.chain, dao.registry), Token(local.chain, dao.token)
    court, evidence = rich_wallet(2), Hash("0x" + "ee" * 32)
    offer = Offer(key=OTHER.address, endpoint="http://x", models=(Model("minilm", Hash("0x" + "ab" * 32)),))
    for call in (registry.register(offer), token.approve(registry.address, Wei(300 * ONE))):
        await local.chain.wait(await local.chain.send(OTHER, call))
    await local.chain.wait(await local.chain.send(OTHER, registry.stake(Wei(300 * ONE))))
    with pytest.raises(CallReverted, match="NotGovernance"):
        await local.chain.send(SENDER, registry.set_slasher(court.address))
    with pytest.raises(CallReverted, match="NotSlasher"):
        await local.chain.send(court, registry.slash(OTHER.address, Wei(1), court.address, evidence))

    await local.node.rpc("anvil_impersonateAccount", dao.timelock)
    await local.node.rpc("anvil_setBalance", dao.timelock, hex(ONE))
    named = registry.set_slasher(court.address)
    await local.node.rpc("eth_sendTransaction", {"from": dao.timelock, "to": named.to, "data": named.data})
    with pytest.raises(ChainError, match="nobody can slash"):
        await check(local.chain, dao, SENDER.address)
    await local.chain.wait(await local.chain.send(OTHER, registry.start_unbonding(Wei(100 * ONE))))
    until = await local.chain.timestamp() + 5000
    await local.chain.wait(await local.chain.send(court, registry.hold(OTHER.address, until)))
    assert await registry.released_at(OTHER.address) == until
    slash = registry.slash(OTHER.address, Wei(250 * ONE), court.address, evidence)
    await local.chain.wait(await local.chain.send(court, slash))
    found = await registry.operator_of(OTHER.address)
    assert found is not None
    assert (found.stake, found.unbonding, found.held_until) == (0, 50 * ONE, until)
    assert await registry.operators() == ()
    assert await token.balance_of(court.address) == 250 * ONE


async def test_an_operator_whose_words_are_no_text_does_not_hide_the_others(local: LocalChain) -> None:
    accounts = [rich_wallet(i) for i in range(2, 5)]
    allocations = {wallet.address: Wei(100 * ONE) for wallet in accounts}
    dao = await deploy(local.chain, SENDER, allocations, Wei(0), SETTINGS)
    registry, token = OperatorRegistry(local.chain, dao.registry), Token(local.chain, dao.token)
    for wallet in accounts:
        models = (Model("minilm", Hash("0x" + "01" * 32)),)
        call = registry.register(Offer(key=wallet.address, endpoint="MARK", models=models))
        raw = call.data.replace(b"MARK".hex(), "fffefdfc") if wallet is accounts[1] else call.data
        for each in (
            Call(call.to, call.value, raw),
            token.approve(dao.registry, Wei(100 * ONE)),
            registry.stake(Wei(100 * ONE)),
        ):
            await local.chain.wait(await local.chain.send(wallet, each))
    assert [operator.endpoint for operator in await registry.operators()] == ["MARK", "\ufffd" * 4, "MARK"]


async def test_a_safe_is_deployed_once_and_an_unexpected_one_is_refused(local: LocalChain) -> None:
    owners = [rich_wallet(i).address for i in range(4)]
    safe = await Safe.deploy(local.chain, SENDER, owners, 3)
    count = await local.chain.transaction_count(SENDER.address)
    assert await Safe.deploy(local.chain, SENDER, owners, 3) == safe
    assert await local.chain.transaction_count(SENDER.address) == count
    assert (set(await safe.owners()), await safe.threshold(), await safe.nonce()) == (set(owners), 3, 0)
    with pytest.raises(ChainError, match="needs 3 of"):
        await safe.check(owners, 2)
    with pytest.raises(ChainError, match="is no Safe"):
        await Safe(local.chain, SENDER.address).check(owners, 3)
    assert (await Safe.deploy(local.chain, SENDER, owners, 3, salt=1)).address != safe.address


async def test_the_digest_is_the_contracts_own_and_safe_eth_pys(local: LocalChain) -> None:
    from eth_typing import URI
    from safe_eth.eth import EthereumClient
    from safe_eth.safe import SafeTx

    safe = await Safe.deploy(local.chain, SENDER, [rich_wallet(i).address for i in range(4)], 3)
    for data, nonce, gas in (("0x", 0, 0), ("0xdeadbeef", 7, 100_000)):
        ours = safe.transaction(Call(SOMEBODY, Wei(5), data), nonce, gas=gas)
        fields: Any = (safe.address, SOMEBODY, 5, bytes.fromhex(data[2:]), 0, gas, 0, 0, None, None, None, nonce)
        theirs = SafeTx(EthereumClient(URI(local.node.url)), *fields)
        their_digest = await asyncio.to_thread(lambda theirs=theirs: bytes(theirs.safe_tx_hash))  # type: ignore[misc]
        assert safe.digest(ours) == await safe.transaction_hash(ours) == their_digest


async def test_the_key_of_another_is_refused_before_anything_is_sent(local: LocalChain) -> None:
    safe = await Safe.deploy(local.chain, SENDER, [rich_wallet(i).address for i in range(4)], 3)
    transaction = safe.transaction(_payment(), 0)
    with pytest.raises(ValueError, match=f"given as {SENDER.address}'s is {OTHER.address}'s"):
        safe.execution(transaction, {SENDER.address: OTHER.sign_digest(safe.digest(transaction))})


async def test_a_deployment_that_would_fail_says_why(local: LocalChain) -> None:
    with pytest.raises(CallReverted, match="MinimumStakeIsZero"):
        await local.chain.deploy(SENDER, load_abi("OperatorRegistry"), SOMEBODY, 0, 60, SOMEBODY)


def test_forge_test_passes() -> None:
    done = subprocess.run(
        [tool("forge"), "test"], cwd=ROOT / "contracts", capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "0 failed" in done.stdout


def test_the_committed_artifacts_are_what_the_sources_give() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "contracts/export.py", "--check", "--forge", tool("forge")],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
