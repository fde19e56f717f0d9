"""A consensus that fits on a page: it calls the applications of one chain as CometBFT would, without a node."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from quorate.abci import (
    Broadcast,
    Genesis,
    ServiceApp,
    SignedPayload,
    Store,
    UnsignedPayload,
    UnsignedStatement,
    Via,
    make_testnet,
    payload_for,
)
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.fsm import Period, Service, Settled
from quorate.offences import Offence
from tests.chain_of_agents.keys import Key, keys
from tests.chain_of_agents.services import counting

__all__ = ["ACCEPT", "REJECT", "Consensus", "Recorder"]

ACCEPT, REJECT = pb.ResponseProcessProposal.ACCEPT, pb.ResponseProcessProposal.REJECT
COMMIT_FLAG, ABSENT_FLAG = 2, 1


class Recorder:
    """An agent that answers each round at once (`is_fast`), or when the test calls `answer`."""

    def __init__(self, key: Key, chain_id: str, is_fast: bool) -> None:
        self.key, self.chain_id, self.is_fast = key, chain_id, is_fast
        self.app: ServiceApp
        self.opens: list[tuple[int, bool]] = []
        self.settles: list[tuple[int, int]] = []
        self.ways: list[tuple[int, Via]] = []
        self.wants = ""
        """An interrupt that it asks for in every round that opens."""
        self.offences: list[tuple[Offence, bytes]] = []

    def opened(self, period: Period, committed: bool) -> None:
        self.opens.append((period.sequence, committed))
        if self.wants:
            self.ask(period, self.wants)
        if self.is_fast:
            self.answer(period)

    def ask(self, period: Period, event: str) -> None:
        unsigned = payload_for(self.chain_id, period, period.ask(event))
        self.app.ask(unsigned.signed(self.key.address, self.key.sign_digest(unsigned.digest())))

    def answer(self, period: Period) -> SignedPayload:
        payload = self.payload(period)
        self.app.offer(payload)
        return payload

    def payload(self, period: Period) -> SignedPayload:
        value = period.state.value + 1  # type: ignore[attr-defined]  # the test service's own state
        unsigned = payload_for(self.chain_id, period, period.round.encode(value))
        return unsigned.signed(self.key.address, self.key.sign_digest(unsigned.digest()))

    def settled(self, settled: Settled, period: Period, height: int) -> None:
        self.settles.append((settled.sequence, height))

    def sent(self, payload: SignedPayload, via: Via) -> None:
        self.ways.append((payload.sequence, via))

    def offended(self, offence: Offence, proof: bytes) -> None:
        self.offences.append((offence, proof))

    async def sign_tick(self, tick: UnsignedPayload) -> bytes:
        return self.key.sign_digest(tick.digest())

    async def sign_statement(self, statement: UnsignedStatement) -> bytes:
        return self.key.sign_digest(statement.digest())


class Consensus:
    """Decides one block after the other for its applications; every one is checked, as on a chain of honest nodes."""

    def __init__(
        self,
        folder: Path,
        *,
        is_fast: bool = True,
        service: Service = counting,
        n: int = 4,
        application: type[ServiceApp] = ServiceApp,
    ) -> None:
        self.homes = [folder / str(index) for index in range(n)]
        self.keys = keys(n)
        self.service = service
        self.genesis: Genesis = make_testnet(
            self.homes, chain_id="chain-1", service=service, signers=self.keys, ports=list(range(30001, 30001 + n))
        )
        self.is_fast, self.application = is_fast, application
        self.agents: list[Recorder] = []
        self.mempools: list[list[bytes]] = [[] for _ in range(n)]
        self.apps = [self._load(index) for index in range(n)]
        self.extensions: dict[int, bytes] = {}
        self.height = 0
        self.time_ms = int(time.time() * 1000)
        self.hashes: list[bytes] = []
        self.last_request = pb.RequestFinalizeBlock()

    def _load(self, index: int) -> ServiceApp:
        agent = Recorder(self.keys[index], "chain-1", self.is_fast)
        self.agents[index : index + 1] = [agent]
        store = Store(self.homes[index] / "app.db", "chain-1")
        app = agent.app = self.application(self.service, self.genesis, self.keys[index].address, store, agent)

        async def broadcast(tx: bytes) -> Broadcast:
            code = (await app.check_tx(pb.RequestCheckTx(tx=tx))).code
            if code == 0 and tx not in self.mempools[index]:
                self.mempools[index].append(tx)
            return Broadcast(code, "")

        app.start(broadcast)
        return app

    async def restart(self, index: int) -> ServiceApp:
        """As after kill -9: what was not durable is gone."""
        self.apps[index] = self._load(index)
        return self.apps[index]

    async def init(self) -> None:
        for app in self.apps:
            self.hashes[:] = [(await app.init_chain(self.init_request())).app_hash]
        await asyncio.sleep(0.05)

    def init_request(self) -> pb.RequestInitChain:
        document = self.genesis.document()
        state = json.dumps(document["app_state"]).encode()
        request = pb.RequestInitChain(chain_id=document["chain_id"], app_state_bytes=state)
        for validator in document["validators"]:
            update = request.validators.add(power=int(validator["power"]))
            update.pub_key.ed25519 = base64.b64decode(validator["pub_key"]["value"])
        return request

    def _votes(self, votes: object, absent: tuple[int, ...], with_extensions: bool) -> None:
        for index, member in enumerate(self.genesis.members):
            vote = votes.add()  # type: ignore[attr-defined]  # a repeated protobuf field
            vote.validator.address = bytes.fromhex(member.validator_address)
            vote.block_id_flag = ABSENT_FLAG if index in absent else COMMIT_FLAG
            if with_extensions and index not in absent:
                vote.vote_extension = self.extensions.get(index, b"")

    async def propose(self, proposer: int = 0, room: int = 1 << 20) -> list[bytes]:
        request = pb.RequestPrepareProposal(max_tx_bytes=room, height=self.height + 1, txs=self.mempools[proposer])
        self._votes(request.local_last_commit.votes, (), True)
        return list((await self.apps[proposer].prepare_proposal(request)).txs)

    async def judge(self, index: int, txs: list[bytes]) -> int:
        request = pb.RequestProcessProposal(txs=txs, height=self.height + 1, hash=_block_hash(b"judged"))
        request.time.FromMilliseconds(self.time_ms)
        status: int = (await self.apps[index].process_proposal(request)).status
        return status

    async def block(self, txs: list[bytes] | None = None, *, without: tuple[int, ...] = ()) -> bytes:
        """Decide one block; `without` agents are away. Returns the app hash, on which all others agree."""
        proposer = next(i for i in range(len(self.apps)) if i not in without)
        self.ask(await self.propose(proposer) if txs is None else txs)
        chosen = [i for i in range(len(self.apps)) if i not in without]
        await asyncio.gather(*map(self._vote, chosen))
        hashes = {await self.decide(self.apps[i]) for i in chosen}
        assert len(hashes) == 1, f"the agents part at block {self.height}"
        self.hashes.append(hashes.pop())
        for i in chosen:
            self.mempools[i] = [tx for tx in self.mempools[i] if (await self._recheck(i, tx)).code == 0]
        return self.hashes[-1]

    def ask(self, txs: list[bytes]) -> pb.RequestFinalizeBlock:
        """Make the next block of these transactions what the applications are asked about."""
        self.height += 1
        self.time_ms += 50
        self.last_request = pb.RequestFinalizeBlock(
            txs=txs, height=self.height, hash=_block_hash(b"block%d" % self.height)
        )
        self.last_request.time.FromMilliseconds(self.time_ms)
        self._votes(self.last_request.decided_last_commit.votes, (), False)
        return self.last_request

    async def _recheck(self, index: int, tx: bytes) -> pb.ResponseCheckTx:
        return await self.apps[index].check_tx(pb.RequestCheckTx(tx=tx, type=pb.RECHECK))

    async def _vote(self, index: int) -> None:
        assert await self.process(index) == ACCEPT
        self.extensions[index] = await self.extend(index)
        assert await self.verify(index, self.extensions[index]) == ACCEPT

    async def process(self, index: int) -> int:
        """What this application says to the block asked about."""
        answer = await self.apps[index].process_proposal(pb.RequestProcessProposal(**self._proposal()))
        status: int = answer.status
        return status

    async def extend(self, index: int) -> bytes:
        """This application's extension of its vote for the block asked about."""
        answer = await self.apps[index].extend_vote(pb.RequestExtendVote(**self._proposal()))
        extension: bytes = answer.vote_extension
        return extension

    def _proposal(self) -> dict[str, Any]:
        q = self.last_request
        same: dict[str, Any] = {"txs": q.txs, "height": q.height, "hash": q.hash, "time": q.time}
        return {**same, "proposed_last_commit": q.decided_last_commit}

    async def verify(self, validator: int, extension: bytes) -> int:
        """What all applications say to this extension of a validator's vote."""
        answers = {await self.verified_by(app, validator, extension) for app in self.apps}
        assert len(answers) == 1, "VerifyVoteExtension must be the same on all (requirement 8)"
        return answers.pop()

    async def verified_by(self, app: ServiceApp, validator: int, extension: bytes) -> int:
        """What one application says to it."""
        address = bytes.fromhex(self.genesis.members[validator].validator_address)
        request = pb.RequestVerifyVoteExtension(
            validator_address=address, height=self.height, hash=self.last_request.hash, vote_extension=extension
        )
        status: int = (await app.verify_vote_extension(request)).status
        return status

    async def decide(self, app: ServiceApp) -> bytes:
        app_hash: bytes = (await app.finalize_block(self.last_request)).app_hash
        await app.commit(pb.RequestCommit())
        assert app.app_hash == app_hash
        return app_hash

    async def close(self) -> None:
        for app in self.apps:
            await app.stop()
            assert not app.failed.done()


def _block_hash(name: bytes) -> bytes:
    """32 bytes, as CometBFT's are."""
    return hashlib.sha256(name).digest()
