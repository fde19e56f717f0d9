"""Settlement on a real anvil with the real Safe 1.4.1: reorgs, batches, stuck transactions, cancels, and attacks.

The owners' keys are here in wallets; what a decision maker refuses to sign is tested in tests/unit. What gets past it
(two dishonest owners of four, signatures made for something else) is refused by the Safe itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quorate.chain import CallReverted, Chain, Safe, SafeTransaction, Wallet
from quorate.chain.safe import MULTI_SEND, _abi
from quorate.errors import Reverted, Unreachable
from quorate.fsm import Votes
from quorate.host.decision_maker import ExecutionRequest, IntentRequest
from quorate.host.settler import SafeSettler
from quorate.localnet.anvil import Anvil
from quorate.rounds.settle import (
    Intent,
    SafeSignature,
    Settling,
    confirm,
    intend,
    keep_settlement,
    see_it_mined,
    with_intent,
)
from quorate.units import Address, Call, Hash, Wei
from tests.attacks import attack_calls
from tests.integration.evm_chain import local_chain, rich_wallet

pytestmark = pytest.mark.integration

GWEI = 10**9
DEPTH = 64
OWNERS = [rich_wallet(i) for i in range(4)]
DEPLOYER, THIEF = rich_wallet(5), rich_wallet(6)
CEILING = Wei(100 * GWEI)


class OwnerSigner:
    """Signs what the test says is agreed, as an agent's decision maker would."""

    def __init__(self, world: World, wallet: Wallet) -> None:
        self.world, self.wallet, self.address = world, wallet, wallet.address
        self.signed: list[ExecutionRequest] = []

    async def sign(self, request: Any) -> bytes:
        if isinstance(request, IntentRequest):
            return self.wallet.sign_digest(self.world.safe.digest(transaction(request.intent)))
        assert isinstance(request, ExecutionRequest)
        self.signed.append(request)
        call = self.world.execution(self.world.intent)
        return self.wallet.sign_transaction({
            "to": call.to, "data": call.data, "value": 0, "chainId": self.world.chain.chain_id, "nonce": request.nonce,
            "gas": request.gas, "maxFeePerGas": request.max_fee_per_gas,
            "maxPriorityFeePerGas": request.max_priority_fee_per_gas, "type": 2,
        })  # fmt: skip


class Quiet:
    def emit(self, kind: str, **fields: Any) -> None: ...
    def waiting(self, what: str, why: object) -> None:
        print("waiting for", what, why)


@dataclass
class World:
    """A Safe of four owners with 100 ether, and the intent that they have agreed on."""

    chain: Chain
    node: Anvil
    safe: Safe
    intent: Intent
    now: float = 0.0
    mines_at_once: bool = True

    def settler(self, wallet: Wallet, confirmations: int = DEPTH) -> tuple[SafeSettler, OwnerSigner]:
        signer: Any = OwnerSigner(self, wallet)
        journal: Any = Quiet()
        settler = SafeSettler(
            self.chain,
            self.safe.address,
            signer,
            journal,
            confirmations=confirmations,
            ceiling=CEILING,
            clock=lambda: self.now,
        )
        return settler, signer

    def signatures(self, intent: Intent, owners: Sequence[Wallet] = OWNERS[:3]) -> dict[Address, SafeSignature]:
        digest = self.safe.digest(transaction(intent))
        return {
            owner.address: SafeSignature(Hash("0x" + digest.hex()), "0x" + owner.sign_digest(digest).hex())
            for owner in owners
        }

    def execution(self, intent: Intent, owners: Sequence[Wallet] = OWNERS[:3]) -> Call:
        signatures = self.signatures(intent, owners)
        return self.safe.execution(
            transaction(intent), {who: bytes.fromhex(one.signature[2:]) for who, one in signatures.items()}
        )

    async def agree(self, *calls: Call) -> Intent:
        """The agents have agreed on these calls, at the Safe's next nonce and the newest block."""
        self.intent = Intent(calls, await self.safe.nonce(), await self.chain.block_number())
        return self.intent

    async def push(self, settler: SafeSettler, intent: Intent) -> None:
        """What a keeper does; where anvil mines by itself, until it has."""
        await settler.push(intent, self.signatures(intent))
        while self.mines_at_once and (await self.node.rpc("txpool_status"))["pending"] != "0x0":
            await asyncio.sleep(0.01)

    async def stop_mining(self) -> None:
        """From now on a block comes when the test asks for it."""
        await self.node.rpc("evm_setAutomine", False)
        self.mines_at_once = False

    async def mine(self, blocks: int) -> None:
        await self.node.rpc("anvil_mine", hex(blocks))


def transaction(intent: Intent) -> SafeTransaction:
    return SafeTransaction(intent.calls, intent.nonce)


