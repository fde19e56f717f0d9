"""Members come and go under faults: real applications, decided by a consensus in memory, all from one seed.

Kept of CometBFT: validators that change two blocks after the block that says so (and a panic at an update that it
cannot make), extensions that every node must accept, proposals that nobody decides, absent votes, transactions that are
lost, nodes that die at any moment and replay. Every operator approves late, and never all of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from quorate.abci import Broadcast, ServiceApp, SignedPayload, UnsignedPayload, UnsignedStatement, Via, payload_for
from quorate.abci.genesis import POWER
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.fsm import Period, Service, Settled
from quorate.members import MAX_MEMBERS, Change, Member
from quorate.offences import Offence
from quorate.rounds import pause
from quorate.rounds.membership import CHANGE_MEMBERS, change_members, interrupt, transitions
from quorate.testing.disk import Disk, MemoryStore
from quorate.testing.faults import Plan
from quorate.testing.loop import run_virtual
from quorate.testing.simulation import Subject, simulate
from quorate.units import Address
from tests.chain_of_agents.keys import Key
from tests.chain_of_agents.services import Moved, moving, raise_value
from tests.unit.member_records import CHAIN, KEYS, genesis_of, member

lapping = Service(
    "lapping",
    state=Moved,
    start=raise_value,
    transitions={**transitions, (raise_value, "DONE"): pause, (pause, "DONE"): raise_value},
    otherwise=raise_value,
    interrupts=(interrupt,),
)
SEEDS = int(os.environ.get("QUORATE_MEMBERSHIP_SEEDS", "3"))
CHANGES = 4
_PATIENCE = 900  # blocks, or rounds of consensus that decide none
_KEY_OF = {key.address: key for key in KEYS}


class Operator:
    """An agent that answers at once, asks for what its operator approves, and tells its act's payload by its app."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.app: ServiceApp
        self.approved: Change | None = None
        self.ways: list[tuple[int, Via]] = []

    def opened(self, period: Period, committed: bool) -> None:
        assert self.key.address in period.members, "who is no member acts"
        value: Any = self.approved if period.round is change_members else period.state.value + 1  # type: ignore[attr-defined]
        self.app.offer(self._signed(period, period.round.encode(value)))
        request = period.ask(CHANGE_MEMBERS)
        if self.approved and period.refusal(self.key.address, period.sequence, request) is None:
            self.app.ask(self._signed(period, request))

    def _signed(self, period: Period, body: bytes) -> SignedPayload:
        unsigned = payload_for(CHAIN, period, body)
        return unsigned.signed(self.key.address, self.key.sign_digest(unsigned.digest()))

    def settled(self, settled: Settled, period: Period, height: int) -> None:
        if settled.round_name == change_members.name:
            self.approved = None

    def sent(self, payload: SignedPayload, via: Via) -> None:
        self.ways.append((payload.sequence, via))

    def offended(self, offence: Offence, proof: bytes) -> None:
        raise AssertionError(f"nobody lies here: {offence}")

    async def sign_tick(self, tick: UnsignedPayload) -> bytes:
        return self.key.sign_digest(tick.digest())

    async def sign_statement(self, statement: UnsignedStatement) -> bytes:
        return self.key.sign_digest(statement.digest())


@dataclass
class Node:
    """One agent's machine."""

    member: Member
    disk: Disk = field(default_factory=Disk)
    app: ServiceApp | None = None
    operator: Operator | None = None
    mempool: list[bytes] = field(default_factory=list)
    height: int = 0


