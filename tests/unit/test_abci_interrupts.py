"""An interrupt goes through the chain's side of the machine as any payload does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from quorate import BACK, ROUND_TIMEOUT, Address, Bps, Context, Interrupt, Service, agree, median, same
from quorate.abci.machine import Block, Replica, apply_block, opening_of, payload_for
from quorate.abci.payload import SignedPayload
from quorate.abci.transaction import Kind, Transaction
from quorate.errors import ConfigError
from quorate.fsm import Period, Settled, State, codec
from quorate.rounds import pause
from tests.chain_of_agents.services import Counted, add
from tests.unit.rounds.test_rules import Poll
from tests.unit.scripted_consensus import Consensus

A, B, C, D = MEMBERS = tuple(Address(f"0x{i:040d}") for i in range(1, 5))


@agree(median("number"), timeout_s=5)
async def look(ctx: Context, state: Poll) -> Bps:
    return Bps(1)


@agree(same("word"), timeout_s=5)
async def halted(ctx: Context, state: Poll) -> str:
    return ""


HALT = Interrupt("HALT", halted)
SERVICE = Service("halting", state=Poll, start=look, otherwise=look, interrupts=(HALT,), transitions={
    (look, "DONE"): pause, (pause, "DONE"): look, (halted, "DONE"): BACK, (halted, "NO_MAJORITY"): halted,
    (halted, ROUND_TIMEOUT): halted,
})  # fmt: skip


def sent(period: Period, sender: Address, body: bytes) -> Transaction:
    payload: SignedPayload = payload_for("chain", period, body).signed(sender, b"")
    return Transaction(Kind.PAYLOAD, (payload,))


def test_asks_are_news_and_change_nothing_that_payloads_are_bound_to() -> None:
    first = apply_block(Replica.start(Period.start(SERVICE, MEMBERS)), Block(1, 1_000, ())).replica
    opening = opening_of(first.period)
    asks = tuple(sent(first.period, who, first.period.ask("HALT")) for who in (A, B))
    applied = apply_block(first, Block(2, 2_000, asks))
    assert applied.accepted == (True, True)
    assert applied.replica.hot == 2
    assert opening_of(applied.replica.period) == opening == applied.replica.opening
    assert opening_of(replace(first.period, state=State())) != opening


def test_a_quorum_of_asks_leaves_the_round_and_its_end_opens_the_same_round_with_another_opening() -> None:
    first = apply_block(Replica.start(Period.start(SERVICE, MEMBERS)), Block(1, 1_000, ())).replica
    asks = tuple(sent(first.period, who, first.period.ask("HALT")) for who in (A, B, C))
    halting = apply_block(first, Block(2, 2_000, asks))
    assert halting.settled == Settled("LookRound", "HALT", 1)
    again = Replica.decode(SERVICE, halting.replica.encode())
    assert again == halting.replica
    words = tuple(sent(again.period, who, codec.encode("go")) for who in (A, B, C))
    back = apply_block(again, Block(3, 3_000, words)).replica
    assert back.period.round is look
    assert back.opening != first.opening


# ---- how a request travels


@agree(same("value"), timeout_s=600)
async def stopped(ctx: Context, state: Counted) -> int:
    return 0


STOP = Interrupt("STOP", stopped)
STOPPING = Service("stopping", state=Counted, start=add, otherwise=add, interrupts=(STOP,), transitions={
    (add, "DONE"): add, (stopped, "DONE"): BACK,
})  # fmt: skip


@pytest.fixture(params=[True, False], ids=["busy", "asleep"])
async def chain(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Consensus]:
    chain = Consensus(tmp_path, is_fast=request.param, service=STOPPING)
    await chain.init()
    for _ in range(5):
        await chain.block()
    assert chain.apps[0].is_asleep is not request.param
    yield chain
    await chain.close()


async def test_a_quorum_of_requests_interrupts_a_chain_at_work_and_one_that_sleeps(chain: Consensus) -> None:
    for agent in chain.agents[:3]:
        agent.wants = "STOP"
        agent.ask(agent.app.period, "STOP")
    await asyncio.sleep(0.02)
    if chain.is_fast:
        for pool in chain.mempools:  # where rounds take one block, a transaction comes too late for its round
            pool.clear()
    else:
        chain.mempools[0] = [tx for pool in chain.mempools for tx in pool]  # gossip
    inside = []
    for _ in range(3):
        await chain.block()
        inside.append(chain.apps[3].period.interrupted)
        for agent in chain.agents:
            agent.wants = "" if inside[-1] else agent.wants
    assert (("STOP", "AddRound"),) in inside


async def test_an_agent_that_asks_in_vain_still_does_its_part(chain: Consensus) -> None:
    """Two of four: the request takes the vote extension, and the payload follows as a transaction."""
    for agent in chain.agents[:2]:
        agent.wants = "STOP"
        agent.ask(agent.app.period, "STOP")
        if not chain.is_fast:
            agent.answer(agent.app.period)
    if not chain.is_fast:
        chain.agents[2].answer(chain.apps[2].period)
    before = chain.apps[3].period.sequence
    for _ in range(6):
        await asyncio.sleep(0.01)
        chain.mempools[0] = [tx for pool in chain.mempools for tx in pool]
        await chain.block()
        assert chain.apps[3].period.interrupted == ()
    assert chain.apps[3].period.sequence > before
    assert {who for _, who in chain.apps[3].period.asks} == {agent.key.address for agent in chain.agents[:2]}


async def test_a_request_that_stands_is_not_sent_again(chain: Consensus) -> None:
    agent = chain.agents[1]
    agent.ask(agent.app.period, "STOP")
    agent.ask(agent.app.period, "STOP")
    await asyncio.sleep(0.02)
    assert len(chain.mempools[1]) == 1
    chain.mempools[0] = chain.mempools[1]
    for _ in range(3):
        await chain.block()
    agent.ask(agent.app.period, "STOP")
    await asyncio.sleep(0.02)
    assert chain.mempools[1] == []


async def test_only_an_agents_own_request_can_be_sent(chain: Consensus) -> None:
    with pytest.raises(ConfigError, match="did not sign"):
        chain.apps[0].ask(chain.agents[1].payload(chain.apps[1].period))