def pay(amount: int = 10**18) -> Call:
    return Call(Wallet.create().address, Wei(amount), "0x")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with local_chain(tmp_path) as local:
        safe = await Safe.deploy(local.chain, DEPLOYER, [owner.address for owner in OWNERS], 3)
        await local.node.set_balance(safe.address, Wei(100 * 10**18))
        world = World(local.chain, local.node, safe, Intent((), 0))
        await world.mine(100)
        yield world


# ---- reorgs


@pytest.mark.parametrize("depth", [1, 7, 64])
async def test_a_payment_that_a_reorg_took_away_is_made_again_and_once(world: World, depth: int) -> None:
    settler, signer = world.settler(OWNERS[0])
    before = await world.node.rpc("evm_snapshot")
    early = max(depth - 2, 0) // 2
    await world.mine(early)  # the reorg goes back behind the block at which the intent was agreed
    intent = await world.agree(payment := pay())
    assert await settler.can_succeed(intent, intent.block)
    await world.push(settler, intent)
    await world.mine(depth - early - 1)
    provisional = await settler.outcome((intent,))
    assert provisional is not None
    assert provisional.success
    assert await settler.outcome((intent,), final=True) is None
    await world.push(settler, intent)  # it is mined: nothing is sent
    assert len(signer.signed) == 1

    await world.node.rpc("evm_revert", before)
    assert await settler.outcome((intent,)) is None
    assert await world.chain.balance(payment.to) == 0
    await world.push(settler, intent)
    again = await settler.outcome((intent,))
    assert again is not None
    assert again.block <= intent.block or depth == 1
    await world.mine(DEPTH)
    final = await settler.outcome((intent,), final=True)
    assert final == again
    assert (final.which, final.success, final.sender) == (0, True, OWNERS[0].address)
    assert await world.chain.balance(payment.to) == 10**18
    assert len(signer.signed) == 1  # the same transaction, with the same nonce and hash
    assert again.tx == provisional.tx


async def test_after_a_reorg_the_next_keeper_sends_the_same_safe_transaction_and_it_happens_once(world: World) -> None:
    (one, _), (two, _) = world.settler(OWNERS[0]), world.settler(OWNERS[1])
    before = await world.node.rpc("evm_snapshot")
    intent = await world.agree(payment := pay())
    await world.push(one, intent)
    await world.mine(6)
    await world.node.rpc("evm_revert", before)
    await world.push(two, intent)
    await world.push(one, intent)  # the first is back too, and finds it done
    await world.mine(DEPTH)
    final = await one.outcome((intent,), final=True)
    assert final is not None
    assert final.sender == OWNERS[1].address
    assert await world.chain.balance(payment.to) == 10**18


@pytest.mark.parametrize(("depth", "confirmations"), [(1, 0), (7, 2), (64, 10)])
async def test_what_was_final_and_a_deeper_reorg_took_is_made_again_in_its_order(
    world: World, depth: int, confirmations: int
) -> None:
    settler, _ = world.settler(OWNERS[0], confirmations)
    ctx: Any = SimpleNamespace(me=OWNERS[0].address, settler=settler, sleep=asyncio.sleep)
    state, before = Settling(participants=(ctx.me,)), await world.node.rpc("evm_snapshot")
    block = await world.chain.block_number()
    payments = [pay() for _ in range(1 if depth == 1 else 2)]

    async def lap(state: Settling, call: Call) -> Settling:
        intent = world.intent = await intend(ctx, state, call)
        state = with_intent(state, intent)
        await world.push(settler, intent)
        mined = see_it_mined(state, Votes.of([(ctx.me, Hash("0x"))], n=1))
        assert mined is not None
        await world.mine(confirmations)
        found = await confirm.act(ctx, mined.state)
        settled = keep_settlement(mined.state, Votes.of([(ctx.me, found)], n=1))
        assert settled is not None
        assert settled.event == "DONE"
        return settled.state

    for payment in payments:
        state = (await lap(state, payment)).next_period()
    await world.mine(depth - (await world.chain.block_number() - block))
    await world.node.rpc("evm_revert", before)
    assert await world.chain.balance(payments[0].to) == 0
    new, nonce = pay(), await world.safe.nonce()
    for number, payment in enumerate([*payments, new]):
        state = await lap(state, new)
        assert state.intent is not None
        assert (state.intent.calls, state.intent.nonce) == ((payment,), nonce + number)
        state = state.next_period()
    assert [await world.chain.balance(payment.to) for payment in (*payments, new)] == [10**18] * (len(payments) + 1)
    assert await world.safe.nonce() == nonce + len(payments) + 1


# ---- batches