class Net:
    """`n` members, and spare agents that join."""

    def __init__(self, seed: int, n: int) -> None:
        self.rng = random.Random(seed)
        self.genesis = genesis_of(n)
        self.nodes = {one.address: Node(one) for one in self.genesis.members}
        self.all = {one.validator_address: one for one in self.genesis.members}
        first = dict.fromkeys(self.all, POWER)
        self.sets: list[dict[str, int]] = [first, first, first]
        self.blocks: list[pb.RequestFinalizeBlock] = []
        self.hashes: list[bytes] = []
        self.votes: dict[str, bytes] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.has_faults = True

    @property
    def level(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.app is not None]

    @property
    def members(self) -> tuple[Member, ...]:
        app = self.level[0].app
        assert app is not None
        return app.members

    async def start(self, node: Node) -> None:
        """A life of an agent: from its disk, level with the chain before it takes part."""
        key = _KEY_OF[node.member.address]
        operator = Operator(key)
        store = MemoryStore(node.disk, lambda point: None)
        app = ServiceApp(moving, self.genesis, key.address, store, operator, lambda: 2e9, joins=True)
        operator.app = app
        if not app.height:
            await app.init_chain(self._init())
        for number, block in enumerate(self.blocks[app.height :], app.height):
            assert (await app.finalize_block(block)).app_hash == self.hashes[number], "a replay gives another state"
            await app.commit(pb.RequestCommit())
        node.app, node.operator, node.height = app, operator, app.height

        async def broadcast(tx: bytes) -> Broadcast:
            if node.app is app:
                self._spread(tx, node)
            return Broadcast(0, "")

        app.start(broadcast)

    def _init(self) -> pb.RequestInitChain:
        state = json.dumps(self.genesis.app_state()).encode()
        request = pb.RequestInitChain(chain_id=CHAIN, app_state_bytes=state)
        for one in self.genesis.members:
            request.validators.add(power=POWER).pub_key.ed25519 = bytes.fromhex(one.validator_key)
        return request

    def _spread(self, tx: bytes, source: Node) -> None:
        for node in self.level:
            if node is source or not self.has_faults or self.rng.random() < 0.8:
                task = asyncio.get_running_loop().create_task(self._check(node, tx))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)

    async def _check(self, node: Node, tx: bytes) -> None:
        await asyncio.sleep(self.rng.uniform(0.001, 0.02))
        if node.app is None or tx in node.mempool:
            return
        if (await node.app.check_tx(pb.RequestCheckTx(tx=tx))).code == 0:
            node.mempool.append(tx)

    async def stop(self, node: Node) -> None:
        app, node.app, node.mempool = node.app, None, []
        if app is not None:
            await app.stop()
            assert not app.failed.done(), app.failed.result()

    async def step(self) -> bool:
        """One round of consensus; whether it decided a block."""
        await asyncio.sleep(0.03)
        height = len(self.blocks) + 1
        power = self.sets[height]
        here = [node for node in self.level if node.member.validator_address in power]
        if 3 * self._weight(here, height) <= 2 * sum(power.values()):
            return False
        proposer = self.rng.choice(here)
        request = await self._propose(proposer, height)
        for node in self.level:
            assert node.app is not None
            answer = await node.app.process_proposal(self._as(pb.RequestProcessProposal, request))
            assert answer.status == pb.ResponseProcessProposal.ACCEPT, "an honest proposal is refused"
        if self.has_faults and self.rng.random() < 0.1:
            return False
        votes = {node.member.validator_address: await self._extension(node, request) for node in here}
        late = [node for node in here if self.has_faults and self.rng.random() < 0.15]
        seen = [node for node in here if node not in late]
        if 3 * self._weight(seen, height) <= 2 * sum(power.values()):
            seen = here
        self.votes = {node.member.validator_address: votes[node.member.validator_address] for node in seen}
        await self._decide(request)
        return True

    def _weight(self, nodes: list[Node], height: int) -> int:
        return sum(self.sets[height][node.member.validator_address] for node in nodes)

    async def _propose(self, proposer: Node, height: int) -> pb.RequestFinalizeBlock:
        assert proposer.app is not None
        prepare = pb.RequestPrepareProposal(max_tx_bytes=1 << 20, height=height, txs=proposer.mempool)
        block = pb.RequestFinalizeBlock(height=height, hash=b"%d/%d" % (height, self.rng.getrandbits(60)))
        if height > 1:
            self._fill(prepare.local_last_commit.votes, height - 1, True)
            self._fill(block.decided_last_commit.votes, height - 1, False)
        block.txs.extend((await proposer.app.prepare_proposal(prepare)).txs)
        block.time.FromMilliseconds(1_800_000_000_000 + int(1000 * asyncio.get_running_loop().time()))
        return block

    def _fill(self, votes: Any, height: int, with_extensions: bool) -> None:
        """The commit of `height`: whoever voted then, with the power of then, members or not."""
        for address in sorted(self.sets[height]):
            vote = votes.add()
            vote.validator.address = bytes.fromhex(address)
            vote.block_id_flag = 2 if address in self.votes else 1
            if with_extensions and self.votes.get(address):
                vote.vote_extension = self.votes[address]

    def _as(self, kind: Any, block: pb.RequestFinalizeBlock) -> Any:
        request = kind(txs=block.txs, height=block.height, hash=block.hash, time=block.time)
        request.proposed_last_commit.CopyFrom(block.decided_last_commit)
        return request

    async def _extension(self, node: Node, block: pb.RequestFinalizeBlock) -> bytes:
        assert node.app is not None
        extension: bytes = (await node.app.extend_vote(self._as(pb.RequestExtendVote, block))).vote_extension
        request = pb.RequestVerifyVoteExtension(
            validator_address=bytes.fromhex(node.member.validator_address), hash=block.hash, vote_extension=extension
        )
        for other in self.level:
            if other is not node and other.app is not None:
                status = (await other.app.verify_vote_extension(request)).status
                assert status == pb.ResponseVerifyVoteExtension.ACCEPT, "an honest extension is refused: a lost vote"
        return extension

    async def _decide(self, block: pb.RequestFinalizeBlock) -> None:
        self.blocks.append(block)
        answers = set()
        for node in self.level:
            assert node.app is not None
            answer = await node.app.finalize_block(block)
            updates = tuple((update.pub_key.ed25519.hex(), update.power) for update in answer.validator_updates)
            answers.add((answer.app_hash, updates))
            await node.app.commit(pb.RequestCommit())
            node.height = node.app.height
            for tx in list(node.mempool):
                if (await node.app.check_tx(pb.RequestCheckTx(tx=tx, type=pb.RECHECK))).code:
                    node.mempool.remove(tx)
        assert len(answers) == 1, f"the agents part at block {block.height}"
        ((app_hash, updates),) = answers
        self.hashes.append(app_hash)
        after = dict(self.sets[-1])
        assert len({key for key, _ in updates}) == len(updates), "CometBFT refuses two updates of one validator"
        known = {one.validator_key: address for address, one in self.all.items()}
        for key, power in updates:
            assert power or known[key] in after, "CometBFT panics when a validator is removed that it has not"
            after[known[key]] = power
        self.sets.append({address: power for address, power in after.items() if power})
        assert self.sets[-1], "CometBFT panics without validators"

    def add(self, index: int, generation: int) -> Member:
        made = member(index, generation)
        self.all[made.validator_address] = made
        return made


