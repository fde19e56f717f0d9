"""The members of a service change with the owners of their Safe: the real Safe 1.4.1 on a real anvil.

Acts, settlers and signing boundaries are the real ones; blocks are made by hand (tests/integration/test_membership.py
has the real chain beneath).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quorate.abci.membership import seat
from quorate.chain import Safe
from quorate.fsm import Period, Settled
from quorate.host.agreed import Agreed
from quorate.host.decision_maker import Limits, QuorateDecisionMaker, SigningMessage
from quorate.host.settler import SafeSettler
from quorate.host.signed import Memory
from quorate.members import Change, Identity, Member
from quorate.rounds.membership import CHANGE_MEMBERS
from quorate.rounds.owners import owners_of
from quorate.units import Address, Wei
from tests.integration.evm_chain import LocalChain, local_chain, rich_wallet
from tests.unit.test_owners import BEGUN, SERVICE

pytestmark = pytest.mark.integration

CHAIN = "chain-1"
WALLETS = {wallet.address: wallet for wallet in map(rich_wallet, range(9))}
ADDRESSES = list(WALLETS)
DEPLOYER = rich_wallet(9)


def member(index: int) -> Member:
    seed = b"%d" % index
    identity = Identity(hashlib.sha256(b"v" + seed).digest(), hashlib.sha256(b"n" + seed).hexdigest()[:40])
    return Member.bind(identity, CHAIN, WALLETS[ADDRESSES[index]])


class Quiet:
    def emit(self, kind: str, **fields: Any) -> None: ...
    def waiting(self, what: str, why: object) -> None:
        print("waiting for", what, why)


class Boundary:
    """A decision maker with its signer, as an agent has them; the thread between is left out."""

    def __init__(self, address: Address, agreed: Agreed, safe: Address, chain_id: int) -> None:
        self.address = address
        account = SimpleNamespace(crypto_objects={"ethereum": SimpleNamespace(entity=WALLETS[address]._account)})
        identity = SimpleNamespace(name="agent", address=address)
        self.handler = QuorateDecisionMaker(identity=identity, wallet=account, config={})
        self.handler.bind(agreed, CHAIN, Limits(safe=safe, chain_id=chain_id), Memory())

    async def sign(self, request: Any) -> bytes:
        message = SigningMessage(request)
        self.handler.handle(message)
        return message.answer.result(timeout=0)


@dataclass
class World:
    """A service with its Safe; the agreed state moves as blocks would move it."""

    local: LocalChain
    safe: Safe
    period: Period
    agreed: Agreed

    def context(self, address: Address, approved: Change | None) -> Any:
        signer: Any = Boundary(address, self.agreed, self.safe.address, self.local.chain.chain_id)
        journal: Any = Quiet()
        settler = SafeSettler(self.local.chain, self.safe.address, signer, journal)
        return SimpleNamespace(
            me=address, approved=approved, settler=settler, sleep=asyncio.sleep, owner_calls=settler.owner_calls
        )

    def block(self, *payloads: tuple[Address, bytes]) -> Settled | None:
        period = self.period
        for sender, payload in payloads:
            period = period.deliver(sender, period.sequence, payload)
        period, settled = period.end_block(period.clock_ms + 1)
        self.period = seat(period)
        self.agreed.commit(self.period)
        return settled

    async def make(self, change: Change) -> list[str]:
        """All agents approve `change` and act until it is made; the rounds' ends."""
        asked = self.block(*((who, self.period.ask(CHANGE_MEMBERS)) for who in self.period.members))
        ends = [f"{asked.round_name} {asked.event}" if asked else "nothing"]
        contexts = {who: self.context(who, change) for who in self.period.members}
        while self.period.round.name != "WorkRound":
            round, state = self.period.round, self.period.state
            payloads = await asyncio.gather(*(round.act(contexts[who], state) for who in contexts))
            settled = self.block(*zip(contexts, map(round.encode, payloads), strict=True))
            ends.append(f"{settled.round_name} {settled.event}" if settled else "nothing")
        return ends

    async def owners(self) -> tuple[set[Address], int]:
        return set(await self.safe.owners()), await self.safe.threshold()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with local_chain(tmp_path) as local:
        four = tuple(sorted(map(member, range(4)), key=lambda one: one.address))
        safe = await Safe.deploy(local.chain, DEPLOYER, [one.address for one in four], 3)
        period = Period.start(SERVICE, [one.address for one in four], replace(BEGUN, roster=four))
        world = World(local, safe, period, Agreed())
        world.block()
        yield world


async def test_a_join_a_replacement_and_a_leave_move_owners_and_threshold_in_one_transaction_each(world: World) -> None:
    async def is_right(nonce: int) -> None:
        n = len(world.period.members)
        assert await world.owners() == (set(world.period.members), 2 * n // 3 + 1)
        assert await world.safe.nonce() == nonce, "one transaction of the Safe a change"
        await world.safe.check(world.period.members, 2 * n // 3 + 1)

    await is_right(0)
    ends = await world.make(Change(join=member(4)))
    assert ends[-1] == "ConfirmOwnersRound DONE"
    assert len(world.period.members) == 5
    await is_right(1)
    await world.make(Change(member(5), world.period.members[2]))
    assert ADDRESSES[5] in world.period.members
    await is_right(2)
    await world.make(Change(leave=world.period.members[0]))
    assert len(world.period.members) == 4
    await is_right(3)


async def test_a_threshold_that_somebody_left_wrong_is_mended_in_the_same_transaction(world: World) -> None:
    """A batch of two calls through MultiSendCallOnly."""
    await world.safe.check(world.period.members, 3)
    lax = await Safe.deploy(world.local.chain, DEPLOYER, world.period.members, 2)
    world.safe = lax
    await world.make(Change(member(4), world.period.members[1]))
    assert await world.owners() == (set(world.period.members), 3)
    assert await lax.nonce() == 1


async def test_one_agent_with_a_safe_of_its_own_takes_a_second_in_and_leaves_it(world: World) -> None:
    alone = member(6)
    safe = await Safe.deploy(world.local.chain, DEPLOYER, [alone.address], 1)
    world.safe, world.period = safe, Period.start(SERVICE, [alone.address], replace(BEGUN, roster=(alone,)))
    world.block()
    await world.make(Change(join=member(7)))
    assert await world.owners() == ({alone.address, ADDRESSES[7]}, 2)
    await world.make(Change(leave=alone.address))
    assert await world.owners() == ({ADDRESSES[7]}, 1)


async def test_a_change_that_the_safe_refuses_leaves_owners_and_members_as_they_are(world: World) -> None:
    """An owner's address that the Safe does not take (its own): each agent finds that before it signs."""
    contexts = [world.context(who, None) for who in world.period.members]
    change = Change(join=replace(member(4), address=world.safe.address))
    come, _ = owners_of(change)
    assert come == world.safe.address
    calls = await contexts[0].owner_calls(change, 4)
    intent = SimpleNamespace(calls=calls)
    assert not await contexts[0].settler.can_succeed(intent)
    assert await world.owners() == (set(world.period.members), 3)
    assert Wei(0) == calls[0].value
