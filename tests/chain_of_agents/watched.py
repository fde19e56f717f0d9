"""The application, its store and its archive with witnesses: they tell what happens, and die where the test says.

Nothing of it is in the production code: `WatchedApp`, `WatchedStore` and `WatchedArchive` are subclasses that an agent
of a test is made of. Each point is passed in one process; what is killed there is that process (and with it its node),
or, at the points that begin with `node_`, CometBFT alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quorate.abci import (
    Agent,
    Archive,
    Genesis,
    Retention,
    ServiceApp,
    SignedPayload,
    Store,
    UnsignedPayload,
    UnsignedStatement,
    Via,
)
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.fsm import Period, Service, Settled, codec
from quorate.offences import Offence
from quorate.units import Address

__all__ = [
    "BLOCK_POINTS",
    "NODE_POINTS",
    "ROUND_POINTS",
    "SNAPSHOT_POINTS",
    "Bomb",
    "Journal",
    "WatchedApp",
    "WatchedArchive",
    "WatchedStore",
]

ROUND_POINTS = ("prepare", "process", "processed", "opened", "offered", "extend", "extended", "verify", "sent")
"""The steps of a round, in the order in which one agent passes them; "opened" is where an act begins."""
BLOCK_POINTS = (
    "finalize",  # asked, nothing computed
    "finalized",  # computed, not answered
    "finalize_answered",  # CometBFT has the result and stores it
    "before_save",  # Commit is asked for
    "torn_save",  # half of what the write puts into the log of SQLite is there
    "after_save",  # durable, nothing else done
    "committed",  # all is done but the answer
    "commit_answered",
)
"""From FinalizeBlock's start to Commit's end."""
SNAPSHOT_POINTS = ("before_snapshot", "torn_snapshot", "after_snapshot")
"""Within the Commit of a block that a snapshot is made of."""
NODE_POINTS = ("node_finalize", "node_before_save", "node_after_save", "node_committed")
"""CometBFT is killed while the application is here."""


class Journal:
    """What one agent of a test saw, a JSON object a line, over all its lives."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        if self._file.tell():
            self._file.write("\n")  # the last line of a killed life may have no end

    def write(self, kind: str, **fields: Any) -> None:
        self._file.write(json.dumps({"t": time.time(), "kind": kind, **fields}) + "\n")


@dataclass
class Bomb:
    """Kills at `point`, once, as soon as it is passed at the height `at` or above."""

    point: str
    at: int
    marker: Path
    node: Callable[[], int | None] = field(default=lambda: None)
    """The process of CometBFT."""

    def is_due(self, point: str, height: int) -> bool:
        return point == self.point and height >= self.at and not self._is_marked()

    def pass_by(self, point: str, height: int) -> None:
        """This process is at `point` now; at the point that was chosen, that is the last thing it does."""
        if self.is_due(point, height):
            self.explode()
        if self.is_due(f"node_{point}", height) and (node := self.node()) is not None:
            self._mark()
            os.kill(node, signal.SIGKILL)

    def explode(self) -> None:
        self._mark()
        os.kill(os.getpid(), signal.SIGKILL)

    def _mark(self) -> None:
        self.marker.write_text(f"{self.point}@{self.at}")

    def _is_marked(self) -> bool:
        return self.marker.exists() and self.marker.read_text() == f"{self.point}@{self.at}"


