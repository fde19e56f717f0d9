"""One agent as a process: `python -m tests.chain_of_agents.agent FOLDER`; FOLDER/agent.json says what it is.

It writes what happens as JSON lines beside its sockets and ends with code 3 where its chain failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from quorate.abci import (
    Genesis,
    Plan,
    Retention,
    ServiceApp,
    SignedPayload,
    UnsignedPayload,
    UnsignedStatement,
    UpgradeDue,
    Validator,
    Via,
    ask_for,
    opening_of,
    payload_for,
)
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.abci.transaction import Kind, encode_single
from quorate.errors import ConfigError
from quorate.fsm import Period, Settled, codec
from quorate.members import Change
from quorate.offences import Offence
from quorate.rounds.membership import CHANGE_MEMBERS
from tests.chain_of_agents.keys import Key, key_of
from tests.chain_of_agents.services import ALL
from tests.chain_of_agents.watched import Bomb, Journal, WatchedApp, WatchedArchive, WatchedStore

__all__ = ["AgentFile"]


@dataclass(frozen=True)
class AgentFile:
    """agent.json"""

    service: str
    index: int
    n: int
    binary: str
    sockets: str
    act_s: float = 0
    act_s_most: float = 0
    """Each act takes a random time from `act_s` to this, if this is more."""
    until: int = 10**9
    """No act in rounds after this one."""
    crash_in: str = ""
    """Where the process kills itself (or its node), once: a point of `watched`."""
    crash_at: int = 0
    """... and from which height on."""
    skew_s: float = 0
    """How far the application's clock is ahead."""
    environment: dict[str, str] = field(default_factory=dict)
    """What the process is started with beside ours, and its node with it."""
    misdeed: str = ""
    """What a faulty validator does: garbage_proposal, stale_proposal, omission, junk_extension, raises."""
    blocks: int = 10_000
    snapshot_every: int = 200
    snapshots: int = 10
    peers: tuple[str, ...] = ()
    uses_extensions: bool = True
    """False: payloads go as transactions alone, for comparison."""
    joins: bool = False

    @property
    def journal(self) -> Path:
        """Not in the agent's home: that may lie on a disk that a test fills up."""
        return Path(self.sockets) / "events.jsonl"


class Config:
    """What the acts of the test services read."""

    def __init__(self, file: AgentFile, folder: Path) -> None:
        self._act_s = (file.act_s, max(file.act_s, file.act_s_most))
        self._allowed, self._approved = folder.parent / "allowed", folder / "approved"

    @property
    def act_s(self) -> float:
        """How long the next act takes."""
        return random.uniform(*self._act_s)

    def allowed(self) -> int:
        return int(self._allowed.read_text() or 0) if self._allowed.exists() else 0

    def approved(self) -> Change | None:
        """What this agent's operator has handed in; a join also lets the joiner's node connect."""
        try:
            approved: Change = codec.decode(Change, self._approved.read_bytes())
        except FileNotFoundError:
            return None
        return approved

    def forget(self) -> None:
        self._approved.unlink(missing_ok=True)


