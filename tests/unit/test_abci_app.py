"""The application's handlers, called as CometBFT calls them, by a consensus that fits on a page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from quorate.abci import (
    ServiceApp,
    Store,
    UnsignedPayload,
)
from quorate.abci import opening_of as opening
from quorate.abci.machine import tick_for
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.abci.transaction import Kind, encode_bundle, encode_single
from quorate.errors import ConfigError
from quorate.fsm import Period
from tests.chain_of_agents.keys import Key
from tests.chain_of_agents.services import counting
from tests.unit.scripted_consensus import ACCEPT, REJECT, Consensus


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate.abci.app._QUIET_S", 0.02)


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[Consensus]:
    chain = Consensus(tmp_path)
    await chain.init()
    yield chain
    await chain.close()


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[Consensus]:
    """Acts answer only when the test says so."""
    chain = Consensus(tmp_path, is_fast=False)
    await chain.init()
    yield chain
    await chain.close()


async def test_fast_acts_take_one_block_a_round_by_vote_extensions(chain: Consensus) -> None:
    for _ in range(10):
        await chain.block()
    assert chain.apps[0].period.sequence >= 9
    assert {via for sequence, via in chain.agents[0].ways if sequence > 1} == {"extension"}
    assert chain.agents[0].settles[-3:] == [(s, s + 1) for s in (7, 8, 9)]


async def test_a_late_payload_goes_as_a_transaction_and_counts(slow: Consensus) -> None:
    for _ in range(5):
        await slow.block()
    assert slow.apps[0].is_asleep
    for agent in slow.agents[:3]:
        agent.answer(agent.app.period)
    await asyncio.sleep(0.02)
    assert [len(pool) for pool in slow.mempools] == [1, 1, 1, 0]
    slow.mempools[0] = [tx for pool in slow.mempools for tx in pool]  # gossip
    await slow.block()
    assert slow.apps[3].period.sequence == 2
    assert slow.mempools[0] == [], "a stale payload in a mempool would keep the chain awake (trap 6)"


async def test_the_block_that_wakes_the_chain_holds_the_quorum_that_is_under_way(
    slow: Consensus, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        await slow.block()
    monkeypatch.setattr("quorate.abci.app._GATHER_S", 30)
    payloads = [agent.payload(agent.app.period) for agent in slow.agents]
    txs = [encode_single(Kind.PAYLOAD, payload) for payload in payloads]
    slow.mempools[0] = [txs[0]]
    proposing = asyncio.ensure_future(slow.propose())
    for tx in txs[1:3]:
        await asyncio.sleep(0.01)
        assert not proposing.done(), "no quorum is there yet"
        await slow.apps[0].check_tx(pb.RequestCheckTx(tx=tx))
    proposed = await asyncio.wait_for(proposing, 10)
    assert proposed == txs[:3]
    slow.mempools[0] = []
    await slow.block(proposed)
    assert {app.period.sequence for app in slow.apps} == {2}
    assert await slow.propose() == [], "what arrived for a round that is over is forgotten"


async def test_a_payload_alone_wakes_the_chain_after_a_moment(slow: Consensus, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        await slow.block()
    monkeypatch.setattr("quorate.abci.app._GATHER_S", 0.01)
    slow.mempools[0] = [encode_single(Kind.PAYLOAD, slow.agents[0].payload(slow.apps[0].period))]
    assert await asyncio.wait_for(slow.propose(), 10) == slow.mempools[0]


async def test_a_tick_wakes_the_chain_at_once(slow: Consensus, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        await slow.block()
    monkeypatch.setattr("quorate.abci.app._GATHER_S", 30)
    agent = slow.agents[0]
    tick = tick_for("chain-1", agent.app.period, 0)
    signed = tick.signed(agent.key.address, await agent.sign_tick(tick))
    slow.mempools[0] = [encode_single(Kind.TICK, signed)]
    assert await asyncio.wait_for(slow.propose(), 10) == slow.mempools[0]


async def test_blocks_without_news_leave_the_app_hash_alone(slow: Consensus) -> None:
    hashes = [await slow.block() for _ in range(5)]
    assert len(set(hashes[2:])) == 1


async def test_a_restarted_application_replays_to_the_same_state(chain: Consensus) -> None:
    """Killed before Commit it gets the block again; killed after it, it has the state (trap 5)."""
    for _ in range(4):
        await chain.block()
    before = chain.apps[3].height
    await chain.block(without=(3,))
    request = chain.last_request
    await chain.apps[3].finalize_block(request)  # ... and killed here
    app = await chain.restart(3)
    info = await app.info(pb.RequestInfo())
    assert (info.last_block_height, info.last_block_app_hash) == (before, chain.hashes[-2])
    assert await chain.decide(app) == chain.hashes[-1]
    again = await chain.restart(3)
    info = await again.info(pb.RequestInfo())
    assert (info.last_block_height, info.last_block_app_hash) == (before + 1, chain.hashes[-1])
    await chain.block()


async def test_a_commit_without_its_block_stops_instead_of_diverging(chain: Consensus) -> None:
    await chain.block()
    with pytest.raises(ConfigError, match="not finalized"):
        await chain.apps[0].commit(pb.RequestCommit())


async def test_nobody_acts_in_rounds_long_gone_while_an_agent_catches_up(chain: Consensus) -> None:
    requests = []
    for _ in range(8):
        await chain.block(without=(3,))
        requests.append(chain.last_request)
    late, agent = chain.apps[3], chain.agents[3]
    agent.opens.clear()
    for request in requests:
        chain.last_request = request
        await chain.decide(late)
    assert agent.opens == []
    await asyncio.sleep(0.1)
    assert agent.opens == [(late.period.sequence, True)]
    assert late.app_hash == chain.hashes[-1]


async def test_acts_start_with_the_proposal_and_are_told_when_it_is_decided(chain: Consensus) -> None:
    for _ in range(4):
        await chain.block()
    opens = chain.agents[1].opens
    assert (3, False) in opens
    assert (3, True) in opens
    assert opens.index((3, False)) < opens.index((3, True))


async def test_a_proposal_alone_starts_the_act_of_the_round_that_it_would_open(slow: Consensus) -> None:
    for _ in range(3):
        await slow.block()
    payloads = [agent.payload(slow.apps[0].period) for agent in slow.agents]
    assert await slow.judge(1, [encode_bundle(payloads)]) == ACCEPT
    assert slow.agents[1].opens[-1] == (2, False)


async def test_a_payload_that_counted_does_not_ride_again(slow: Consensus) -> None:
    for _ in range(3):
        await slow.block()
    slow.agents[0].answer(slow.apps[0].period)
    await asyncio.sleep(0.01)
    await slow.block()
    assert slow.agents[0].key.address in slow.apps[0].period.votes
    await slow.block()
    assert slow.extensions[0] == b""


async def test_every_honest_proposal_is_accepted_by_every_honest_node(slow: Consensus) -> None:
    """Requirement 3, with payloads in time, late, and of rounds ahead in the mempools."""
    for step in range(12):
        agent = slow.agents[step % 4]
        agent.answer(agent.app.period)
        await asyncio.sleep(0.005)
        slow.mempools = [sorted({tx for pool in slow.mempools for tx in pool}) for _ in slow.mempools]
        for proposer in range(4):
            txs = await slow.propose(proposer)
            assert [await slow.judge(i, txs) for i in range(4)] == [ACCEPT] * 4
        await slow.block()
    assert slow.apps[0].period.sequence > 2


async def test_malformed_forged_foreign_and_stale_proposals_are_refused(slow: Consensus) -> None:
    for _ in range(3):
        await slow.block()
    period = slow.apps[0].period
    payloads = [agent.payload(period) for agent in slow.agents]
    forged = UnsignedPayload("chain-1", 0, 1, payloads[0].round, opening(period), b"1")
    good = encode_bundle(payloads[:3])
    assert await slow.judge(1, [good]) == ACCEPT
    for txs in (
        [b""],
        [b"\x01"],
        [b"\x01garbage"],
        [bytes([7]) + good[1:]],
        [good, good],
        [encode_single(Kind.PAYLOAD, payloads[3]), good],
        [encode_bundle(payloads[2::-1])],
        [encode_single(Kind.PAYLOAD, forged.signed(payloads[0].sender, payloads[0].signature[::-1]))],
        [encode_single(Kind.PAYLOAD, slow.agents[0].payload(_other_chain(period)))],
    ):
        assert await slow.judge(1, txs) == REJECT
    await slow.block([good])
    assert await slow.judge(1, [good]) == REJECT, "the same bytes again"


def _other_chain(period: Period) -> Period:
    """The same round, reached over other blocks."""
    return replace(period, state=replace(period.state, value=77))  # type: ignore[call-arg]  # the test service's state


async def test_a_vote_extension_is_judged_by_its_bytes_alone(slow: Consensus) -> None:
    for _ in range(3):
        await slow.block()
    period = slow.apps[0].period
    mine = slow.agents[0].payload(period).encode()
    assert await slow.verify(0, b"") == ACCEPT
    assert await slow.verify(0, mine) == ACCEPT
    assert await slow.verify(1, mine) == REJECT, "another member's payload"
    assert await slow.verify(0, b"junk") == REJECT
    assert await slow.verify(0, mine + bytes(9000)) == REJECT
    await slow.block([encode_bundle([agent.payload(period) for agent in slow.agents])])
    assert await slow.verify(0, mine) == ACCEPT, "stale, but no node may judge by its own state"


async def test_the_mempool_is_strict_on_the_past_and_lenient_by_two_rounds_on_the_future(slow: Consensus) -> None:
    for _ in range(3):
        await slow.block()
    app, agent, period = slow.apps[0], slow.agents[1], slow.apps[0].period
    await slow.block([encode_bundle([a.payload(period) for a in slow.agents[:3]])])

    async def check(sequence: int) -> int:
        payload = agent.payload(replace(app.period, sequence=sequence))
        code: int = (await app.check_tx(pb.RequestCheckTx(tx=encode_single(Kind.PAYLOAD, payload)))).code
        return code

    assert [await check(sequence) for sequence in (1, 2, 3, 4, 5)] == [1, 0, 0, 0, 1]


async def test_only_nodes_of_the_genesis_may_connect(chain: Consensus) -> None:
    async def code(path: str) -> int:
        found: int = (await chain.apps[0].query(pb.RequestQuery(path=path))).code
        return found

    assert await code(f"/p2p/filter/id/{chain.genesis.members[1].node_id}") == 0
    assert await code("/p2p/filter/id/" + "ab" * 20) == 1
    assert await code("/p2p/filter/addr/127.0.0.1:1") == 0
    assert await code("/status") == 0
    assert await code("/else") == 1


async def test_a_node_with_another_genesis_is_refused_at_the_first_block(tmp_path: Path) -> None:
    chain = Consensus(tmp_path)
    for change in ("chain_id", "app_state_bytes", "power"):
        request = chain.init_request()
        if change == "power":
            request.validators[0].power = 1
        else:
            setattr(request, change, {"chain_id": "chain-2", "app_state_bytes": b"{}"}[change])
        with pytest.raises(ConfigError, match="genesis"):
            await chain.apps[0].init_chain(request)
    await chain.close()


async def test_only_an_agents_own_payload_can_be_offered_and_a_late_one_is_dropped(slow: Consensus) -> None:
    for _ in range(3):
        await slow.block()
    old = slow.apps[0].period
    with pytest.raises(ConfigError, match="did not sign"):
        slow.apps[0].offer(slow.agents[1].payload(old))
    await slow.block([encode_bundle([agent.payload(old) for agent in slow.agents])])
    slow.agents[0].answer(old)
    await asyncio.sleep(0.01)
    assert slow.mempools[0] == []


async def test_whoever_is_no_member_cannot_start(chain: Consensus) -> None:
    stranger = Key("stranger")
    store = Store(chain.homes[0] / "other.db", "chain-1")
    with pytest.raises(ConfigError, match="no member of chain-1"):
        ServiceApp(counting, chain.genesis, stranger.address, store, chain.agents[0])
    store.close()


async def test_a_fault_of_the_agent_beside_a_handler_reaches_the_host(tmp_path: Path) -> None:
    chain = Consensus(tmp_path, n=1)

    def fail(period: Period, committed: bool) -> None:
        raise RuntimeError("the agent failed")

    chain.agents[0].opened = fail  # type: ignore[method-assign]  # the fault of this test
    await chain.init()
    assert str(await asyncio.wait_for(chain.apps[0].failed, 1)) == "the agent failed"
    await chain.apps[0].stop()
