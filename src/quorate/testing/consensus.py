"""A stand-in for CometBFT: it decides blocks for real applications, and loses, delays, parts, lies and dies on demand.

What is kept of the protocol: proposers in turn, prevotes and precommits counted by power at each node by what reaches
it, locks (so fewer than a third of liars cannot part the honest), vote extensions that ride on precommits, late
precommits that join a commit unverified, block time as the weighted median of the votes before, mempools with gossip
and recheck, blocks only when there is news, block sync for whoever missed some, replay after a crash. Not kept: the
wire, signatures of votes, evidence. Steps of a round are taken together; tests/integration has the real engine.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from quorate.abci import Genesis, Retention, SignedPayload, UnsignedStatement, UpgradeDue
from quorate.abci import genesis as genesis_module
from quorate.abci import machine as rules
from quorate.abci.archive import FORMAT
from quorate.abci.membership import by_validator
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.abci.statement import join, split
from quorate.abci.transaction import Kind, encode_bundle, encode_single
from quorate.errors import ConfigError, PeerError, SetupError
from quorate.testing.disk import Disk, MemoryArchive
from quorate.testing.oracles import Judge
from quorate.testing.process import Process, keys

__all__ = ["EPOCH_S", "Consensus", "Decided", "Killed", "Peer", "seen_votes"]

EPOCH_S = 1_800_000_000.0
MAX_TX_BYTES = 1 << 20
_COMMIT, _ABSENT = 2, 1
_ACCEPT = 1  # of ProcessProposal and of VerifyVoteExtension
_CHUNK_ACCEPTED = 1  # of ApplySnapshotChunk
_ASK_AGAIN_S = 1.0
_HEARTBEAT_S = 30.0
_RECONNECT_S = 0.4
_TIMEOUT_S = 0.32  # what a round without a decision costs
_ANSWER_LIMIT_S = 0.1
_RETENTIONS = (
    Retention(blocks=8, snapshot_every=2, snapshots=2),
    Retention(blocks=20, snapshot_every=5, snapshots=3),
    Retention(),  # the real one: nothing is pruned in a run this short
)


_PURE = frozenset({"prepare_proposal", "process_proposal", "extend_vote", "verify_vote_extension", "check_tx"})


class Killed(Exception):
    """The process died in this call."""


@dataclass(frozen=True, eq=False)
class Decided:
    """A block, proposed or decided."""

    height: int
    round: int
    proposer: int
    time_ms: int
    txs: tuple[bytes, ...]
    present: tuple[bool, ...]
    """Whose votes for the block before its proposer had seen."""

    @cached_property
    def hash(self) -> bytes:
        """32 bytes over all of it but when it was decided; what votes are for."""
        head = f"{self.height} {self.round} {self.proposer} {self.time_ms} {self.present}".encode()
        return hashlib.sha256(head + b"".join(hashlib.sha256(tx).digest() for tx in self.txs)).digest()

    def __hash__(self) -> int:
        return int.from_bytes(self.hash[:8], "big")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Decided) and self.hash == other.hash


@dataclass(frozen=True)
class _Vote:
    extension: bytes
    time_ms: int


@dataclass
class Peer:
    """One agent's machine: what its CometBFT stores, its disk, its clock, and the process while it lives."""

    index: int
    is_liar: bool
    archive: MemoryArchive
    """The snapshots that its agent keeps."""
    disk: Disk = field(default_factory=Disk)
    blocks: list[Decided] = field(default_factory=list)
    """Those up to height `base` are only remembered here: the node pruned them, or took a snapshot in their place."""
    base: int = 0
    commit: dict[int, _Vote] = field(default_factory=dict)
    """The votes for the last block, by voter, as far as they were seen."""
    locked: Decided | None = None
    mempool: dict[bytes, None] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)
    process: Process | None = None
    is_ready: bool = False
    """True once the handshake has brought the application level; before that the node takes no part."""
    is_asking: bool = False
    """It has lost everything, found nobody to help, and will ask again."""
    lives: int = 0
    offset_s: float = 0.0
    drift: float = 0.0
    armed: str = ""
    """The crash point at which it will die next."""
    is_wiped: bool = False
    """Its state was lost on purpose, so it may be behind what it once answered."""
    is_damaged: bool = False
    """Its owner will clear its node as well at the next start: what it still holds counts as lost."""

    @property
    def is_up(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.is_ready

    @property
    def height(self) -> int:
        """Of its last durable block."""
        return len(self.blocks)

    def wipe(self) -> None:
        """Its owner takes the agent's state and the node's data away; keys stay."""
        self.blocks, self.base, self.commit, self.locked, self.is_wiped = [], 0, {}, None, True
        self.disk.wipe()
        self.archive.wipe()


_Offer = tuple[int, bytes, int]
"""A snapshot's height, hash and number of chunks."""
_Source = tuple[Peer, bytes | None]
"""Who offers it, and what a liar gives in its place."""


class Consensus:
    """n peers and what goes on between them."""

    def __init__(
        self,
        genesis: Genesis,
        judge: Judge,
        rng: random.Random,
        liars: Sequence[int],
        spawn: Callable[[Peer], Process],
        note: Callable[[str], None],
        trace: Callable[[str, Any], None],
    ) -> None:
        self.genesis, self.judge, self.rng = genesis, judge, rng
        retention = rng.choice(_RETENTIONS)
        self.peers = [Peer(index, index in liars, MemoryArchive(retention)) for index in range(len(genesis.members))]
        self.addresses = [bytes.fromhex(member.validator_address) for member in genesis.members]
        self.links: dict[tuple[int, int], str] = {}
        """What is wrong with a link: "cut", or "slow"."""
        self.loss = self.twice = self.disorder = 0.0
        self.slow_s = 0.0
        self.lies: frozenset[str] = frozenset()
        """Which lies the liars tell now."""
        self.misstated: dict[tuple[int, bytes], None] = {}
        """Who has signed a wrong app hash of which block."""
        self._spawn, self._note, self._trace = spawn, note, trace
        self._wake = asyncio.Event()
        self._round = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._powers: list[dict[int, int]] = [{p.index: genesis_module.POWER for p in self.peers}] * 3
        self._last_block_s = 0.0
        self._clocks_were_off = False
        self._honest_ahead: dict[int, bytes] = {}

    # ---- the world's handle

    @property
    def now_s(self) -> float:
        """The virtual time."""
        return asyncio.get_running_loop().time()

    @property
    def honest(self) -> list[Peer]:
        """Those that keep to the protocol."""
        return [peer for peer in self.peers if not peer.is_liar]

    def reaches(self, source: Peer, target: Peer) -> bool:
        """Whether a message gets through now."""
        if source is target:
            return True
        if self.links.get((source.index, target.index)) == "cut":
            return False
        return not self.loss or self.rng.random() >= self.loss

    def wall_s(self, peer: Peer) -> float:
        """That machine's clock."""
        return EPOCH_S + self.now_s * (1 + peer.drift) + peer.offset_s

    async def read(self, peer: Peer) -> None:
        """A client asks this agent where the chain is."""
        if not peer.is_up or peer.is_liar:
            return
        with contextlib.suppress(Killed):
            told = json.loads((await self._call(peer, "query", pb.RequestQuery(path="/status"))).value)
            if (height := told["height"]) and peer.process is not None and self._is_canonical(peer, height):
                self.judge.read(peer.process.key.address, peer.lives, height, bytes.fromhex(told["app_hash"]))

    def crash(self, peer: Peer, why: str) -> None:
        """kill -9 of agent and node. What is stored stays."""
        if peer.process is not None:
            self._note(f"agent {peer.index} dies: {why}")
            for task in peer.process.kill():
                self._keep(task)
            peer.process, peer.mempool, peer.seen, peer.armed = None, {}, set(), ""
            peer.is_ready = False

    async def revive(self, peer: Peer) -> None:
        """Start the agent again: from its disk, by the handshake that CometBFT does."""
        if peer.process is not None or peer.is_asking:
            return
        peer.lives += 1
        process = self._load(peer)
        peer.process = process
        self._note(f"agent {peer.index} starts at height {process.app.height} of {peer.height}")
        try:
            if not await self._handshake(peer, process):
                self.crash(peer, "nobody can give it what it lacks")
                self._revive_later(peer)
                return
        except Killed:
            return
        peer.is_ready = True
        process.start(lambda tx: self._broadcast(peer, tx))
        self._wake.set()

    def _revive_later(self, peer: Peer) -> None:
        async def wait() -> None:
            await asyncio.sleep(_ASK_AGAIN_S)
            peer.is_asking = False
            await self.revive(peer)

        if not peer.is_asking:
            peer.is_asking = True
            self.spawn(wait())

    def _load(self, peer: Peer) -> Process:
        """The agent from its disk. Where that is damaged, or the node has pruned what it lacks, its owner clears it."""
        peer.is_damaged = False
        try:
            process = self._spawn(peer)
        except ConfigError as error:
            self.judge.require("damage is found", peer.is_wiped, f"agent {peer.index} cannot start: {error.message}")
            self._note(f"agent {peer.index} finds its state damaged; its owner removes it, as the message says")
            if peer.base:
                peer.wipe()
            peer.disk.wipe()
            return self._spawn(peer)
        if process.app.has_half_a_snapshot:  # as `quorate.abci.Validator` does
            self._note(f"agent {peer.index} died when it had taken a snapshot: its node begins anew")
            peer.blocks, peer.base, peer.commit, peer.locked, peer.is_wiped = [], 0, {}, None, True
        if process.app.height < peer.base:
            self.judge.require("snapshots serve", peer.is_wiped, f"agent {peer.index} lags behind its own node")
            self._note(f"agent {peer.index} is older than all that its node keeps; its owner removes both")
            for task in process.kill():
                self._keep(task)
            peer.wipe()
            return self._spawn(peer)
        return process

    async def _handshake(self, peer: Peer, process: Process) -> bool:
        """What CometBFT does first. False where nobody can help an agent that has lost everything."""
        info = await self._call(peer, "info", pb.RequestInfo())
        height = info.last_block_height
        self.judge.require("never ahead of its node", height <= peer.height, f"{height} > {peer.height}")
        if 0 < height <= len(self.judge.expected):
            agreed = self.judge.expected[height - 1].replica.app_hash
            self.judge.require(
                "replay gives the same",
                info.last_block_app_hash == agreed or not self._is_canonical(peer, height),
                f"agent {peer.index} wakes at height {height} with another hash than the agreed one",
            )
        if height == 0:
            if not peer.height and await self._state_sync(peer):
                return True
            if not peer.height and self.judge.hashes and self._has_lost_touch(peer):
                return False
            if process.app.awaits_snapshot:  # and there is none: its operator has the older code start
                return False
            await self._call(peer, "init_chain", self._init_request())
        for block in peer.blocks[height:]:
            await self._apply(peer, block, is_replay=True)
        return True

    def is_needed(self, peer: Peer) -> bool:
        """No more may forget than may lie: a block that nobody holds is lost. And somebody must be able to help."""
        others = [one for one in self.peers if one is not peer]
        whole = [one for one in others if one.height >= peer.height and not one.is_damaged]
        helpers = [one for one in whole if not one.is_liar and (not one.base or self._can_help(one))]
        return len(whole) < 2 * len(self.peers) // 3 or not helpers or not all(one.height for one in others)

    def _can_help(self, peer: Peer) -> bool:
        return any(peer.base <= height <= peer.height - 2 for height in peer.archive.heights())

    def _has_lost_touch(self, peer: Peer) -> bool:
        """True where there are more blocks, and no node keeps the one that `peer` needs next."""
        ahead = [one for one in self.peers if one is not peer and one.height > peer.height]
        return bool(ahead) and all(one.base > peer.height for one in ahead)

    async def _state_sync(self, peer: Peer) -> bool:
        """CometBFT's state sync into an empty application: the newest snapshot first, chunks from all that offer it.

        What its light client proves is taken from the judge: the app hash of the chain at that height.
        """
        offers: dict[_Offer, list[_Source]] = {}
        for source in self.peers:
            if source is not peer and source.is_up and self.reaches(source, peer):
                with contextlib.suppress(Killed):
                    for offer, forged in await self._offers(source):
                        offers.setdefault(offer, []).append((source, forged))
        for offer in sorted(offers, reverse=True):
            if offer[0] + 2 <= len(self.judge.hashes) and await self._take_snapshot(peer, offer, offers[offer]):
                return True
        return False

    async def _offers(self, source: Peer) -> list[tuple[_Offer, bytes | None]]:
        """What a peer offers; a liar may offer a state of its own making."""
        answer = await self._call(source, "list_snapshots", pb.RequestListSnapshots())
        found: list[tuple[_Offer, bytes | None]] = []
        for one in answer.snapshots:
            self.judge.require(
                "snapshots serve", one.height >= source.base or source.is_liar, f"no block above {one.height} is kept"
            )
            if source.is_liar and "garbage snapshot" in self.lies:
                forged = self._forged_state(source, one.height)
                found.append(((one.height, hashlib.sha256(forged).digest(), 1), forged))
            else:
                found.append(((one.height, one.hash, one.chunks), None))
        return found

    def _forged_state(self, liar: Peer, height: int) -> bytes:
        true = liar.archive.chunk(height, 0)
        replica = self.judge.expected[height - 1].replica  # what the liar has may be another version's by now
        return self.rng.choice((
            replace(replica, hot=replica.hot + 2).encode(),
            replace(replica, height=height + 1).encode(),
            replace(replica, ticks=((self.judge.members[0], 1),)).encode(),
            liar.archive.chunk(liar.archive.heights()[0], 0),
            _flip(true, self.rng),
        ))  # fmt: skip

    async def _take_snapshot(self, peer: Peer, offer: _Offer, sources: list[_Source]) -> bool:
        height, digest, chunks = offer
        agreed = self.judge.expected[height - 1].replica.app_hash
        snapshot = pb.Snapshot(height=height, format=FORMAT, chunks=chunks, hash=digest)
        answer = await self._call(peer, "offer_snapshot", pb.RequestOfferSnapshot(snapshot=snapshot, app_hash=agreed))
        if answer.result != pb.ResponseOfferSnapshot.ACCEPT:
            return False
        for index in range(chunks):
            source, forged = sources[index % len(sources)]
            try:
                wanted = pb.RequestLoadSnapshotChunk(height=height, format=FORMAT, chunk=index)
                chunk = forged or (await self._call(source, "load_snapshot_chunk", wanted)).chunk
            except Killed:
                return False
            await self._latency()
            request = pb.RequestApplySnapshotChunk(index=index, chunk=chunk, sender=str(source.index))
            if (await self._call(peer, "apply_snapshot_chunk", request)).result != _CHUNK_ACCEPTED:
                return False
        info = await self._call(peer, "info", pb.RequestInfo())
        self.judge.require(
            "snapshot is proven",
            (info.last_block_height, info.last_block_app_hash) == (height, agreed),
            f"agent {peer.index} took another state than the chain's at height {height}",
        )
        source = max((one for one in self.peers if not one.is_liar and one is not peer), key=lambda one: one.height)
        peer.blocks, peer.base = list(source.blocks[:height]), height
        peer.commit = seen_votes(source.blocks[height - 1], source)
        self._note(f"agent {peer.index} takes the snapshot of height {height}")
        return True

    async def run(self) -> None:
        """Decide blocks until cancelled."""
        while True:
            await self._catch_up()
            self.judge.check_progress()
            if not self._has_reason():
                await self._rest()
                continue
            await self._step()

    def _has_reason(self) -> bool:
        """CometBFT's own: the hash has changed, or there is a transaction; else the heartbeat."""
        up = [peer for peer in self.peers if peer.is_up]
        frontier = max((peer.height for peer in self.peers), default=0)
        if any(peer.mempool for peer in up) or frontier == 0:
            return True
        expected = self.judge.expected
        before = expected[-2].replica.app_hash if len(expected) > 1 else b""
        return expected[-1].replica.app_hash != before or self.now_s - self._last_block_s >= _HEARTBEAT_S

    async def _rest(self) -> None:
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), min(5.0, _HEARTBEAT_S))

    # ---- one round of consensus

    async def _step(self) -> None:
        frontier = max(peer.height for peer in self.peers)
        here = [peer for peer in self.peers if peer.is_up and peer.height == frontier]
        powers = self._powers[frontier + 1]
        if not self._has_quorum(powers, here):
            await asyncio.sleep(0.2)
            return
        turn = [i for i in range(len(self.peers)) if powers[i] == genesis_module.POWER]
        proposer = self.peers[turn[(frontier + 1 + self._round) % len(turn)]]
        proposals = await self._propose(proposer, frontier + 1) if proposer in here else {}
        await self._latency()
        await self._process(proposals, proposer)
        decisions = await self._vote(proposals, powers)
        if decisions:
            self._round = 0
            self._last_block_s = self.now_s
            for peer, block, votes in decisions:
                await self._decide(peer, block, votes)
        else:
            self._round += 1
            await asyncio.sleep(_TIMEOUT_S)

    def _has_quorum(self, powers: dict[int, int], voters: Iterable[Peer]) -> bool:
        return 3 * sum(powers[peer.index] for peer in voters) > 2 * sum(powers.values())

    async def _propose(self, proposer: Peer, height: int) -> dict[int, Decided]:
        """Who gets which block: one for all from an honest proposer."""
        if proposer.locked is not None and not proposer.is_liar:
            blocks = [proposer.locked]
        else:
            try:
                txs = await self._prepare(proposer, height)
            except Killed:
                return {}
            honest = self._block(proposer, height, txs)
            blocks = [honest]
            if proposer.is_liar:
                blocks = self._twist(proposer, height, txs) or blocks
            else:
                self._honest_ahead[height] = honest.hash
        given: dict[int, Decided] = {}
        for peer in self.peers:
            if peer.is_up and peer.height == height - 1 and self.reaches(proposer, peer):
                given[peer.index] = blocks[peer.index % len(blocks)]
        return given

    async def _prepare(self, peer: Peer, height: int) -> tuple[bytes, ...]:
        request = pb.RequestPrepareProposal(max_tx_bytes=MAX_TX_BYTES, height=height, txs=list(peer.mempool))
        if self.rng.random() < 0.05:
            request.max_tx_bytes = self.rng.randint(0, 1500)
        for index, vote in sorted(peer.commit.items()):
            _add_vote(request.local_last_commit.votes, self.addresses[index], True, vote.extension)
        began = self.now_s
        answer = await self._call(peer, "prepare_proposal", request)
        txs = tuple(answer.txs)
        if not peer.is_liar:
            self.judge.require("proposal in time", self.now_s - began <= _ANSWER_LIMIT_S, "too slow")
            size = sum(len(tx) + _overhead(len(tx)) for tx in txs)
            self.judge.require("proposal size", size <= request.max_tx_bytes, f"{size} > {request.max_tx_bytes}")
            if request.max_tx_bytes == MAX_TX_BYTES:
                self._check_fill(peer, txs)
        return txs

    def _check_fill(self, peer: Peer, txs: tuple[bytes, ...]) -> None:
        """What honest voters attached, this proposer saw, and still counts must be in its proposal."""
        carried = b"".join(txs)
        for index, vote in peer.commit.items():
            if not self.peers[index].is_liar and (wire := split(vote.extension)[1]):
                payload = SignedPayload.decode(wire)
                if self.judge.witness.why_not(payload) is None and self._is_canonical(peer, peer.height):
                    self.judge.require(
                        "proposal fills", wire in carried, f"{payload.round} of agent {index} is left out"
                    )

    def _block(self, proposer: Peer, height: int, txs: tuple[bytes, ...]) -> Decided:
        present = tuple(index in proposer.commit for index in range(len(self.peers)))
        time_ms = int(EPOCH_S * 1000) - 3_600_000
        if height > 1:
            time_ms = self._median(height, [(vote.time_ms, index) for index, vote in proposer.commit.items()])
        return Decided(height, self._round, proposer.index, time_ms, txs, present)

    def _median(self, height: int, times: list[tuple[int, int]]) -> int:
        """CometBFT's WeightedMedian, which halves in integers."""
        powers = self._powers[max(0, height - 1)]
        rest = sum(powers[index] for _, index in times) // 2
        for time_ms, index in sorted(times):
            if rest <= powers[index]:
                return time_ms
            rest -= powers[index]
        raise AssertionError("a commit holds votes")

    async def _process(self, proposals: dict[int, Decided], proposer: Peer) -> None:
        """ProcessProposal everywhere; `self._accepted` is who would prevote it."""
        self._accepted: dict[int, bool] = {}
        for index, block in proposals.items():  # none of them waits for anything
            await self._judge(self.peers[index], block)
        answers: dict[bytes, set[bool]] = {}
        for index, accepted in self._accepted.items():
            if not self.peers[index].is_liar and self._is_canonical(self.peers[index], self.peers[index].height):
                answers.setdefault(proposals[index].hash, set()).add(accepted)
        judged = {block.hash: block for block in proposals.values()}
        for block_hash, found in sorted(answers.items()):
            if True in found and judged[block_hash].height == len(self.judge.hashes) + 1:
                self.judge.accepted(judged[block_hash].txs)
            self.judge.require("proposal judged alike", len(found) == 1, "some honest agents accept, some refuse")
            if not proposer.is_liar and block_hash in self._honest_ahead.values():
                self.judge.require("proposal accepted", found == {True}, f"agent {proposer.index}'s is refused")

    async def _judge(self, peer: Peer, block: Decided) -> None:
        if not self._follows(peer, block):
            return
        try:
            accepted = (
                await self._call(peer, "process_proposal", self._request(pb.RequestProcessProposal, block))
            ).status
            if self.rng.random() < 0.05:
                again = await self._call(peer, "process_proposal", self._request(pb.RequestProcessProposal, block))
                self.judge.require("proposal judged alike", again.status == accepted, "asked twice")
        except Killed:
            return
        self._accepted[peer.index] = accepted == _ACCEPT

    async def _vote(
        self, proposals: dict[int, Decided], powers: dict[int, int]
    ) -> list[tuple[Peer, Decided, dict[int, _Vote]]]:
        """Prevotes, precommits and who decides by what reached it."""
        up = [peer for peer in self.peers if peer.index in proposals and self._follows(peer, proposals[peer.index])]
        liars = [peer for peer in up if peer.is_liar]
        prevotes: dict[int, Decided] = {}
        for peer in up:
            block = proposals[peer.index]
            is_free = peer.locked is None or peer.locked == block
            if not peer.is_liar and is_free and self._accepted.get(peer.index):
                prevotes[peer.index] = block
        await self._latency()
        candidates = sorted(set(proposals.values()), key=lambda block: block.hash)
        precommits: dict[int, Decided] = {}
        for peer in (one for one in up if not one.is_liar and self._follows(one, proposals[one.index])):
            mine = proposals[peer.index]
            for block in sorted(candidates, key=lambda one: one != mine):
                backers = [self.peers[i] for i, b in prevotes.items() if b == block] + liars
                if self._has_quorum(powers, [one for one in backers if self.reaches(one, peer)]):
                    peer.locked = precommits[peer.index] = block
                    break
        votes: dict[tuple[int, bytes], _Vote] = {}
        await self._all(self._extend(self.peers[i], block, votes) for i, block in precommits.items())
        for liar in liars:
            for block in candidates:
                await self._extend_falsely(liar, block, votes)
        await self._latency()
        return await self._tally(up, proposals, votes, powers)

    def _follows(self, peer: Peer, block: Decided) -> bool:
        """True where the peer can vote on the block: it may have died and come back with less since it was proposed."""
        return peer.is_up and peer.height == block.height - 1

    async def _extend(self, peer: Peer, block: Decided, votes: dict[tuple[int, bytes], _Vote]) -> None:
        if not self._follows(peer, block):
            return
        try:
            answer = await self._call(peer, "extend_vote", self._request(pb.RequestExtendVote, block))
        except Killed:
            return
        time_ms = max(int(self.wall_s(peer) * 1000), block.time_ms + 1)
        votes[peer.index, block.hash] = _Vote(answer.vote_extension, time_ms)

    async def _tally(
        self,
        up: list[Peer],
        proposals: dict[int, Decided],
        votes: dict[tuple[int, bytes], _Vote],
        powers: dict[int, int],
    ) -> list[tuple[Peer, Decided, dict[int, _Vote]]]:
        decisions = []
        candidates = sorted(set(proposals.values()), key=lambda block: block.hash)
        refused = await self._verify_all(up, votes)
        for peer in (one for one in up if self._follows(one, proposals[one.index])):
            mine = proposals[peer.index]
            for block in sorted(candidates, key=lambda one: one != mine):
                cast = {i: vote for (i, block_hash), vote in votes.items() if block_hash == block.hash}
                got = {
                    i: vote
                    for i, vote in cast.items()
                    if self.reaches(self.peers[i], peer) and (i == peer.index or vote.extension not in refused)
                }
                if self._has_quorum(powers, [self.peers[i] for i in got]):
                    late = {i: vote for i, vote in cast.items() if i not in got and self.rng.random() < 0.5}
                    decisions.append((peer, block, got | late))  # late ones join the commit unverified
                    break
        return decisions

    async def _verify_all(self, up: list[Peer], votes: dict[tuple[int, bytes], _Vote]) -> set[bytes]:
        """VerifyVoteExtension at every honest agent; the extensions that it refused."""
        refused: set[bytes] = set()
        for (voter, block_hash), vote in sorted(votes.items()):
            request = pb.RequestVerifyVoteExtension(
                validator_address=self.addresses[voter],
                hash=block_hash,
                height=self.peers[voter].height + 1,
                vote_extension=vote.extension,
            )
            answers: list[bool] = []
            for peer in up:
                if peer.is_up and not peer.is_liar and peer.index != voter:
                    try:
                        answers.append((await self._call(peer, "verify_vote_extension", request)).status == _ACCEPT)
                    except Killed:
                        continue
            self.judge.require("extension judged alike", len(set(answers)) <= 1, f"of agent {voter}: {answers}")
            if not self.peers[voter].is_liar:
                self.judge.require("extension accepted", all(answers), f"agent {voter}'s is refused")
            if answers and not answers[0]:
                refused.add(vote.extension)
        return refused

    # ---- deciding, replaying, catching up

    async def _decide(self, peer: Peer, block: Decided, votes: dict[int, _Vote]) -> None:
        if not peer.is_up or peer.height != block.height - 1:
            return
        peer.blocks.append(block)  # CometBFT stores the block before it asks the application
        peer.commit, peer.locked = votes, None
        self._agree(peer, block)
        try:
            await self._apply(peer, block, is_replay=False)
            await self._recheck(peer)
        except Killed:
            return

    def _agree(self, peer: Peer, block: Decided) -> None:
        """The first to decide a height says what it holds; every other honest one must hold the same."""
        if block.height > len(self.judge.hashes):
            present, absent = self._presence(block)
            now = self.judge.witness
            senders = by_validator(now.members or self.genesis.members, now.turnover)
            owners = {validator: member.address for validator, member in senders.items()}
            machine_block = rules.Block(
                block.height, block.time_ms, (), absent, present, hash=block.hash, owners=owners
            )
            applied = self.judge.decided(machine_block, block.txs, block.hash)
            liars = [who for who, block_hash in self.misstated if block_hash == block.hash]
            self.judge.misstated(applied, [self.genesis.addresses[who] for who in liars])
            self.misstated.clear()
            self._trace("block", (block.height, block.hash.hex(), applied.replica.app_hash.hex()))
            powers = dict(self._powers[block.height + 1])
            for address, power in applied.powers:
                powers[self.addresses.index(bytes.fromhex(address))] = power
            self._powers.append(powers)
            self._check_clock(block)
        elif not peer.is_liar:
            self.judge.require(
                "agreement", self.judge.hashes[block.height - 1] == block.hash, f"two blocks at height {block.height}"
            )

    def _check_clock(self, block: Decided) -> None:
        """Block time is a median: fewer than a third of wrong clocks cannot push it outside of the right ones."""
        if any(peer.offset_s or peer.drift for peer in self.honest):
            self._clocks_were_off = True  # what they pushed ahead stays ahead until the others catch up
        if block.height > 1 and not self._clocks_were_off:
            ahead_s = block.time_ms / 1000 - EPOCH_S - self.now_s
            self.judge.require("block time grows", ahead_s < 0.01, f"block time is {ahead_s:.3f} s ahead of all clocks")

    def _presence(self, block: Decided) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if block.height == 1:
            return (), ()
        names = [address.hex().upper() for address in self.addresses]
        return (
            tuple(name for name, is_there in zip(names, block.present, strict=True) if is_there),
            tuple(name for name, is_there in zip(names, block.present, strict=True) if not is_there),
        )

    def _is_canonical(self, peer: Peer, height: int) -> bool:
        """True where `peer` holds the same chain as the judge (always, unless more than a third lie)."""
        known = self.judge.hashes
        return height == 0 or (height <= len(known) and peer.blocks[height - 1].hash == known[height - 1])

    async def _apply(self, peer: Peer, block: Decided, *, is_replay: bool) -> None:
        answer = await self._call(peer, "finalize_block", self._request(pb.RequestFinalizeBlock, block))
        if peer.armed == "after results":
            self._die(peer, "after results")
        process = peer.process
        kept_from = (await self._call(peer, "commit", pb.RequestCommit())).retain_height
        self.judge.require("snapshots serve", kept_from <= block.height, f"a node may not prune up to {kept_from}")
        peer.base = max(peer.base, kept_from - 1)
        if peer.is_liar or not self._is_canonical(peer, block.height) or process is None:
            return
        applied = self.judge.expected[block.height - 1]
        where = f"agent {peer.index} at height {block.height}"
        hashes = "replay gives the same" if is_replay else "equal app hashes"
        self.judge.require(hashes, answer.app_hash == applied.replica.app_hash, where)
        self.judge.require("block alone decides", process.app.app_hash == applied.replica.app_hash, where)
        codes = tuple(result.code == 0 for result in answer.tx_results)
        updates = sorted((update.pub_key.ed25519.hex(), update.power) for update in answer.validator_updates)
        keys = {member.validator_address: member.validator_key for member in self.genesis.members}
        wanted = sorted((keys[address], power) for address, power in applied.powers)
        self.judge.require("equal results", codes == applied.accepted and updates == wanted, where)
        self.judge.require(
            "durable before answered", peer.disk.saved == applied.replica.encode(), f"{where}: the disk differs"
        )

    async def _catch_up(self) -> None:
        """Block sync: whoever is behind gets the next blocks from somebody that it can hear."""
        frontier = max(peer.height for peer in self.peers)
        if behind := [peer for peer in self.peers if peer.is_up and peer.height < frontier]:
            await self._all(self._follow(peer) for peer in behind)

    async def _follow(self, peer: Peer) -> None:
        while peer.is_up:
            ahead = [one for one in self.peers if one.is_up and one.height > peer.height and self.reaches(one, peer)]
            able = [one for one in ahead if one.base <= peer.height]
            if not able:
                if self._has_lost_touch(peer):
                    self.crash(peer, "it was away for too long, and its owner removes its data")
                    peer.wipe()
                    self._revive_later(peer)
                return
            source = able[0]
            block = source.blocks[peer.height]
            if peer.height and source.blocks[peer.height - 1] != peer.blocks[-1]:
                self.judge.require("agreement", peer.is_liar or source.is_liar, f"a fork at height {peer.height}")
                return
            commit = source.commit if source.height == block.height else seen_votes(block, source)
            await self._decide(peer, block, commit)
            await asyncio.sleep(0.001)

    # ---- mempools

    async def _broadcast(self, peer: Peer, tx: bytes) -> int:
        """As the node's RPC does: CheckTx here, then gossip."""
        return await self._take(peer, tx)

    async def _take(self, peer: Peer, tx: bytes) -> int:
        if tx in peer.seen or not peer.is_up:
            return 0
        try:
            code: int = (await self._call(peer, "check_tx", pb.RequestCheckTx(tx=tx))).code
        except Killed:
            return 1
        self._check_own(peer, tx, code)
        if code == 0 and tx not in peer.seen:
            peer.seen.add(tx)
            peer.mempool[tx] = None
            self._wake.set()
            for other in self.peers:
                if other is not peer:
                    self._send(peer, other, tx)
        return code

    def _send(self, source: Peer, target: Peer, tx: bytes) -> None:
        """Once per peer."""
        slowest = 0.05 + (self.slow_s if self.links.get((source.index, target.index)) == "slow" else 0)
        delay_s = self.rng.uniform(0.001, slowest * (4 if self.rng.random() < self.disorder else 1))
        asyncio.get_running_loop().call_later(delay_s, self._arrive, source, target, tx)

    def _arrive(self, source: Peer, target: Peer, tx: bytes) -> None:
        """Over a connection that waits while the link is cut."""
        if tx in target.seen and not self.twice:
            return
        if not self.reaches(source, target) or not target.is_up:
            asyncio.get_running_loop().call_later(_RECONNECT_S, self._arrive_late, source, target, tx)
            return
        work = self._receive(target, tx)
        try:
            work.send(None)  # CheckTx waits for nothing, and a task would cost more than it does
        except StopIteration:
            return
        work.close()
        self.judge.require("nobody fails", False, f"CheckTx of agent {target.index} waits for something")

    def _arrive_late(self, source: Peer, target: Peer, tx: bytes) -> None:
        if tx in source.mempool:
            self._arrive(source, target, tx)

    async def _receive(self, target: Peer, tx: bytes) -> None:
        await self._take(target, tx)
        if self.twice and self.rng.random() < self.twice and target.is_up:
            try:
                await self._call(target, "check_tx", pb.RequestCheckTx(tx=tx))
            except Killed:
                return

    def _check_own(self, peer: Peer, tx: bytes, code: int) -> None:
        """13: an honest agent's payload that counts now is not refused by its own CheckTx."""
        process = peer.process
        if process is None or code == 0 or peer.is_liar or tx[:1] != bytes([Kind.PAYLOAD]):
            return
        payload = SignedPayload.decode(tx[1:]) if len(tx) > 200 else None
        if payload is not None and payload.sender == process.key.address and peer.height == len(self.judge.expected):
            counts = self.judge.witness.why_not(payload) is None and self._is_canonical(peer, peer.height)
            self.judge.require("mempool settles", not counts, f"agent {peer.index}'s own payload is refused")

    async def _recheck(self, peer: Peer) -> None:
        for tx in list(peer.mempool):
            answer = await self._call(peer, "check_tx", pb.RequestCheckTx(tx=tx, type=pb.RECHECK))
            if answer.code:
                del peer.mempool[tx]
                peer.seen.discard(tx)
        if peer.is_liar or not self._is_canonical(peer, peer.height):
            return
        sequence = self.judge.expected[peer.height - 1].replica.period.sequence
        for tx in (one for one in peer.mempool if one[:1] != bytes([Kind.EVIDENCE])):
            try:
                payload = SignedPayload.decode(tx[1:])
            except PeerError:
                self.judge.require("mempool settles", False, f"agent {peer.index} keeps junk in its mempool")
                return
            self.judge.require(
                "mempool settles",
                sequence * (tx[0] != Kind.UPGRADE) <= payload.sequence <= sequence + rules.AHEAD,
                f"agent {peer.index} keeps a payload for round {payload.sequence} in round {sequence}",
            )

    # ---- lies

    def _twist(self, liar: Peer, height: int, txs: tuple[bytes, ...]) -> list[Decided]:
        """What a lying proposer sends in place of its application's proposal; nothing where it is honest today."""
        if liar.process is None:
            return []
        if "equivocating proposer" in self.lies:
            one = self._block(liar, height, txs)
            if self.rng.random() < 0.5:
                return [one, self._block(liar, height, self._junk(liar, txs))]
            seen = tuple(there and index != liar.index for index, there in enumerate(one.present))
            return [one, replace(one, txs=(), present=seen)]  # both are sound; only one may be decided
        if "garbage proposal" in self.lies and self.rng.random() < 0.7:
            return [self._block(liar, height, self._junk(liar, txs))]
        if "omission" in self.lies:
            return [self._block(liar, height, txs[1:])]
        return []

    def _junk(self, liar: Peer, txs: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Transactions that no honest proposer writes."""
        rng, old = self.rng, [tx for block in liar.blocks[-6:] for tx in block.txs]
        kinds: list[Callable[[], tuple[bytes, ...]]] = [
            lambda: (*txs, rng.randbytes(rng.randint(0, 40))),
            lambda: (*txs, *txs),
            lambda: (*old[:2], *txs),
            lambda: tuple(reversed(txs)) + txs[:1],
            lambda: (bytes([Kind.BUNDLE]), *txs),
            lambda: tuple(_flip(tx, rng) for tx in txs) or (b"\x02",),
            lambda: (*txs, encode_bundle([self._forged(liar)])),
            lambda: (*txs, encode_single(Kind.PAYLOAD, self._forged(liar))),
            lambda: (*txs, encode_single(Kind.TICK, self._forged(liar))),
            lambda: (),
        ]
        return rng.choice(kinds)()

    def _forged(self, liar: Peer) -> SignedPayload:
        """A payload in an honest agent's name, or the liar's own for another moment."""
        process = liar.process
        assert process is not None, "a dead liar tells no lies"  # noqa: S101
        period = process.app.period
        body = self.rng.choice((b"0", b'"0x"', b"null", b"{}", b"1" * 9000))[:8192]
        unsigned = rules.payload_for(self.genesis.chain_id, period, body)
        victim = self.rng.choice(self.judge.members)
        who = self.rng.choice((victim, process.key.address))
        signature = process.key.sign_digest(unsigned.digest())
        return unsigned.signed(who, signature)

    async def _extend_falsely(self, liar: Peer, block: Decided, votes: dict[tuple[int, bytes], _Vote]) -> None:
        await self._extend(liar, block, votes)
        if "garbage extension" not in self.lies or not liar.is_up:
            return
        rng = self.rng
        others = [vote.extension for (index, _), vote in votes.items() if index != liar.index and vote.extension]
        stale = [vote.extension for vote in liar.commit.values()]
        junk = rng.choice((
            rng.randbytes(rng.randint(1, 300)),
            bytes(9000),
            rng.choice(others or [b"x"]),
            rng.choice(stale or [b""]),
            self._forged(liar).encode(),
            misstated := self._misstated(liar, block),
        ))  # fmt: skip
        if junk is misstated:
            self.misstated[liar.index, block.hash] = None
        wild = rng.choice((-600_000, 0, 600_000)) + int(self.wall_s(liar) * 1000)
        votes[liar.index, block.hash] = _Vote(junk, wild)

    def _misstated(self, liar: Peer, block: Decided) -> bytes:
        """A signed app hash to which the block does not lead."""
        wrong = UnsignedStatement(self.genesis.chain_id, block.height, block.hash, self.rng.randbytes(32))
        return join(wrong.app_hash, keys(len(self.peers))[liar.index].sign_digest(wrong.digest()))

    async def flood(self, liar: Peer) -> None:
        """Fill the mempools: every peer's node is handed the same junk."""
        old = [tx for block in liar.blocks[-4:] for tx in block.txs]
        for _ in range(3):
            if (process := liar.process) is None:  # it may die of what came before
                return
            period = process.app.period
            unsigned = rules.payload_for(self.genesis.chain_id, period, b"%d" % self.rng.randrange(100))
            ahead = self.rng.choice((1, 2, 3, 9))
            future = replace(unsigned, sequence=unsigned.sequence + ahead, opening=bytes(32))
            signed = future.signed(process.key.address, process.key.sign_digest(future.digest()))
            tick = rules.tick_for(self.genesis.chain_id, period, self.rng.randrange(12))
            ticked = tick.signed(process.key.address, process.key.sign_digest(tick.digest()))
            junk = self.rng.choice((
                encode_single(Kind.PAYLOAD, signed),
                encode_single(Kind.TICK, ticked),
                self.rng.randbytes(30),
                self.rng.choice(old or [b""]),
                encode_single(Kind.PAYLOAD, self._forged(liar)),
            ))  # fmt: skip
            await self._take(self.rng.choice(self.peers), junk)

    # ---- calls

    async def _call(self, peer: Peer, name: str, request: Any) -> Any:
        """Ask the application; it may be killed before, inside or after the call."""
        process = peer.process
        if process is None:
            raise Killed
        if peer.armed == f"{name}:before":
            self._die(peer, peer.armed)
        is_pure = name in _PURE
        state, saves = process.app.app_hash, peer.disk.saves
        handler: Callable[[Any], Awaitable[Any]] = getattr(process.app, name)
        try:
            answer = await handler(request)
        except Killed:
            raise
        except UpgradeDue:
            self.spawn(self._retire(peer, process))
            self._die(peer, "the next block is not of its version")
        except SetupError as error:
            self.judge.require("nobody fails", peer.disk.is_full, f"{name} of agent {peer.index}: {error!r}")
            self._die(peer, f"{name} found no room on the disk")
        except Exception as error:  # an honest application answers; a liar's own is none of our business
            self.judge.require("nobody fails", False, f"{name} of agent {peer.index}: {error!r}")
            self._die(peer, f"{name} failed")
        if not process.is_alive:
            raise Killed
        if is_pure and peer.process is process:
            self.judge.require("handlers change nothing", process.app.app_hash == state, name)
        if name not in ("commit", "apply_snapshot_chunk"):
            self.judge.require("written in Commit only", peer.disk.saves == saves, f"{name} wrote a state")
        if isinstance(failure := process.failure, UpgradeDue):
            if name == "commit":
                self.spawn(self._retire(peer, process))
        else:
            is_well = failure is None or peer.is_liar
            self.judge.require("nobody fails", is_well, lambda: f"agent {peer.index}: {failure!r}")
        if peer.armed == f"{name}:after":
            self._die(peer, peer.armed)
        return answer

    async def _retire(self, peer: Peer, process: Process) -> None:
        """Its version's last block is done: the host ends it, and its operator starts it again by and by."""
        await asyncio.sleep(self.rng.uniform(0, 0.05))
        if peer.process is process:
            self.crash(peer, "its version has done its last block")
        await asyncio.sleep(self.rng.uniform(0.05, 2))
        await self.revive(peer)

    def at(self, peer: Peer, point: str) -> None:
        """A crash point inside a call."""
        if peer.armed == point:
            self._die(peer, point)

    def _die(self, peer: Peer, why: str) -> None:
        self.crash(peer, why)
        raise Killed

    async def _latency(self) -> None:
        slow = self.slow_s if self.slow_s and self.rng.random() < 0.3 else 0.0
        await asyncio.sleep(self.rng.uniform(0.002, 0.010) + slow)

    async def _all(self, work: Iterable[Coroutine[Any, Any, None]]) -> None:
        await asyncio.gather(*work)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something happen beside consensus."""
        self._keep(asyncio.get_running_loop().create_task(work))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _request(self, kind: Any, block: Decided) -> Any:
        """The block as an ABCI request; one object for all, which nobody changes."""
        cache: dict[Any, Any] = block.__dict__.setdefault("_requests", {})
        if kind not in cache:
            request = kind(txs=block.txs, height=block.height, hash=block.hash)
            request.time.FromMilliseconds(block.time_ms)
            request.proposer_address = self.addresses[block.proposer]
            decided = kind is pb.RequestFinalizeBlock
            info = request.decided_last_commit if decided else request.proposed_last_commit
            if block.height > 1:
                for address, is_present in zip(self.addresses, block.present, strict=True):
                    _add_vote(info.votes, address, is_present, None)
            cache[kind] = request
        return cache[kind]

    def _init_request(self) -> Any:
        document = self.genesis.document()
        state = json.dumps(document["app_state"]).encode()
        request = pb.RequestInitChain(chain_id=document["chain_id"], app_state_bytes=state)
        for validator in document["validators"]:
            update = request.validators.add(power=int(validator["power"]))
            update.pub_key.ed25519 = base64.b64decode(validator["pub_key"]["value"])
        return request


def _add_vote(votes: Any, address: bytes, is_present: bool, extension: bytes | None) -> None:
    vote = votes.add()
    vote.validator.address = address
    vote.block_id_flag = _COMMIT if is_present else _ABSENT
    if extension:
        vote.vote_extension = extension


def seen_votes(block: Decided, source: Peer) -> dict[int, _Vote]:
    """The commit of an older block, as the next block's header shows it; extensions of old blocks are not kept."""
    after = source.blocks[block.height]
    return {i: _Vote(b"", block.time_ms + 1) for i, is_there in enumerate(after.present) if is_there}


def _overhead(size: int) -> int:
    """protobuf's: a tag and the length as a varint."""
    return 1 + max(1, -(-size.bit_length() // 7))


def _flip(tx: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(tx)) if tx else 0
    return tx[:at] + bytes([tx[at] ^ (1 << rng.randrange(8))]) + tx[at + 1 :] if tx else b"\x00"