async def _run(seed: int) -> int:
    rng = random.Random(f"plan {seed}")
    net = Net(seed, rng.choice((1, 2, 3, 4, 4, 5, 7)))
    for node in list(net.nodes.values()):
        await net.start(node)
    made = 0
    while made < CHANGES:
        change = _draw(rng, net, made)
        if change.join is not None:
            node = net.nodes[change.join.address] = Node(change.join)
            await net.start(node)
        await _until_made(net, rng, change)
        made += 1
        if change.leave is not None:
            gone = net.nodes[change.leave]
            for _ in range(3):  # its last vote is needed; then it may go
                await _until_block(net)
            await net.stop(gone)
            del net.nodes[change.leave]
    net.has_faults = False
    for node in net.nodes.values():
        if node.app is None:
            await net.start(node)
    goal = net.level[0].app.period.sequence + 5  # type: ignore[union-attr]
    await _until(net, lambda: all(node.app is not None and node.app.period.sequence >= goal for node in net.level))
    assert set(net.sets[-1]) == {one.validator_address for one in net.members}
    blocks = len(net.blocks)
    for node in net.level:
        await net.stop(node)
    for task in list(net.tasks):
        task.cancel()
    return blocks


def _draw(rng: random.Random, net: Net, made: int) -> Change:
    """A change that is possible now."""
    members = net.members
    fresh = rng.choice([index for index in range(12) if KEYS[index].address not in net.nodes])
    kinds = ["join"] * (len(members) < MAX_MEMBERS) + ["leave"] * (len(members) > 1) + ["replace"]
    kind, leaves = rng.choice(kinds), rng.choice(members).address
    if kind == "leave":
        return Change(leave=leaves)
    return Change(net.add(fresh, made), leaves if kind == "replace" else None)


async def _until_made(net: Net, rng: random.Random, change: Change) -> None:
    wanted = change.made(net.members)
    before = {one.address for one in net.members}

    def is_made() -> bool:
        return net.members == wanted

    for _ in range(_PATIENCE):
        if is_made():
            return
        for node in net.level:  # the operators come one by one, and again where a round did not agree
            if node.operator is not None and node.member.address in before and rng.random() < 0.3:
                node.operator.approved = node.operator.approved or change
        await _disturb(net, rng)
        await net.step()
    raise AssertionError(f"{change} was not made: {_where(net)}")


