"""One agent as a process: `python -m tests.chain_of_agents.agent FOLDER`; FOLDER/agent.json says what it is.

It writes what happens as JSON lines to FOLDER/events.jsonl and ends with code 3 where its chain failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorate.abci import (
    Archive,
    Genesis,
    Plan,
    Retention,
    ServiceApp,
    SignedPayload,
    Store,
    UnsignedPayload,
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
from quorate.rounds.membership import CHANGE_MEMBERS
from tests.chain_of_agents.keys import Key, key_of
from tests.chain_of_agents.services import ALL

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
    """Where the process kills itself, once: finalize, before_save, after_save."""
    crash_at: int = 0
    """... and at which height."""
    misdeed: str = ""
    """What a faulty validator does: garbage_proposal, stale_proposal, omission, junk_extension, raises."""
    blocks: int = 10_000
    snapshot_every: int = 200
    snapshots: int = 10
    peers: tuple[str, ...] = ()
    uses_extensions: bool = True
    """False: payloads go as transactions alone, for comparison."""
    joins: bool = False


class Journal:
    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        if self._file.tell():
            self._file.write("\n")  # the last line of a killed life may have no end

    def write(self, kind: str, **fields: Any) -> None:
        self._file.write(json.dumps({"t": time.time(), "kind": kind, **fields}) + "\n")


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
        request = period.ask(CHANGE_MEMBERS)
        if not period.interrupted and (CHANGE_MEMBERS, self.key.address) not in period.asks:
            unsigned = payload_for(self.chain_id, period, request)
            signed = unsigned.signed(self.key.address, self.key.sign_digest(unsigned.digest()))
            await self.app._hand_over(encode_single(Kind.PAYLOAD, signed))

    def settled(self, settled: Settled, period: Period, height: int) -> None:
        assert self.app is not None
        if settled.round_name == "ChangeMembersRound":
            self.context.config.forget()
        self.journal.write(
            "settled",
            sequence=settled.sequence,
            round=settled.round_name,
            event=settled.event,
            height=height,
            digest=period.digest().hex(),
            members=period.members,
            state=json.loads(codec.encode(period.state)),
            version=period.service.version,
        )

    def sent(self, payload: SignedPayload, via: Via) -> None:
        self.journal.write("sent", sequence=payload.sequence, via=via, payload=payload.encode().hex())

    async def sign_tick(self, tick: UnsignedPayload) -> bytes:
        self.journal.write("tick", sequence=tick.sequence)
        return self.key.sign_digest(tick.digest())


class FaultyApp(ServiceApp):
    """The application, with a fault at a chosen point."""

    file: AgentFile
    folder: Path
    journal: Journal

    def _crash(self, point: str, height: int) -> None:
        marker = self.folder / "crashed"
        if (self.file.crash_in, self.file.crash_at) == (point, height) and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    async def finalize_block(self, request: pb.RequestFinalizeBlock) -> pb.ResponseFinalizeBlock:
        self._crash("finalize", request.height)
        answer = await super().finalize_block(request)
        if self.file.misdeed == "raises" and request.height == self.file.crash_at:
            raise RuntimeError("the application was told to fail")
        return answer

    async def commit(self, request: pb.RequestCommit) -> pb.ResponseCommit:
        self._crash("before_save", self.height + 1)
        answer = await super().commit(request)
        self._crash("after_save", self.height)
        self.journal.write("commit", height=self.height, app_hash=self.app_hash.hex(), asleep=self.is_asleep)
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

    async def extend_vote(self, request: pb.RequestExtendVote) -> pb.ResponseExtendVote:
        if self.file.misdeed == "junk_extension":
            return pb.ResponseExtendVote(vote_extension=os.urandom(300))
        if not self.file.uses_extensions:
            return pb.ResponseExtendVote()
        return await super().extend_vote(request)

    def offer(self, payload: SignedPayload) -> None:
        super().offer(payload)
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
    journal = Journal(folder / "events.jsonl")
    key = key_of(file.index, file.n)
    genesis = Genesis.load(folder)
    retention = Retention(blocks=file.blocks, snapshot_every=file.snapshot_every, snapshots=file.snapshots)
    archive = Archive(folder / "snapshots", retention)
    agent = SimpleAgent(key, Context(key.address, Config(file, folder)), journal, file.until, genesis.chain_id)
    store = Store(folder / "app.db", genesis.chain_id)
    try:
        app = FaultyApp(ALL[file.service], genesis, key.address, store, agent, archive=archive, joins=file.joins)
    except ConfigError as error:  # another version of the service has to go on, or is not there yet
        journal.write("refused", error=error.message, fix=error.fix, is_due=isinstance(error, UpgradeDue))
        return 4
    app.file, app.folder, app.journal, agent.app = file, folder, journal, app
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    version = app.service.version
    journal.write("loaded", height=app.height, sequence=app.period.sequence, pid=os.getpid(), version=version)
    asking = asyncio.create_task(_ask_when_told(folder, app, key))
    async with Validator(app, folder, Path(file.binary), Path(file.sockets), file.peers) as validator:
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
