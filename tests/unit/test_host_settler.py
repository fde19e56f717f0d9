"""What an agent's way to the Safe does when its own side fails; the chain's side is in tests/simulation."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from quorate.chain import Fees, SafeTransaction, Wallet
from quorate.errors import ChainError, Unreachable
from quorate.host.decision_maker import ExecutionRequest, NotAgreed, OverLimit
from quorate.host.settler import SafeSettler
from quorate.rounds.settle import Intent, SafeSignature
from quorate.units import Hash, Wei
from tests.evm_world import CHAIN_ID, GWEI, SAFE, Evm, Node, Tx, payment, signed_tx

OWNER = Wallet.from_key(bytes([1]) * 32)
INTENT = Intent((payment(1),), 0, block=99)
DIGEST = SafeTransaction(INTENT.calls, INTENT.nonce).digest(CHAIN_ID, SAFE)
SIGNATURES = {OWNER.address: SafeSignature(Hash("0x" + DIGEST.hex()), "0x" + OWNER.sign_digest(DIGEST).hex())}


class Signer:
    address = OWNER.address

    def __init__(self, evm: Evm) -> None:
        self.evm = evm
        self.refusal: Exception | None = None
        self.asked: list[ExecutionRequest] = []

    async def sign(self, request: Any) -> bytes:
        self.asked.append(request)
        if self.refusal is not None:
            raise self.refusal
        return signed_tx(self.evm, self.address, request, INTENT, DIGEST)


class Journal:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.kinds: list[str] = []

    def waiting(self, what: str, why: object) -> None:
        self.told.append(str(why))

    def emit(self, kind: str, **fields: Any) -> None:
        self.kinds.append(kind)


class Stage:
    def __init__(self, confirmations: int = 0) -> None:
        self.evm = Evm(random.Random(0))
        node: Any = Node(self.evm, lambda: INTENT)
        signer: Any = Signer(self.evm)
        journal: Any = Journal()
        self.node, self.signer, self.journal = node, signer, journal
        self.now = 0.0
        self.settler = SafeSettler(
            node,
            SAFE,
            signer,
            journal,
            confirmations=confirmations,
            ceiling=Wei(10 * GWEI),
            clock=lambda: self.now,
        )

    async def push(self) -> None:
        await self.settler.push(INTENT, SIGNATURES)


@pytest.mark.parametrize("refusal", [OverLimit("gas 2000000; the owner allows 1000000"), Unreachable("no node")])
async def test_an_owner_that_forbids_the_fee_does_not_silence_the_report_of_the_outcome(refusal: Exception) -> None:
    stage = Stage()
    stage.signer.refusal = refusal
    for _ in range(3):
        await stage.push()
    assert stage.journal.told == [str(refusal)]  # told once, though it is polled
    stage.evm.publish(INTENT, DIGEST)
    stage.evm.mine()
    settled = await stage.settler.outcome((INTENT,), final=True)
    assert settled is not None
    assert settled.success


async def test_what_no_quorum_stands_behind_yet_is_raised_so_that_the_act_waits_for_the_commit() -> None:
    stage = Stage()
    stage.signer.refusal = NotAgreed("not decided yet")
    with pytest.raises(NotAgreed):
        await stage.push()


async def test_a_dropped_transaction_is_sent_again_and_not_signed_again() -> None:
    stage = Stage()
    await stage.push()
    stage.evm.pool.clear()
    await stage.push()
    assert len(stage.evm.pool) == len(stage.signer.asked) == 1
    assert stage.journal.kinds == ["sent"]


async def test_a_transaction_that_waits_too_long_is_replaced_with_both_fees_an_eighth_higher() -> None:
    stage = Stage()
    await stage.push()
    for _ in range(3):
        stage.now += 15
        await stage.push()
    fees = [(one.max_fee_per_gas, one.max_priority_fee_per_gas) for one in stage.signer.asked]
    assert {one.nonce for one in stage.signer.asked} == {0}
    for (maximum, priority), (higher, more) in pairwise(fees):
        assert (higher, more) == (maximum + -(-maximum // 8), priority + -(-priority // 8))


async def test_at_the_ceiling_the_last_offer_stands_and_is_repeated() -> None:
    stage = Stage()
    for _ in range(40):
        stage.now += 15
        await stage.push()
    assert max(one.max_fee_per_gas for one in stage.signer.asked) <= 10 * GWEI
    assert "above the ceiling" in stage.journal.told[-1]
    stage.evm.pool.clear()
    await stage.push()
    assert len(stage.evm.pool) == 1


@pytest.mark.parametrize(("waiting_gwei", "is_replaced"), [(6, True), (9.5, False)])
async def test_what_an_earlier_life_left_pending_is_replaced_or_outlived(
    waiting_gwei: float, is_replaced: bool
) -> None:
    stage = Stage()
    stage.evm.base_fee = GWEI // 10
    fees = Fees(Wei(round(waiting_gwei * GWEI)), Wei(GWEI))
    old = Tx(OWNER.address, 0, fees, Intent((), 7), bytes(32), Hash("0x" + "12" * 32))
    stage.evm.pool[OWNER.address, 0] = old
    for _ in range(10):
        await stage.push()
    assert (stage.evm.pool[OWNER.address, 0] != old) == is_replaced
    stage.evm.pool.clear()
    for _ in range(2):
        await stage.push()
    assert len(stage.evm.pool) == 1
    assert max(one.max_fee_per_gas for one in stage.signer.asked) <= 10 * GWEI


async def test_where_gas_costs_more_than_the_ceiling_nothing_is_sent() -> None:
    stage = Stage()
    stage.evm.base_fee = 11 * GWEI
    await stage.push()
    assert stage.signer.asked == []
    assert "the owner allows 10000000000" in stage.journal.told[0]


async def test_a_nonce_that_is_younger_than_the_depth_is_not_built_upon() -> None:
    stage = Stage(confirmations=3)
    stage.evm.publish(INTENT, DIGEST)
    stage.evm.mine()
    with pytest.raises(ChainError, match="younger than 3 blocks"):
        await stage.settler.next_nonce()
    for _ in range(3):
        stage.evm.mine()
    assert await stage.settler.next_nonce() == (1, stage.evm.head)


async def test_an_outcome_is_mined_in_a_block_before_the_one_at_which_it_was_agreed() -> None:
    """A reorg rewound the numbers: it is searched for behind the agreed block, too."""
    stage = Stage()
    stage.evm.reorg(40, keeps=0)
    del stage.evm.blocks[61:]
    stage.evm.publish(INTENT, DIGEST)
    stage.evm.mine()
    settled = await stage.settler.outcome((INTENT,))
    assert settled is not None
    assert settled.block == 61 < INTENT.block


async def test_where_the_node_shows_a_used_nonce_and_no_event_nothing_is_guessed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind one URL there are many nodes, and one of them lags."""
    stage = Stage()
    stage.evm.publish(INTENT, DIGEST)
    stage.evm.mine()
    logs = stage.node.logs

    async def nothing(*_: Any, **__: Any) -> tuple[Any, ...]:
        return ()

    stage.node.logs = nothing
    assert await stage.settler.outcome((INTENT,)) is None
    stage.node.logs = logs
    assert await stage.settler.outcome((INTENT,)) is not None


async def test_while_an_intent_is_open_the_chain_is_asked_two_small_questions() -> None:
    asked: list[str] = []
    stage = Stage()
    stage.node.watch = asked.append
    assert await stage.settler.outcome((INTENT,)) is None
    assert asked == ["block_number", "nonce"]
