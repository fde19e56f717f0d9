"""Four agents on four real CometBFT nodes, each agent a process of its own that can be killed."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from quorate.abci import Application, Node, SignedPayload, UnsignedPayload, serve
from quorate.abci.transaction import Kind, encode_bundle, encode_single
from tests.chain_of_agents.keys import Key
from tests.chain_of_agents.network import ChainOfAgents

pytestmark = pytest.mark.integration


@asynccontextmanager
async def _node(chain: ChainOfAgents, index: int) -> AsyncIterator[Node]:
    node = chain.node(index)
    try:
        yield node
    finally:
        await node.close_client()


async def test_rounds_settle_one_block_each_and_all_agents_hold_the_same() -> None:
    async with ChainOfAgents("counting") as chain:
        chain.start()
        await chain.until_settled(10)
        height, settled = chain.height(0), chain.settled(0)
        await chain.until_settled(settled + 40, 0)
        blocks, rounds = chain.height(0) - height, chain.settled(0) - settled
        assert blocks <= 1.5 * rounds, f"{blocks} blocks for {rounds} rounds: payloads do not ride on vote extensions"
        assert chain.assert_equal_digests() > 50


async def test_all_killed_while_the_chain_slept_go_on_where_they_were() -> None:
    async with ChainOfAgents("on_demand") as chain:
        chain.start()
        chain.allow(3)
        await chain.until_settled(3)
        await asyncio.sleep(1)
        await chain.kill(0, 1, 2, 3)
        chain.start()
        await asyncio.sleep(1)
        chain.allow(4)
        await chain.until_settled(4, timeout_s=40)
        assert all(chain.last(index, "loaded")["height"] > 0 for index in range(4))
        assert chain.assert_equal_digests() > 5


async def test_an_agent_that_lost_all_but_its_keys_and_signing_state_syncs_to_the_same_state() -> None:
    async with ChainOfAgents("counting", act_s=0.05) as chain:
        chain.start()
        await chain.until_settled(20)
        await chain.wipe(0)
        chain.start(0)
        await chain.until_settled(chain.settled(1) + 10, 0, timeout_s=60)
        assert chain.last(0, "loaded")["height"] == 0
        assert chain.assert_equal_digests() > 20


async def test_an_agent_that_lost_its_state_takes_a_snapshot_where_its_peers_have_pruned() -> None:
    """While the chain sleeps: it has no new block to prove its last snapshot with."""
    async with ChainOfAgents("on_demand", blocks=90, snapshot_every=10, snapshots=7) as chain:
        chain.start()
        chain.allow(10**6)
        await chain.until(lambda: chain.height(1) > 120, 60, "the chain is longer than what is kept")
        chain.allow(0)
        await asyncio.sleep(1)
        await chain.wipe(0)
        chain.start(0)
        took = await chain.until(
            lambda: bool(now := _in_this_life(chain, 0)) and now[-1] >= chain.height(1) - 2, 30, "agent 0 is level"
        )
        print(f"level after {took:.1f} s, at {chain.height(0)}")
        async with _node(chain, 1) as node:
            assert await node.first_block() > 20, "the peers still have all blocks"
        assert _in_this_life(chain, 0)[0] > 50, "it began with the first block, not with a snapshot"
        chain.allow(10**6)
        await chain.until_settled(chain.settled(1) + 5, 0)
        assert chain.assert_equal_digests() > 50


async def test_an_agent_killed_when_it_had_taken_a_snapshot_begins_anew() -> None:
    """CometBFT has no note of the snapshot yet, and would not start beside an application that is ahead of it."""
    async with ChainOfAgents("on_demand", blocks=90, snapshot_every=10, snapshots=7) as chain:
        chain.start()
        chain.allow(10**6)
        await chain.until(lambda: chain.height(1) > 100, 60, "the chain is longer than its snapshots reach back")
        chain.allow(0)
        await asyncio.sleep(1)
        await chain.wipe(0)
        chain.configure(0, crash_in="adopted", crash_at=1)
        chain.start(0)
        await chain.until(lambda: chain.processes[0].poll() is not None, 60, "agent 0 took a snapshot and died")
        chain.configure(0, crash_in="", crash_at=0)
        chain.start(0)
        await chain.until(
            lambda: bool(now := _in_this_life(chain, 0)) and now[-1] >= chain.height(1) - 2, 60, "agent 0 is level"
        )
        chain.allow(10**6)
        await chain.until_settled(chain.settled(1) + 5, 0)
        assert chain.assert_equal_digests() > 20


def _in_this_life(chain: ChainOfAgents, index: int) -> list[int]:
    """The heights that an agent has committed since its second start."""
    started = [event["t"] for event in chain.events(index, "loaded")][1:]
    return [event["height"] for event in chain.events(index, "commit") if started and event["t"] > started[-1]]


async def test_an_idle_chain_sleeps_and_any_agent_wakes_it() -> None:
    async with ChainOfAgents("on_demand") as chain:
        chain.start()
        chain.allow(2)
        await chain.until_settled(2)
        for value in (3, 4):
            await asyncio.sleep(1.5)
            heights = [chain.height(index) for index in range(4)]
            assert len(set(heights)) == 1
            await asyncio.sleep(2)
            assert [chain.height(index) for index in range(4)] == heights, "blocks were made while nothing happened"
            assert chain.last(0, "commit")["asleep"]
            start = time.time()
            chain.allow(value)
            await chain.until_settled(value)
            took = max(chain.last(index, "settled")["t"] for index in range(4)) - start
            assert took < 2, f"waking took {took:.2f} s"
        assert chain.assert_equal_digests() > 5


async def test_a_sleeping_chain_wakes_though_one_agent_and_so_each_fourth_proposer_is_dead() -> None:
    async with ChainOfAgents("on_demand") as chain:
        chain.start()
        chain.allow(1)
        await chain.until_settled(1)
        await chain.kill(1)
        for value in (2, 3, 4, 5):
            await asyncio.sleep(0.7)
            chain.allow(value)
            took = await chain.until_settled(value, 0, 2, 3)
            assert took < 5
        chain.start(1)
        await chain.until_settled(5, 1)
        assert chain.assert_equal_digests() > 5


async def test_a_long_dead_validator_is_demoted_so_that_the_others_rarely_wait_for_it() -> None:
    async with ChainOfAgents("counting") as chain, _node(chain, 0) as node:
        chain.start()
        await chain.until_settled(5)
        await chain.kill(3)
        await chain.until_settled(chain.settled(0) + 40, 0, 1, 2)
        assert sorted((await node.powers()).values()) == [2, 20, 20, 20]
        chain.start(3)
        async with asyncio.timeout(40):
            while sorted((await node.powers()).values()) != [20, 20, 20, 20]:
                await asyncio.sleep(0.2)
        assert chain.assert_equal_digests() > 40


async def test_a_port_that_is_taken_is_named_in_the_error() -> None:
    async with ChainOfAgents("counting", n=1) as chain:
        config = tomllib.loads((chain.homes[0] / "config" / "config.toml").read_text())
        port = int(config["p2p"]["laddr"].rpartition(":")[2])
        with socket.create_server(("127.0.0.1", port)):
            chain.configure(0, crash_at=1)  # its end is expected
            chain.start()
            await chain.until(lambda: chain.processes[0].poll() is not None, 30, "the agent gives up")
        assert chain.processes.pop(0).returncode == 3
        assert f"127.0.0.1:{port}: bind: address already in use" in chain.last(0, "failed")["error"]


async def test_a_deadline_ends_a_round_of_a_sleeping_chain_and_lets_it_sleep_again() -> None:
    async with ChainOfAgents("deadline") as chain:
        chain.start()
        await chain.until_settled(1, timeout_s=15)
        settled = chain.last(0, "settled")
        assert settled["event"] == "ROUND_TIMEOUT"
        opened = next(event["t"] for event in chain.events(0, "commit") if event["height"] == 2)
        assert 0.9 < settled["t"] - opened < 2.0, f"one second was asked, it took {settled['t'] - opened:.2f} s"
        assert chain.events(0, "tick")
        await asyncio.sleep(1)
        height = chain.height(0)
        await asyncio.sleep(2)
        assert chain.height(0) == height
        assert chain.assert_equal_digests() > 3


async def _height_when_asleep(chain: ChainOfAgents, index: int) -> int:
    """The height at which the chain has rested for a second; a busy machine takes its time to get there."""
    height = -1
    while height != chain.height(index):
        height = chain.height(index)
        await asyncio.sleep(1)
    return height


async def test_what_is_garbage_stale_foreign_or_forged_is_refused_and_harms_nobody() -> None:
    async with ChainOfAgents("on_demand") as chain, _node(chain, 1) as node:
        chain.start()
        chain.allow(2)
        await chain.until_settled(2)
        height = await _height_when_asleep(chain, 1)
        old = SignedPayload.decode(bytes.fromhex(chain.last(0, "sent")["payload"]))
        now = UnsignedPayload(chain.chain_id, 0, 3, old.round, old.opening, b"3")
        foreign = UnsignedPayload("another-chain", 0, 3, old.round, old.opening, b"3")
        member, stranger = chain.keys[0], Key("stranger")
        ahead = UnsignedPayload(chain.chain_id, 0, 9, old.round, old.opening, b"9")
        for what, tx in {
            "nothing": b"",
            "garbage": os.urandom(200),
            "an unknown kind": bytes([9]) + old.encode(),
            "cut off": encode_single(Kind.PAYLOAD, old)[:-70],
            "the same bytes again": encode_single(Kind.PAYLOAD, old),
            "for another chain": encode_single(
                Kind.PAYLOAD, foreign.signed(member.address, member.sign_digest(foreign.digest()))
            ),
            "of a stranger": encode_single(
                Kind.PAYLOAD, now.signed(stranger.address, stranger.sign_digest(now.digest()))
            ),
            "forged": encode_single(Kind.PAYLOAD, now.signed(member.address, stranger.sign_digest(now.digest()))),
            "of another opening": encode_single(
                Kind.PAYLOAD, now.signed(member.address, member.sign_digest(now.digest()))
            ),
            "too far ahead": encode_single(
                Kind.PAYLOAD, ahead.signed(member.address, member.sign_digest(ahead.digest()))
            ),
            "a bundle": encode_bundle([old]),
            "too large": bytes([2]) + bytes(20_000),
        }.items():
            answer = await node.broadcast_tx(tx)
            assert answer.code != 0, f"a transaction that is {what} was taken"
        await asyncio.sleep(1)
        assert chain.height(1) == height, "a refused transaction woke the chain"
        chain.allow(3)
        await chain.until_settled(3)
        assert chain.assert_equal_digests() > 5


async def test_who_answers_every_round_twice_is_on_record_at_all_and_nobody_else() -> None:
    """One payload rides on its vote, the other goes to the mempools; a proof of the two gets into a block."""
    async with ChainOfAgents("counting", act_s=0.05) as chain:
        chain.configure(2, misdeed="two_words")
        chain.start()
        await chain.until(lambda: all(chain.events(i, "offence") for i in (0, 1, 3)), 60, "the offence is on record")
        before = chain.settled(0)
        await chain.until_settled(before + 20, 0, 1, 3)
        found = {(one["what"], one["member"]) for i in (0, 1, 3) for one in chain.events(i, "offence")}
        assert found == {("equivocation", chain.member(2).address)}
        assert len(chain.events(0, "offence")) <= 4, "once a round, and four times in all"
        assert chain.assert_equal_digests() > 20


async def test_an_agent_that_diverges_goes_no_further_and_is_on_record_for_what_it_has_stated() -> None:
    """Its last vote says what the block led to there; its node then refuses the next header."""
    async with ChainOfAgents("counting", act_s=0.05) as chain:
        chain.configure(2, misdeed="diverges", crash_at=10)
        chain.start(0, 1, 2)  # so that block 10 waits for its vote, however late that is
        await chain.until(lambda: chain.height(0) == chain.height(2) == 10, 60, "block 10")
        chain.start(3)
        await chain.until(lambda: all(chain.events(i, "offence") for i in (0, 1, 3)), 60, "the offence is on record")
        await chain.until_settled(chain.settled(0) + 5, 0, 1, 3)
        assert chain.height(2) == 10, "its consensus is over, though its process lives"
        found = [(one["what"], one["member"]) for i in (0, 1, 3) for one in chain.events(i, "offence")]
        assert found == [("wrong app hash", chain.member(2).address)] * 3
        assert chain.assert_equal_digests([0, 1, 3]) > 10


@pytest.mark.parametrize("misdeed", ["garbage_proposal", "stale_proposal", "omission", "junk_extension"])
async def test_one_faulty_validator_costs_time_only(misdeed: str) -> None:
    async with ChainOfAgents("counting") as chain:
        chain.configure(2, misdeed=misdeed)
        chain.start()
        await chain.until_settled(30, timeout_s=60)
        assert chain.assert_equal_digests() > 30


async def test_a_failing_application_is_told_to_its_host_which_ends_with_its_node() -> None:
    """CometBFT itself ends with exit code 0 then; the host must not take that for success."""
    async with ChainOfAgents("counting", act_s=0.05) as chain:
        chain.configure(0, misdeed="raises", crash_at=10)
        chain.start()
        await chain.until(lambda: chain.processes[0].poll() is not None, 30, "agent 0 ends")
        assert chain.processes.pop(0).returncode == 3
        assert "the application was told to fail" in chain.last(0, "failed")["error"]
        await chain.until_settled(chain.settled(1) + 5, 1, 2, 3)
        assert chain.assert_equal_digests([1, 2, 3]) > 10


async def test_a_node_that_dies_is_told_to_its_host() -> None:
    async with ChainOfAgents("counting", act_s=0.05) as chain:
        chain.start()
        await chain.until_settled(3)
        chain.configure(1, crash_at=1)  # its end is expected
        os.kill(chain.last(1, "started")["node"], 15)
        await chain.until(lambda: chain.processes[1].poll() is not None, 15, "agent 1 ends with its node")
        assert chain.processes.pop(1).returncode == 3
        assert "NodeExited" in chain.last(1, "failed")["error"]


async def test_a_lone_agent_runs_the_same_code_without_peers() -> None:
    async with ChainOfAgents("counting", n=1) as chain:
        chain.start()
        await chain.until_settled(50)
        await chain.kill(0)
        chain.start(0)
        await chain.until_settled(chain.settled(0) + 20)
        assert chain.assert_equal_digests() == 0


async def test_a_node_that_is_not_in_the_genesis_may_not_connect() -> None:
    async with ChainOfAgents("counting", act_s=0.05) as chain, ChainOfAgents("counting", act_s=0.05) as other:
        chain.start()
        await chain.until_settled(3)
        config = chain.homes[0] / "config" / "config.toml"
        peers = next(line for line in config.read_text().splitlines() if line.startswith("persistent_peers ="))
        members = {member.node_id for member in chain.genesis.members}
        stranger = other.homes[0]
        text = (stranger / "config" / "config.toml").read_text()
        mine = next(line for line in text.splitlines() if line.startswith("persistent_peers ="))
        (stranger / "config" / "config.toml").write_text(text.replace(mine, peers))
        (stranger / "config" / "genesis.json").write_text((chain.homes[0] / "config" / "genesis.json").read_text())
        async with _node(chain, 1) as node, _bare_node(other):
            for _ in range(15):
                await asyncio.sleep(0.2)
                assert await node.peers() <= members, "a stranger is connected"
            assert len(await node.peers()) == 3


@asynccontextmanager
async def _bare_node(other: ChainOfAgents) -> AsyncIterator[None]:
    """A node with an application of its own that dials whomever its configuration names."""
    sockets = Path(other.files[0].sockets)
    sockets.mkdir()
    server = await serve(Application(), sockets / "abci.sock")
    node = other.node(0)
    await node.start()
    try:
        await asyncio.sleep(1)
        yield
    finally:
        await node.stop()
        await server.close()
