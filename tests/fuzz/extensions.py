"""What peers put into vote extensions and mempools, as CometBFT hands it to an application."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.message import DecodeError

from quorate.abci import ServiceApp, Store
from quorate.abci.machine import Replica, tick_for
from quorate.abci.payload import SignedPayload
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.abci.statement import UnsignedStatement, join, split
from quorate.abci.transaction import Kind, encode_bundle, encode_single
from quorate.errors import PeerError
from tests.chain_of_agents.services import deadline
from tests.fuzz.engine import Target, mutate_bytes
from tests.fuzz.payloads import mutate_wire
from tests.unit.scripted_consensus import ACCEPT, Consensus, Recorder

__all__ = ["Extensions"]

_MOST_VOTES = 12
_JUDGED, _DECIDED = (hashlib.sha256(name).digest() for name in (b"judged", b"decided"))


class Extensions(Target):
    """VerifyVoteExtension, PrepareProposal, ProcessProposal, FinalizeBlock and CheckTx of real applications.

    The input is a RequestPrepareProposal: its votes carry the extensions, its transactions are the mempool's.
    """

    name = "extensions"

    def __init__(self) -> None:
        logging.getLogger("quorate.abci.app").setLevel(logging.CRITICAL)
        self._folder = TemporaryDirectory()
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._begin(Path(self._folder.name)))

    async def _begin(self, folder: Path) -> None:
        """A chain of four in its third block, whose round has a running clock, and one agent that has seen nothing."""
        self._net = Consensus(folder, is_fast=False, service=deadline)
        await self._net.init()
        for _ in range(3):
            await self._net.block([])
        key = self._net.keys[0]
        agent = Recorder(key, "chain-1", False)
        self._late = ServiceApp(deadline, self._net.genesis, key.address, Store(folder / "late.db", "chain-1"), agent)
        agent.app = self._late

    def seeds(self) -> Iterable[bytes]:
        payloads = [agent.payload(self._net.apps[0].period) for agent in self._net.agents]
        ticks = [self._tick(index) for index in range(2)]
        yield self._request([payload.encode() for payload in payloads], []).SerializeToString()
        late = [encode_single(Kind.PAYLOAD, payload) for payload in payloads[2:]]
        some = self._request([payloads[0].encode(), b"", b"junk", payloads[1].encode()], [*late, *ticks])
        yield some.SerializeToString()
        some.max_tx_bytes = 300
        yield some.SerializeToString()
        yield self._request([], [encode_bundle(payloads[:3]), ticks[0]]).SerializeToString()
        stated = [self._statement(index) + payload.encode() for index, payload in enumerate(payloads)]
        yield self._request([*stated[:2], self._statement(2), bytes(40)], late).SerializeToString()

    def _statement(self, index: int) -> bytes:
        """A wrong one of the block that is judged."""
        wrong = UnsignedStatement("chain-1", self._net.height + 1, _JUDGED, b"\7" * 32)
        return join(wrong.app_hash, self._net.keys[index].sign_digest(wrong.digest()))

    def _request(self, extensions: list[bytes], txs: list[bytes]) -> pb.RequestPrepareProposal:
        request = pb.RequestPrepareProposal(max_tx_bytes=1 << 20, height=self._net.height + 1, txs=txs)
        self._net._votes(request.local_last_commit.votes, (), False)
        for vote, extension in zip(request.local_last_commit.votes, extensions, strict=False):
            vote.vote_extension = extension
        request.time.FromMilliseconds(self._net.time_ms + 2_000)  # beyond the round's deadline
        return request

    def _tick(self, index: int) -> bytes:
        key, period = self._net.keys[index], self._net.apps[0].period
        tick = tick_for("chain-1", period, 0)
        return encode_single(Kind.TICK, tick.signed(key.address, key.sign_digest(tick.digest())))

    def mutate(self, data: bytes, other: bytes, rng: random.Random) -> bytes:
        try:
            request = pb.RequestPrepareProposal.FromString(data)
            mixed = pb.RequestPrepareProposal.FromString(other)
        except DecodeError:
            return mutate_bytes(data, other, rng)
        votes, txs = request.local_last_commit.votes, request.txs
        for _ in range(rng.choice((1, 1, 3))):
            match rng.randrange(8):
                case 0 | 1 if votes:
                    vote = rng.choice(votes)
                    vote.vote_extension = _varied_extension(vote.vote_extension, rng)
                case 2 if txs:
                    txs[rng.randrange(len(txs))] = _varied(rng.choice(txs), rng)
                case 3 if votes:
                    rng.choice(votes).block_id_flag = rng.choice((0, 1, 2, 3, 99))  # type: ignore[assignment]  # also what is no flag
                case 4 if votes:
                    chosen = rng.choice(votes)
                    chosen.validator.address = rng.choice((b"", b"x" * 20, rng.choice(votes).validator.address))
                case 5:
                    request.max_tx_bytes = rng.choice((0, 1, 200, 500, 700, 1 << 20))
                case 6 if mixed.local_last_commit.votes:
                    votes.append(rng.choice(mixed.local_last_commit.votes))
                case _:
                    pool = [*mixed.txs, *(vote.vote_extension for vote in votes)]
                    txs.append(_varied(rng.choice(pool), rng) if pool else b"")
        del votes[_MOST_VOTES:], txs[_MOST_VOTES:]
        return bytes(request.SerializeToString())

    def run(self, data: bytes) -> str:
        try:
            request = pb.RequestPrepareProposal.FromString(data)
        except DecodeError:
            return "no request"
        if request.time.seconds < 0 or request.time.seconds > 2**33 or not 0 <= request.time.nanos < 10**9:
            return "no time"  # CometBFT makes it; no peer does
        return self._loop.run_until_complete(self._asked(request))

    async def _asked(self, request: pb.RequestPrepareProposal) -> str:
        apps = self._net.apps
        before = [_state(app) for app in (*apps, self._late)]
        checked = [await self._checked(tx) for tx in request.txs[:_MOST_VOTES]]
        proposal = list((await apps[0].prepare_proposal(request)).txs)
        assert sum(map(len, proposal)) <= max(0, request.max_tx_bytes), "a proposal is larger than CometBFT allows"
        assert await self._judged(request, proposal) == ACCEPT, "an honest proposal is refused (requirement 3)"
        verdicts = [await self._verified(vote) for vote in request.local_last_commit.votes[:_MOST_VOTES]]
        status = await self._judged(request, list(request.txs))
        counted = await self._decided(request, list(request.txs))
        if status == ACCEPT:
            assert all(counted), "an accepted proposal holds a transaction that does not count"
        after = [_state(app) for app in (*apps, self._late)]
        assert after == before, "a state was changed before Commit (requirement 9)"
        self._forget()
        return f"{sum(verdicts)} verified, {len(proposal)} proposed, {any(checked)}, {status}, {sum(counted)}"

    async def _verified(self, vote: pb.ExtendedVoteInfo) -> bool:
        request = pb.RequestVerifyVoteExtension(
            validator_address=vote.validator.address,
            height=self._net.height + 1,
            hash=_JUDGED,
            vote_extension=vote.vote_extension,
        )
        said = {(await app.verify_vote_extension(request)).status for app in (self._net.apps[1], self._late)}
        assert len(said) == 1, "nodes disagree about an extension (requirements 7 and 8)"
        if said == {pb.ResponseVerifyVoteExtension.REJECT}:
            return False
        if wire := split(vote.vote_extension)[1]:
            sender = SignedPayload.decode(wire).sender
            member = next(m for m in self._net.genesis.members if m.address == sender)
            assert member.validator_address == vote.validator.address.hex().upper(), "an extension of somebody else's"
        return True

    async def _checked(self, tx: bytes) -> bool:
        codes = {(await app.check_tx(pb.RequestCheckTx(tx=tx))).code for app in self._net.apps[:2]}
        assert len(codes) == 1, "nodes in one state disagree about a transaction (requirement 13)"
        return codes == {0}

    async def _judged(self, request: pb.RequestPrepareProposal, txs: list[bytes]) -> int:
        proposal = pb.RequestProcessProposal(txs=txs, height=self._net.height + 1, hash=_JUDGED, time=request.time)
        said = set()
        for app in self._net.apps[1:3]:
            app._speculated.clear()
            said.add((await app.process_proposal(proposal)).status)
        assert len(said) == 1, "nodes in one state disagree about a proposal (requirement 5)"
        return said.pop()

    async def _decided(self, request: pb.RequestPrepareProposal, txs: list[bytes]) -> list[bool]:
        block = pb.RequestFinalizeBlock(txs=txs, height=self._net.height + 1, hash=_DECIDED, time=request.time)
        answers = []
        for app in self._net.apps[1:3]:
            app._speculated.clear()
            answers.append(await app.finalize_block(block))
            if app._quiet is not None:
                app._quiet.cancel()
        assert len({answer.app_hash for answer in answers}) == 1, "the nodes part (requirement 11)"
        assert len(answers[0].tx_results) == len(txs), "a result for each transaction"
        return [result.code == 0 for result in answers[0].tx_results]

    def _forget(self) -> None:
        """What an application holds between Commits, of which there are none here."""
        for app, agent in zip(self._net.apps, self._net.agents, strict=True):
            app._speculated.clear()
            app._finalized = app._quiet = None
            app._stating, app._stated, app._suspected = {}, {}, {}
            app._outbox.forget_before(app.period.sequence)
            agent.opens.clear()

    def close(self) -> None:
        self._loop.run_until_complete(self._net.close())
        self._loop.close()
        self._folder.cleanup()


def _state(app: ServiceApp) -> Replica:
    return app._replica


def _varied(wire: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.6 and (changed := mutate_wire(wire, rng)) is not None:
        return changed
    return mutate_bytes(wire, b"", rng)


def _varied_extension(wire: bytes, rng: random.Random) -> bytes:
    try:
        _, payload = split(wire)
    except PeerError:
        return mutate_bytes(wire, b"", rng)
    before = wire[: len(wire) - len(payload)]
    return mutate_bytes(before, b"", rng) + payload if rng.random() < 0.3 else before + _varied(payload, rng)