class Context:
    def __init__(self, me: str, config: Config) -> None:
        self.me, self.config, self.log = me, config, None

    @property
    def approved(self) -> Change | None:
        return self.config.approved()

    async def beacon(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SimpleAgent:
    """Runs the act of each opening once, and signs with its key."""

    def __init__(self, key: Key, context: Context, journal: Journal, until: int, chain_id: str) -> None:
        self.key, self.context, self.journal, self.until, self.chain_id = key, context, journal, until, chain_id
        self.app: ServiceApp | None = None
        self.acts: dict[bytes, asyncio.Task[None]] = {}

    def opened(self, period: Period, committed: bool) -> None:
        opening = opening_of(period)
        if opening in self.acts or period.sequence > self.until:
            return
        for old in [key for key, task in self.acts.items() if task.done()][:-8]:
            del self.acts[old]
        self.acts[opening] = asyncio.get_running_loop().create_task(self._act(period))

    async def _act(self, period: Period) -> None:
        await self._ask(period)
        value = await period.round.act(self.context, period.state)
        unsigned = payload_for(self.chain_id, period, period.round.encode(value))
        assert self.app is not None
        self.journal.write("ready", sequence=period.sequence)
        self.app.offer(unsigned.signed(self.key.address, self.key.sign_digest(unsigned.digest())))

    async def _ask(self, period: Period) -> None:
        """Ask for the change that the operator approves, in every round until the interrupt is there."""
        assert self.app is not None
        change = self.context.config.approved()
        if change is None:
            return
        if change.join is not None:
            self.app.welcome(change.join.node_id)
        if not period.interrupted and (CHANGE_MEMBERS, self.key.address) not in period.asks:
            unsigned = payload_for(self.chain_id, period, period.ask(CHANGE_MEMBERS))
            self.app.ask(unsigned.signed(self.key.address, self.key.sign_digest(unsigned.digest())))

    def settled(self, settled: Settled, period: Period, height: int) -> None:
        """The journal has it already."""
        if settled.round_name == "ChangeMembersRound":
            self.context.config.forget()

    def sent(self, payload: SignedPayload, via: Via) -> None:
        self.journal.write("sent", sequence=payload.sequence, via=via, payload=payload.encode().hex())

    def offended(self, offence: Offence, proof: bytes) -> None:
        self.journal.write("offence", what=offence.kind, member=offence.member, sequence=offence.sequence)

    async def sign_tick(self, tick: UnsignedPayload) -> bytes:
        self.journal.write("tick", sequence=tick.sequence)
        return self.key.sign_digest(tick.digest())

    async def sign_statement(self, statement: UnsignedStatement) -> bytes:
        return self.key.sign_digest(statement.digest())


class FaultyApp(WatchedApp):
    """The application of a validator that misbehaves."""

    file: AgentFile

    async def process_proposal(self, request: pb.RequestProcessProposal) -> pb.ResponseProcessProposal:
        if self.file.misdeed == "diverges" and request.height >= self.file.crash_at:
            self._replica = replace(self._replica, absences=(("nobody", 1),))  # as if a bit of its memory turned over
        return await super().process_proposal(request)

    async def finalize_block(self, request: pb.RequestFinalizeBlock) -> pb.ResponseFinalizeBlock:
        answer = await super().finalize_block(request)
        if self.file.misdeed == "raises" and request.height == self.file.crash_at:
            raise RuntimeError("the application was told to fail")
        return answer

    async def prepare_proposal(self, request: pb.RequestPrepareProposal) -> pb.ResponsePrepareProposal:
        answer = await super().prepare_proposal(request)
        if self.file.misdeed == "garbage_proposal":
            return pb.ResponsePrepareProposal(txs=[b"\x01" + os.urandom(300)])
        if self.file.misdeed == "omission":
            return pb.ResponsePrepareProposal(txs=[tx for tx in answer.txs if tx[0] != 1])
        if self.file.misdeed == "stale_proposal":
            self.seen = [*getattr(self, "seen", []), *answer.txs][-20:]
            return pb.ResponsePrepareProposal(txs=self.seen[:1])
        return answer

    async def check_tx(self, request: pb.RequestCheckTx) -> pb.ResponseCheckTx:
        if self.file.misdeed == "two_words":  # whatever it is, its node passes it on
            return pb.ResponseCheckTx()
        return await super().check_tx(request)

    async def extend_vote(self, request: pb.RequestExtendVote) -> pb.ResponseExtendVote:
        if self.file.misdeed == "diverges":  # it says so in one vote only: on a slow machine it would go without
            await asyncio.gather(*self._stating.values())
        if self.file.misdeed == "junk_extension":
            return pb.ResponseExtendVote(vote_extension=os.urandom(300))
        if not self.file.uses_extensions:
            return pb.ResponseExtendVote()
        return await super().extend_vote(request)

    def offer(self, payload: SignedPayload) -> None:
        super().offer(payload)
        if self.file.misdeed == "two_words":
            unsigned = replace(payload_for(self.genesis.chain_id, self.period, b"99"), sequence=payload.sequence)
            unsigned = replace(unsigned, period=payload.period, round=payload.round, opening=payload.opening)
            other = unsigned.signed(self.me, key_of(self.file.index, self.file.n).sign_digest(unsigned.digest()))
            self._spawn(self._hand_over(encode_single(Kind.PAYLOAD, other)))
        if not self.file.uses_extensions:
            self._send(payload)


async def _ask_when_told(folder: Path, app: ServiceApp, key: Key) -> None:
    """The operator's ask.json holds a plan for an upgrade: ask for it, once."""
    path = folder / "ask.json"
    while True:
        await asyncio.sleep(0.05)
        if path.exists():
            unsigned = ask_for(app.genesis.chain_id, app.period, codec.decode(Plan, path.read_bytes()))
            path.unlink()
            app.ask_upgrade(unsigned.signed(key.address, key.sign_digest(unsigned.digest())))


async def _run(folder: Path) -> int:
    file = AgentFile(**json.loads((folder / "agent.json").read_text()))
    journal = Journal(file.journal)
    key = key_of(file.index, file.n)
    genesis = Genesis.load(folder)
    retention = Retention(blocks=file.blocks, snapshot_every=file.snapshot_every, snapshots=file.snapshots)
    bomb = Bomb(file.crash_in, file.crash_at, folder / "crashed")
    archive = WatchedArchive(folder / "snapshots", retention, bomb)
    agent = SimpleAgent(key, Context(key.address, Config(file, folder)), journal, file.until, genesis.chain_id)
    store = WatchedStore(folder / "app.db", genesis.chain_id, bomb)
    try:
        app = FaultyApp(
            ALL[file.service],
            genesis,
            key.address,
            store,
            agent,
            archive=archive,
            joins=file.joins,
            wall_clock=lambda: time.time() + file.skew_s,
            journal=journal,
            bomb=bomb,
        )
    except ConfigError as error:  # another version of the service has to go on, or is not there yet
        journal.write("refused", error=error.message, fix=error.fix, is_due=isinstance(error, UpgradeDue))
        return 4
    app.file, agent.app = file, app
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    asking = asyncio.create_task(_ask_when_told(folder, app, key))
    async with Validator(app, folder, Path(file.binary), Path(file.sockets), file.peers) as validator:
        bomb.node = lambda: validator.node.pid
        journal.write("started", node=validator.node.pid)
        validator.failed.add_done_callback(lambda _: stopped.set())
        app.left.add_done_callback(lambda _: stopped.set())
        await stopped.wait()
        asking.cancel()
        if validator.failed.done():
            journal.write("failed", error=repr(validator.failed.result()))
            return 3
        if app.left.done():
            journal.write("left", height=app.height)
    return 0


if __name__ == "__main__":
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sys.exit(asyncio.run(_run(Path(sys.argv[1]))))