class WatchedStore(Store):
    def __init__(self, path: str | Path, chain_id: str, bomb: Bomb) -> None:
        super().__init__(path, chain_id)
        self.bomb, self.height = bomb, 0

    def save(self, value: bytes) -> None:
        self.bomb.pass_by("before_save", self.height)
        log = Path(f"{self.path}-wal")
        before = log.stat().st_size if log.exists() else 0
        super().save(value)
        if self.bomb.is_due("torn_save", self.height):
            after = log.stat().st_size
            assert after > before, "the log of SQLite did not grow: nothing to tear"
            os.truncate(log, (before + after) // 2)
            self.bomb.explode()
        self.bomb.pass_by("after_save", self.height)

    def adopt(self, value: bytes) -> None:
        super().adopt(value)
        self.bomb.pass_by("adopted", 1)


class WatchedArchive(Archive):
    def __init__(self, folder: Path, retention: Retention, bomb: Bomb) -> None:
        super().__init__(folder, retention)
        self.bomb = bomb

    def committed(self, height: int, state: bytes, *, is_new_version: bool = False) -> int:
        if height % self.retention.snapshot_every:
            return super().committed(height, state, is_new_version=is_new_version)
        self.bomb.pass_by("before_snapshot", height)
        if self.bomb.is_due("torn_snapshot", height):
            (self._folder / "part").write_bytes(state[: len(state) // 2])
            self.bomb.explode()
        retain = super().committed(height, state, is_new_version=is_new_version)
        self.bomb.pass_by("after_snapshot", height)
        return retain


class _WatchedAgent:
    """Between the application and its agent."""

    def __init__(self, agent: Agent, journal: Journal, bomb: Bomb) -> None:
        self.agent, self.journal, self.bomb = agent, journal, bomb
        self.height: Callable[[], int] = lambda: 0

    def opened(self, period: Period, committed: bool) -> None:
        self.agent.opened(period, committed)
        self.bomb.pass_by("opened", self.height())

    def settled(self, settled: Settled, period: Period, height: int) -> None:
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
            value=getattr(period.state, "value", None),
            paid=getattr(period.state, "paid", None),
        )
        self.agent.settled(settled, period, height)

    def sent(self, payload: SignedPayload, via: Via) -> None:
        self.agent.sent(payload, via)
        self.bomb.pass_by("sent", self.height())

    def offended(self, offence: Offence, proof: bytes) -> None:
        self.agent.offended(offence, proof)

    async def sign_tick(self, tick: UnsignedPayload) -> bytes:
        return await self.agent.sign_tick(tick)

    async def sign_statement(self, statement: UnsignedStatement) -> bytes:
        return await self.agent.sign_statement(statement)


class WatchedApp(ServiceApp):
    def __init__(
        self,
        service: Service,
        genesis: Genesis,
        me: Address,
        store: WatchedStore,
        agent: Agent,
        *,
        journal: Journal,
        bomb: Bomb,
        **options: Any,
    ) -> None:
        watched = _WatchedAgent(agent, journal, bomb)
        super().__init__(service, genesis, me, store, watched, **options)
        watched.height = lambda: self.height + 1  # of the block that is being made
        self.journal, self.bomb, self.store = journal, bomb, store
        version = self.service.version
        journal.write("loaded", height=self.height, sequence=self.period.sequence, pid=os.getpid(), version=version)

    async def prepare_proposal(self, request: pb.RequestPrepareProposal) -> pb.ResponsePrepareProposal:
        self.bomb.pass_by("prepare", request.height)
        return await super().prepare_proposal(request)

    async def process_proposal(self, request: pb.RequestProcessProposal) -> pb.ResponseProcessProposal:
        self.bomb.pass_by("process", request.height)
        answer = await super().process_proposal(request)
        self.bomb.pass_by("processed", request.height)
        return answer

    async def extend_vote(self, request: pb.RequestExtendVote) -> pb.ResponseExtendVote:
        self.bomb.pass_by("extend", request.height)
        answer = await super().extend_vote(request)
        self.bomb.pass_by("extended", request.height)
        return answer

    async def verify_vote_extension(self, request: pb.RequestVerifyVoteExtension) -> pb.ResponseVerifyVoteExtension:
        self.bomb.pass_by("verify", request.height)
        return await super().verify_vote_extension(request)

    def offer(self, payload: SignedPayload) -> None:
        self.bomb.pass_by("offered", self.height + 1)
        super().offer(payload)

    async def finalize_block(self, request: pb.RequestFinalizeBlock) -> pb.ResponseFinalizeBlock:
        self.bomb.pass_by("finalize", request.height)
        answer = await super().finalize_block(request)
        for found in request.misbehavior:
            self.journal.write("misbehavior", validator=found.validator.address.hex().upper(), height=found.height)
        self.bomb.pass_by("finalized", request.height)
        self._after_the_answer("finalize_answered", request.height)
        return answer

    async def commit(self, request: pb.RequestCommit) -> pb.ResponseCommit:
        self.store.height = self.height + 1
        answer = await super().commit(request)
        self.bomb.pass_by("committed", self.height)
        self.journal.write("commit", height=self.height, app_hash=self.app_hash.hex(), asleep=self.is_asleep)
        self._after_the_answer("commit_answered", self.height)
        return answer

    def _after_the_answer(self, point: str, height: int) -> None:
        """The server writes the answer in the same step of the loop in which the handler returns."""
        asyncio.get_running_loop().call_soon(self.bomb.pass_by, point, height)
