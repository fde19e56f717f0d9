"""The whole on-chain life of a vote, on a real anvil with the real Safe 1.4.1 and OpenZeppelin's Governor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dao.deploy import Dao, deploy, load_settings
from quorate.chain import (
    FOR,
    CallReverted,
    Chain,
    Governor,
    ProposalState,
    Safe,
    SafeTransaction,
    Token,
    Wallet,
    compute_proposal_id,
    decode_actions,
)
from quorate.localnet.anvil import Anvil
from quorate.units import Address, Call, Wei
from tests.integration.evm_chain import ROOT, local_chain, rich_wallet

pytestmark = pytest.mark.integration

ONE = 10**18
RECIPIENT = Address("0x00000000000000000000000000000000DeaDBeef")
OWNERS = [rich_wallet(i) for i in range(4)]
DEPLOYER, HOLDER = rich_wallet(5), rich_wallet(6)


@dataclass(frozen=True)
class World:
    """A DAO on a chain, and a Safe of four owners to whom the holder has delegated."""

    chain: Chain
    node: Anvil
    dao: Dao
    safe: Safe

    @property
    def token(self) -> Token:
        return Token(self.chain, self.dao.token)

    @property
    def governor(self) -> Governor:
        return Governor(self.chain, self.dao.governor)

    async def send(self, wallet: Wallet, call: Call) -> int:
        """Sends, waits, and returns the gas used."""
        return (await self.chain.wait(await self.chain.send(wallet, call))).gas_used

    def signed(self, transaction: SafeTransaction, owners: Sequence[Wallet]) -> Call:
        digest = self.safe.digest(transaction)
        return self.safe.execution(transaction, {owner.address: owner.sign_digest(digest) for owner in owners})


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with local_chain(tmp_path) as local:
        settings = load_settings(
            ROOT / "dao/settings.yaml", voting_delay_s=1, voting_period_s=3600, proposal_threshold=0
        )
        allocations = {HOLDER.address: Wei(1000 * ONE)}
        dao = await deploy(local.chain, DEPLOYER, allocations, Wei(500 * ONE), settings)
        safe = await Safe.deploy(local.chain, DEPLOYER, [owner.address for owner in OWNERS], 3)
        world = World(local.chain, local.node, dao, safe)
        await world.send(HOLDER, world.token.delegate(safe.address))
        yield world


async def _propose(world: World, calls: Sequence[Call], description: str = "Pay for the audit") -> int:
    """Makes the proposal and moves time until votes count; returns its id."""
    await world.send(HOLDER, world.governor.propose(calls, description))
    await world.node.move_time(2)
    return (await world.governor.proposals(world.dao.block))[-1].id


async def _vote_by_safe(world: World, proposal_id: int, owners: Sequence[Wallet]) -> Call:
    vote = world.governor.cast_vote_with_reason(proposal_id, FOR, "it pays for what the policy welcomes")
    return world.signed(world.safe.transaction(vote, await world.safe.nonce()), owners)


async def test_the_safe_votes_and_the_treasury_pays(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    payment = [world.token.transfer(RECIPIENT, Wei(10 * ONE))]
    proposal_id = await _propose(world, payment)
    assert proposal_id == compute_proposal_id(payment, "Pay for the audit")
    proposal = await world.governor.proposal(proposal_id, world.dao.block)
    assert (proposal.calls, proposal.proposer) == (tuple(payment), HOLDER.address)
    assert decode_actions(proposal.calls, world.dao.book())[0].text == f"send 10 QRT from the treasury to {RECIPIENT}"
    assert await world.governor.state(proposal_id) == ProposalState.ACTIVE
    assert await world.governor.weight_of(world.safe.address, proposal.start) == 1000 * ONE

    gas = {"vote by 3 of 4": await world.send(OWNERS[0], await _vote_by_safe(world, proposal_id, OWNERS[1:]))}
    assert await world.governor.has_voted(proposal_id, world.safe.address)
    assert (await world.governor.votes(proposal_id)).for_ == 1000 * ONE
    (vote,) = await world.governor.votes_cast(world.dao.block, voter=world.safe.address)
    assert (vote.proposal_id, vote.support, vote.reason) == (proposal_id, FOR, "it pays for what the policy welcomes")
    assert await world.governor.votes_cast(world.dao.block, voter=HOLDER.address) == ()

    await world.node.move_time_to(proposal.end + 1)
    assert await world.governor.state(proposal_id) == ProposalState.SUCCEEDED
    gas["queue"] = await world.send(HOLDER, world.governor.queue(payment, proposal.description))
    with pytest.raises(CallReverted, match="TimelockUnexpectedOperationState"):
        await world.chain.send(HOLDER, world.governor.execute(payment, proposal.description))
    await world.node.move_time_to(await world.governor.eta(proposal_id))
    gas["execute"] = await world.send(HOLDER, world.governor.execute(payment, proposal.description))

    assert await world.governor.state(proposal_id) == ProposalState.EXECUTED
    assert await world.token.balance_of(RECIPIENT) == 10 * ONE
    assert await world.token.balance_of(world.dao.treasury) == 490 * ONE
    with capsys.disabled():
        print(f"\ngas: {gas}")


async def test_the_same_safe_transaction_sent_twice_votes_once(world: World) -> None:
    proposal_id = await _propose(world, [world.token.transfer(RECIPIENT, Wei(ONE))])
    nonce = await world.safe.nonce()
    transaction = world.safe.transaction(world.governor.cast_vote_with_reason(proposal_id, FOR, ""), nonce)
    call = world.signed(transaction, OWNERS[:3])
    digest = world.safe.digest(transaction)
    assert await world.safe.outcome(digest, world.dao.block) is None

    sent = await world.chain.send(OWNERS[0], call)
    receipt = await world.chain.wait(sent)
    with pytest.raises(CallReverted, match="nonce has moved on, because this transaction") as refused:
        await world.chain.send(OWNERS[1], call)
    assert refused.value.arguments == {"message": "GS026"}

    outcome = await world.safe.outcome(digest, world.dao.block)
    assert outcome is not None
    assert (outcome.tx, outcome.block, outcome.success) == (sent, receipt.block, True)
    assert len(await world.governor.votes_cast(world.dao.block)) == 1
    assert await world.safe.nonce() == nonce + 1


async def test_a_second_send_that_does_not_ask_first_is_mined_and_changes_nothing(world: World) -> None:
    """The keeper was thought dead and was not: both transactions get into a block."""
    proposal_id = await _propose(world, [world.token.transfer(RECIPIENT, Wei(ONE))])
    call = await _vote_by_safe(world, proposal_id, OWNERS[:3])
    await world.chain.wait(await world.chain.send(OWNERS[0], call))
    late = await world.chain.send(OWNERS[1], call, gas=300_000)
    with pytest.raises(CallReverted, match="GS026") as refused:
        await world.chain.wait(late)
    assert refused.value.transaction == late
    assert len(await world.governor.votes_cast(world.dao.block)) == 1


async def test_two_signatures_of_three_are_too_few(world: World) -> None:
    proposal_id = await _propose(world, [world.token.transfer(RECIPIENT, Wei(ONE))])
    with pytest.raises(CallReverted, match="fewer signatures than the Safe's threshold"):
        await world.chain.send(OWNERS[0], await _vote_by_safe(world, proposal_id, OWNERS[:2]))


async def test_a_stranger_among_the_signers_is_refused_by_the_contract(world: World) -> None:
    proposal_id = await _propose(world, [world.token.transfer(RECIPIENT, Wei(ONE))])
    with pytest.raises(CallReverted, match="a signature is not of an owner"):
        await world.chain.send(OWNERS[0], await _vote_by_safe(world, proposal_id, [*OWNERS[:2], HOLDER]))


async def test_a_call_that_fails_leaves_the_nonce_free_and_simulation_says_why(world: World) -> None:
    proposal_id = await _propose(world, [world.token.transfer(RECIPIENT, Wei(ONE))])
    await world.send(OWNERS[0], await _vote_by_safe(world, proposal_id, OWNERS[:3]))
    again = world.governor.cast_vote_with_reason(proposal_id, FOR, "")
    nonce = await world.safe.nonce()
    with pytest.raises(CallReverted, match="GS013"):
        await world.chain.send(OWNERS[0], world.signed(world.safe.transaction(again, nonce), OWNERS[:3]))
    with pytest.raises(CallReverted, match="GovernorAlreadyCastVote") as refused:
        await world.safe.simulate(again)
    assert refused.value.arguments == {"voter": world.safe.address}
    assert await world.safe.nonce() == nonce


async def test_a_call_with_gas_of_its_own_that_fails_uses_the_nonce_up(world: World) -> None:
    transaction = world.safe.transaction(world.governor.cast_vote(1, FOR), await world.safe.nonce(), gas=100_000)
    await world.send(OWNERS[0], world.signed(transaction, OWNERS[:3]))
    outcome = await world.safe.outcome(world.safe.digest(transaction), world.dao.block)
    assert outcome is not None
    assert not outcome.success


async def test_a_description_that_is_no_text_does_not_hide_the_other_proposals(world: World) -> None:
    first = await _propose(world, [world.token.transfer(RECIPIENT, Wei(1))], "MARK")
    raw = world.governor.propose([world.token.transfer(RECIPIENT, Wei(2))], "MARK")
    await world.send(HOLDER, Call(raw.to, raw.value, raw.data.replace(b"MARK".hex(), "fffefdfc")))
    found = await world.governor.proposals(world.dao.block)
    assert found[0].id == first
    assert found[1].description == "\ufffd" * 4
