"""Payments against a real anvil: a channel's whole life, what it costs, and that Python and Solidity say the same."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dao.deploy import deploy, load_settings
from quorate.chain import CallReverted, InferencePayments, Refusal, SignedVoucher, Token, Wallet
from quorate.chain.client import Receipt
from quorate.units import Address, Call, Hash, Wei
from tests.integration.evm_chain import ROOT, LocalChain, local_chain, rich_wallet

pytestmark = pytest.mark.integration

ONE = 10**18
DEPLOYER, PAYER, OTHER, STRANGER = (rich_wallet(number) for number in range(4))
OPERATOR = rich_wallet(5).address
SETTINGS = load_settings(ROOT / "dao/settings.yaml", close_delay_s=600)


@dataclass(frozen=True)
class Market:
    local: LocalChain
    payments: InferencePayments
    token: Token
    delay_s: int

    async def send(self, wallet: Wallet, call: Call) -> Receipt:
        return await self.local.chain.wait(await self.local.chain.send(wallet, call))

    async def voucher(self, total: int, payer: Wallet = PAYER, *, epoch: int = 0) -> SignedVoucher:
        now = await self.local.chain.timestamp()
        return self.payments.voucher(
            payer.address,
            OPERATOR,
            epoch=epoch,
            total=Wei(total),
            units=total // 1000,
            receipt_hash=Hash("0x" + f"{total:064x}"),
            expiry=now + 10_000,
        ).signed(payer)

    async def open(self, payer: Wallet, amount: int) -> None:
        await self.send(payer, self.token.approve(self.payments.address, Wei(2**256 - 1)))
        await self.send(payer, self.payments.deposit(payer.address, OPERATOR, Wei(amount)))


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[Market]:
    async with local_chain(tmp_path) as local:
        holders = {rich_wallet(number).address: Wei(1000 * ONE) for number in (1, 2, 3, *range(6, 10))}
        dao = await deploy(local.chain, DEPLOYER, holders, Wei(0), SETTINGS)
        payments = InferencePayments(local.chain, dao.payments)
        yield Market(local, payments, Token(local.chain, dao.token), await payments.close_delay())


async def test_ten_thousand_calls_are_paid_by_two_transactions(market: Market) -> None:
    payments, token = market.payments, market.token
    deadline = await market.local.chain.timestamp() + 1000
    permit = await token.permit_digest(PAYER.address, payments.address, Wei(100 * ONE), deadline)
    await market.send(
        PAYER, payments.deposit_with_permit(OPERATOR, Wei(100 * ONE), deadline, PAYER.sign_digest(permit))
    )
    channel = await payments.channel(PAYER.address, OPERATOR)
    assert (channel.deposited, channel.claimed, channel.epoch, channel.closable_at) == (100 * ONE, 0, 0, 0)

    price = 5 * 10**15
    newest = await market.voucher(10_000 * price)
    assert newest.refusal(channel, newest.voucher.expiry) == Refusal.NONE
    await market.send(STRANGER, payments.redeem(newest))
    assert await token.balance_of(OPERATOR) == 10_000 * price
    (paid,) = await payments.redemptions(payer=PAYER.address, operator=OPERATOR)
    assert (paid.amount, paid.total, paid.units) == (10_000 * price, 10_000 * price, newest.voucher.units)
    assert paid.receipt_hash == newest.voucher.receipt_hash
    assert await payments.redemptions(operator=STRANGER.address) == ()


async def test_a_payer_leaves_with_the_rest_after_the_delay_and_old_vouchers_are_worth_nothing(market: Market) -> None:
    payments, token = market.payments, market.token
    await market.open(PAYER, 10 * ONE)
    old = await market.voucher(10 * ONE)
    await market.send(STRANGER, payments.redeem(await market.voucher(4 * ONE)))
    await market.send(PAYER, payments.start_close(OPERATOR))
    (closing,) = await payments.closings(operator=OPERATOR)
    channel = await payments.channel(PAYER.address, OPERATOR)
    now = await market.local.chain.timestamp()
    assert closing.closable_at == channel.closable_at == now + market.delay_s
    assert channel.unclaimed == 6 * ONE
    with pytest.raises(CallReverted, match="NotClosableYet"):
        await market.local.chain.send(PAYER, payments.close(OPERATOR))
    with pytest.raises(CallReverted, match="ChannelIsClosing"):
        await market.local.chain.send(OTHER, payments.deposit(PAYER.address, OPERATOR, Wei(1)))
    await market.local.node.move_time_to(closing.closable_at)
    await market.send(PAYER, payments.close(OPERATOR))
    assert await token.balance_of(PAYER.address) == 996 * ONE
    assert await token.balance_of(payments.address) == 0
    await market.send(PAYER, payments.deposit(PAYER.address, OPERATOR, Wei(10 * ONE)))
    with pytest.raises(CallReverted, match="OTHER_EPOCH"):
        await market.local.chain.send(STRANGER, payments.redeem(old))


async def test_python_and_the_contract_agree_on_every_voucher(market: Market) -> None:
    payments = market.payments
    await market.open(PAYER, 10 * ONE)
    await market.send(STRANGER, payments.redeem(await market.voucher(2 * ONE)))
    sound = (await market.voucher(5 * ONE)).voucher
    now = await market.local.chain.timestamp()
    vouchers = [
        dataclasses.replace(sound, **change)
        for change in (
            {},
            {"epoch": 1},
            {"expiry": now - 1},
            {"total": 2 * ONE},
            {"total": 2 * ONE + 1},
            {"total": 10 * ONE},
            {"total": 10 * ONE + 1},
            {"payer": OTHER.address},
            {"units": 2**64 - 1, "expiry": 2**64 - 1},
        )
    ]
    seen = set[Refusal]()
    for voucher in vouchers:
        assert await payments.digest_of(voucher) == voucher.digest()
        for signed in (voucher.signed(PAYER), voucher.signed(STRANGER), SignedVoucher(voucher, b"\x01" * 65)):
            channel = await payments.channel(voucher.payer, OPERATOR)
            said = Refusal.NONE
            try:
                await market.local.chain.simulate(payments.redeem(signed), STRANGER.address)
            except CallReverted as error:
                said = Refusal(error.arguments["why"])
            assert said == signed.refusal(channel, now), voucher
            seen.add(said)
    assert seen == set(Refusal) - {Refusal.OTHER_OPERATOR}


async def test_a_reorg_and_a_second_redemption_pay_once(market: Market) -> None:
    payments = market.payments
    await market.open(PAYER, 10 * ONE)
    signed = await market.voucher(5 * ONE)
    snapshot = await market.local.node.rpc("evm_snapshot")
    await market.send(STRANGER, payments.redeem(signed))
    for _ in range(6):
        await market.local.node.rpc("evm_mine")
    await market.local.node.rpc("evm_revert", snapshot)  # as a reorg of 7 blocks takes it away
    assert await market.token.balance_of(OPERATOR) == 0
    await market.send(OTHER, payments.redeem(signed))
    with pytest.raises(CallReverted, match="NOTHING_NEW"):
        await market.local.chain.send(STRANGER, payments.redeem(signed))
    assert await market.token.balance_of(OPERATOR) == 5 * ONE


async def test_a_batch_pays_what_it_can_and_costs_little(market: Market) -> None:
    """The bars of operators.md: a claim <= 75,000 gas, <= 45,000 for each further channel of a batch."""
    payers = [PAYER, OTHER, STRANGER, *(rich_wallet(number) for number in range(6, 10))]
    for payer in payers:
        await market.open(payer, 10 * ONE)
    first = await market.send(DEPLOYER, market.payments.redeem(await market.voucher(ONE)))
    again = await market.send(DEPLOYER, market.payments.redeem(await market.voucher(2 * ONE)))
    gas = {}
    for count in (1, 5):
        batch = [await market.voucher((3 + count) * ONE, payer) for payer in payers[:count]]
        gas[count] = (await market.send(DEPLOYER, market.payments.redeem_many(OPERATOR, batch))).gas_used
    assert first.gas_used <= 75_000 + 17_100  # the first tokens that the operator ever gets
    assert again.gas_used <= 75_000
    assert (gas[5] - gas[1]) / 4 <= 45_000

    mixed = [await market.voucher(11 * ONE, PAYER), *[await market.voucher(9 * ONE, payer) for payer in payers[1:]]]
    before = await market.token.balance_of(OPERATOR)
    receipt = await market.send(DEPLOYER, market.payments.redeem_many(OPERATOR, mixed))
    (refused,) = receipt.logs(market.payments.abi, "Refused", market.payments.address)
    assert (refused.arguments["payer"], refused.arguments["why"]) == (PAYER.address, Refusal.NOT_COVERED)
    paid = await market.token.balance_of(OPERATOR) - before
    assert paid == sum(r.amount for r in await market.payments.redemptions(receipt.block, receipt.block))
    with pytest.raises(CallReverted, match="NothingRedeemed"):
        await market.local.chain.send(DEPLOYER, market.payments.redeem_many(OPERATOR, mixed))


async def test_the_price_of_a_voucher_is_paid_to_its_operator_alone(market: Market) -> None:
    await market.open(PAYER, 10 * ONE)
    signed = await market.voucher(ONE)
    theirs = SignedVoucher(dataclasses.replace(signed.voucher, operator=STRANGER.address), signed.signature)
    with pytest.raises(CallReverted, match="NOT_COVERED"):
        await market.local.chain.send(STRANGER, market.payments.redeem(theirs))
    with pytest.raises(CallReverted, match="NothingRedeemed"):
        await market.local.chain.send(STRANGER, market.payments.redeem_many(STRANGER.address, [signed]))
    assert Address(await market.payments.token()) == market.token.address