async def test_a_batch_happens_whole_and_the_contract_agrees_on_its_digest(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    settler, _ = world.settler(OWNERS[0], confirmations=0)
    gas = {}
    for size in (1, 2, 3, 10):
        payments = [pay() for _ in range(size)]
        intent = await world.agree(*payments)
        assert await settler.can_succeed(intent, intent.block)
        assert world.safe.digest(transaction(intent)) == await world.safe.transaction_hash(transaction(intent))
        await world.push(settler, intent)
        settled = await settler.outcome((intent,), final=True)
        assert settled is not None
        assert settled.success
        gas[size] = settled.gas
        assert [await world.chain.balance(one.to) for one in payments] == [10**18] * size
    cancel = await world.agree()
    await world.push(settler, cancel)
    settled = await settler.outcome((cancel,), final=True)
    assert settled is not None
    gas[0] = settled.gas
    assert gas[10] < 10 * gas[1] * 0.6
    with capsys.disabled():
        print(f"\ngas of so many payments to fresh accounts in one Safe transaction (0: a cancel): {gas}")


async def test_a_batch_of_which_one_call_fails_is_not_signed_and_the_reason_names_it(world: World) -> None:
    settler, _ = world.settler(OWNERS[0])
    intent = await world.agree(pay(), pay(101 * 10**18), pay())
    with pytest.raises(Reverted, match=r"call 2 of 3: .* has 100000000000000000000"):
        await world.safe.simulate(intent.calls)
    assert not await settler.can_succeed(intent, intent.block)
    with pytest.raises(CallReverted):
        await world.chain.send(OWNERS[0], world.execution(intent))
    assert await world.safe.nonce() == intent.nonce


async def test_calls_that_only_together_are_too_much_are_found_too(world: World) -> None:
    intent = await world.agree(pay(60 * 10**18), pay(60 * 10**18))
    with pytest.raises(Reverted, match="each alone would succeed"):
        await world.safe.simulate(intent.calls)


async def test_a_simulation_is_of_the_agreed_block_and_not_of_the_newest(world: World) -> None:
    settler, _ = world.settler(OWNERS[0])
    intent = await world.agree(pay(50 * 10**18))
    assert await world.chain.balance(world.safe.address) == 100 * 10**18
    await world.mine(1)
    await world.node.set_balance(world.safe.address, Wei(0))
    await world.mine(1)
    assert await settler.can_succeed(intent, intent.block)
    assert not await settler.can_succeed(intent)


# ---- transactions that are stuck


async def test_a_stuck_transaction_is_replaced_at_its_own_nonce_and_under_the_ceiling(world: World) -> None:
    settler, signer = world.settler(OWNERS[0], confirmations=0)
    intent = await world.agree(payment := pay())
    await world.stop_mining()
    await world.push(settler, intent)
    await world.node.rpc("anvil_setNextBlockBaseFeePerGas", hex(10 * GWEI))  # ten times as much, after it was sent
    await world.mine(1)
    await world.push(settler, intent)  # too early to give up on it
    assert await settler.outcome((intent,)) is None
    assert len(signer.signed) == 1
    while await settler.outcome((intent,)) is None:
        world.now += 60
        await world.push(settler, intent)
        await world.mine(1)
        assert len(signer.signed) <= 3
    assert {one.nonce for one in signer.signed} == {signer.signed[0].nonce}
    assert all(one.max_fee_per_gas <= CEILING for one in signer.signed)
    first, second = signer.signed[:2]
    assert second.max_fee_per_gas * 1000 >= first.max_fee_per_gas * 1125
    assert second.max_priority_fee_per_gas * 1000 >= first.max_priority_fee_per_gas * 1125
    assert await world.chain.balance(payment.to) == 10**18


async def test_when_the_answer_to_an_accepted_transaction_is_lost_no_second_one_is_made(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settler, signer = world.settler(OWNERS[0], confirmations=0)
    intent = await world.agree(payment := pay())
    await world.stop_mining()
    send_raw = world.chain.send_raw

    async def lose_the_answer(raw: bytes) -> Hash:
        await send_raw(raw)
        raise Unreachable("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(world.chain, "send_raw", lose_the_answer)
        await world.push(settler, intent)
    for _ in range(3):
        await world.push(settler, intent)
    await world.mine(1)
    await world.push(settler, intent)
    assert len(signer.signed) == 1
    assert await world.chain.transaction_count(OWNERS[0].address) == signer.signed[0].nonce + 1
    assert await world.chain.balance(payment.to) == 10**18


async def test_what_an_earlier_life_of_the_agent_left_pending_is_replaced(world: World) -> None:
    intent = await world.agree(payment := pay())
    await world.stop_mining()
    (first, _), (second, signer) = world.settler(OWNERS[0]), world.settler(OWNERS[0], confirmations=0)
    await world.push(first, intent)
    await world.node.rpc("anvil_setNextBlockBaseFeePerGas", hex(3 * GWEI))
    for _ in range(3):  # its fee is not known any more, so it is tried
        await world.push(second, intent)
    await world.mine(1)
    assert (await second.outcome((intent,))) is not None
    assert await world.chain.balance(payment.to) == 10**18
    assert {one.nonce for one in signer.signed} == {await world.chain.transaction_count(OWNERS[0].address) - 1}


async def test_a_cancel_makes_the_signed_payment_impossible_for_ever(world: World) -> None:
    settler, _ = world.settler(OWNERS[0], confirmations=0)
    intent = await world.agree(payment := pay())
    cancel = world.intent = replace(intent, calls=())
    await world.push(settler, cancel)
    settled = await settler.outcome((intent, cancel), final=True)
    assert settled is not None
    assert settled.which == 1
    with pytest.raises(CallReverted, match="nonce has moved on"):
        await world.chain.send(THIEF, world.execution(intent))
    assert await world.chain.balance(payment.to) == 0


async def test_a_nonce_that_other_owners_used_is_told_as_none_of_ours(world: World) -> None:
    settler, _ = world.settler(OWNERS[0], confirmations=0)
    intent = await world.agree(pay())
    await world.chain.wait(await world.chain.send(OWNERS[3], world.execution(replace(intent, calls=(pay(),)))))
    settled = await settler.outcome((intent,), final=True)
    assert settled is not None
    assert (settled.which, settled.sender) == (-1, OWNERS[3].address)


# ---- attacks


async def test_two_owners_can_make_none_of_the_attacks(world: World) -> None:
    nonce = await world.safe.nonce()
    for attack in attack_calls(world.safe.address, THIEF.address, token=MULTI_SEND):
        with pytest.raises(CallReverted, match="fewer signatures than the Safe's threshold"):
            await world.chain.send(OWNERS[0], world.execution(Intent((attack,), nonce), OWNERS[:2]))
        with pytest.raises(CallReverted, match="fewer signatures than the Safe's threshold"):
            await world.chain.send(OWNERS[0], world.execution(Intent((attack, pay()), nonce), OWNERS[:2]))
    await world.safe.check([owner.address for owner in OWNERS], 3)
    assert await world.chain.balance(world.safe.address) == 100 * 10**18


async def test_the_bybit_attack_a_call_turned_into_a_delegatecall_is_refused(world: World) -> None:
    """Three honest owners sign a plain call; the thief sends their signatures with `operation` flipped to 1."""
    nonce = await world.safe.nonce()
    for attack in attack_calls(world.safe.address, THIEF.address, token=MULTI_SEND):
        honest = Intent((replace(attack, value=Wei(0)),), nonce)
        (to, value, data, operation, *rest), signatures = _opened(world.execution(honest))
        assert operation == 0
        flipped = _abi("Safe").encode("execTransaction", to, value, data, 1, *rest, signatures)
        with pytest.raises(CallReverted, match="not of an owner"):
            await world.chain.send(THIEF, Call(world.safe.address, Wei(0), flipped))
    await world.safe.check([owner.address for owner in OWNERS], 3)
    late = await world.chain.send(THIEF, Call(world.safe.address, Wei(0), flipped), gas=500_000)  # into a block, too
    with pytest.raises(CallReverted, match="GS026"):
        await world.chain.wait(late)


async def test_a_batch_cannot_be_sent_to_another_contract_that_only_looks_like_multisend(world: World) -> None:
    intent = await world.agree(pay(), pay())
    (_, value, data, operation, *rest), signatures = _opened(world.execution(intent))
    assert operation == 1
    turned = _abi("Safe").encode("execTransaction", THIEF.address, value, data, 1, *rest, signatures)
    with pytest.raises(CallReverted, match="not of an owner"):
        await world.chain.send(THIEF, Call(world.safe.address, Wei(0), turned))


async def test_within_a_batch_no_delegatecall_is_possible(world: World) -> None:
    """Even a quorum that signs one cannot: MultiSendCallOnly refuses operation 1 in its list."""
    packed = b"\1" + bytes.fromhex(THIEF.address[2:]) + bytes(64)
    bad = Call(MULTI_SEND, Wei(0), _abi("MultiSendCallOnly").encode("multiSend", packed))
    trial = _abi("Safe").encode("simulateAndRevert", MULTI_SEND, bytes.fromhex(bad.data[2:]))
    with pytest.raises(CallReverted) as refused:
        await world.chain.simulate(Call(world.safe.address, Wei(0), trial), THIEF.address)
    assert int.from_bytes(refused.value.data[:32], "big") == 0


def _opened(call: Call) -> tuple[tuple[Any, ...], bytes]:
    *fields, signatures = _abi("Safe").function("execTransaction", 10).decode_arguments(bytes.fromhex(call.data[10:]))
    return tuple(fields), signatures