async def _disturb(net: Net, rng: random.Random) -> None:
    """Kill one now and then, never more than are needed for the next blocks; bring others back."""
    for node in net.nodes.values():
        if node.app is None and rng.random() < 0.15:
            await net.start(node)
    if rng.random() < 0.05 and all(node.app is not None for node in net.nodes.values()):
        victim = rng.choice(list(net.nodes.values()))
        if len(net.level) > 1:
            await net.stop(victim)


async def _until_block(net: Net) -> None:
    height = len(net.blocks)
    await _until(net, lambda: len(net.blocks) > height)


async def _until(net: Net, holds: Any) -> None:
    for _ in range(_PATIENCE):
        if holds():
            return
        for node in net.nodes.values():
            if node.app is None:
                await net.start(node)
        await net.step()
    raise AssertionError(f"no progress: {_where(net)}")


def _where(net: Net) -> str:
    app = net.level[0].app
    assert app is not None
    period = app.period
    names: dict[Address, int] = {key.address: index for index, key in enumerate(KEYS)}
    return (
        f"block {len(net.blocks)}, round {period.sequence} ({period.round}), missing "
        f"{[names[who] for who in period.missing()]} of {[names[who] for who in period.members]}"
    )


@pytest.mark.parametrize("seed", range(SEEDS))
def test_members_change_under_faults_and_all_agents_stay_alike(seed: int) -> None:
    assert run_virtual(_run(seed)) > 10


@pytest.mark.parametrize("seed", range(2))
def test_the_simulator_takes_services_whose_members_may_change(seed: int) -> None:
    """Nobody approves anything there; requests for a change come, and every round of it refuses."""
    subject = Subject(lapping, SimpleNamespace(act_s=0, pause_s=0.1))
    assert simulate(subject, Plan.draw(seed, agents=4)).violations == ()


def test_the_same_seed_decides_the_same_blocks() -> None:
    assert run_virtual(_run(1)) == run_virtual(_run(1))


async def _calmly(change: Change, n: int) -> tuple[Net, Node]:
    """A network without faults in which `change` was made a moment ago, and the agent that comes or goes."""
    net = Net(0, n)
    net.has_faults = False
    if change.join is not None:
        net.add(12, 0)
        net.nodes[change.join.address] = Node(change.join)
    for node in net.nodes.values():
        await net.start(node)
    wanted = change.made(net.members)
    who = net.nodes[change.join.address if change.join else change.leave or Address("")]
    for node in net.level:
        assert node.operator is not None
        node.operator.approved = change
    for _ in range(40):
        if net.members == wanted:
            return net, who
        await net.step()
    raise AssertionError(f"{change} was not made: {_where(net)}")


async def _close(net: Net) -> None:
    for node in net.level:
        await net.stop(node)


def test_whoever_joins_sends_its_first_payload_as_a_transaction() -> None:
    """It has no vote on the next block to attach it to; with two members the round waits for it."""

    async def run() -> None:
        net, new = await _calmly(Change(join=member(12)), 1)
        assert new.operator is not None
        assert new.app is not None
        first = new.app.period.sequence
        for _ in range(12):
            await net.step()
        assert new.operator.ways[0] == (first, "transaction")
        assert (first + 4, "extension") in new.operator.ways, "later ones ride on its votes"
        await _close(net)

    run_virtual(run())


@pytest.mark.parametrize("n", [2, 4])
def test_whoever_leaves_may_go_only_after_the_block_that_needs_its_vote(n: int) -> None:
    async def run() -> None:
        net, gone = await _calmly(Change(leave=KEYS[0].address), n)
        assert gone.app is not None
        await asyncio.sleep(10)
        assert not gone.app.left.done(), "the block after the change is still voted on by the old validators"
        assert await net.step()
        await asyncio.sleep(1)
        assert not gone.app.left.done(), "the others may not have its vote yet"
        await asyncio.sleep(2)
        assert gone.app.left.done()
        await net.stop(gone)
        del net.nodes[KEYS[0].address]
        for _ in range(5):
            assert await net.step(), "the others go on without it"
        await _close(net)

    run_virtual(run())
