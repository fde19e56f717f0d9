"""The ABCI application of a service: it carries payloads into blocks and blocks into the agent's hands.

How a payload travels (measured: 30 ms and one block a round when acts are fast, 38 ms from a late one to its effect):

    Commit(h) opens a round, or a transaction wakes the chain
    -> PrepareProposal: the proposer bundles the payloads that rode on the last commit's vote extensions, and adds
       payloads and ticks from the mempool
    -> ProcessProposal: all check and execute the proposal on a copy, and start the act of the round that it would open
    -> ExtendVote attaches what that act gave in time, and the agent's signed app hash (`quorate.abci.statement`)
    -> FinalizeBlock -> Commit.

- A payload that is not ready at its ExtendVote, or while the chain sleeps, is late: it goes as a transaction at once.
- `Agent.opened` may be called for a block that is never decided, so an act must be harmless to repeat or to abandon.
- ProcessProposal, FinalizeBlock and Commit depend on the block and the last state only; VerifyVoteExtension on the
  extension and the last state's members only. Clocks are read for four things, none of them agreed: how long to wait
  for a fast act and for the payloads that wake the chain, when to send again, when to tick.
- State is written in Commit, before it answers, and nowhere else; work that hangs on a Commit (acts, transactions,
  ticks) starts again from the loaded state.
- An agent that is no member (not yet, or not any more) follows the chain, acts in no round and sends nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict
from typing import Any, Literal, Protocol, TypeVar

from quorate.abci.archive import FORMAT, Archive, Incoming, Snapshot
from quorate.abci.evidence import Evidence, Watch, WrongAppHash
from quorate.abci.genesis import POWER, Genesis
from quorate.abci.machine import AHEAD, MAX_TICKS, Applied, Block, Replica, apply_block, execute, judge, tick_for
from quorate.abci.membership import begin, by_validator
from quorate.abci.node import Broadcast, NodeUnreachable
from quorate.abci.payload import MAX_PAYLOAD_BYTES, SignedPayload, UnsignedPayload
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.abci.pb.tendermint.types import validator_pb2
from quorate.abci.server import Application
from quorate.abci.statement import MAX_PREFIX_BYTES, SignedStatement, UnsignedStatement, join, split
from quorate.abci.store import Store
from quorate.abci.transaction import Kind, Roll, Transaction, encode_bundle, encode_evidence, encode_single
from quorate.abci.upgrade import FIRST_HEIGHT, UpgradeDue, Upgrades
from quorate.errors import ConfigError, PeerError
from quorate.fsm import Period, Service, Settled, codec
from quorate.members import Member
from quorate.offences import Offence, OffenceKind
from quorate.signatures import keccak
from quorate.units import Address

__all__ = ["Agent", "ServiceApp", "Via"]

Via = Literal["extension", "transaction"]

_FAST_ACT_S = 0.012  # ExtendVote waits at most this long, and only where recent acts were that short
_GATHER_S = 0.04  # the proposer that wakes the chain waits at most this long for the rest of a quorum
_RESEND_S = 1.0
_QUIET_S = 0.25  # while blocks of the past rush in, acts start only after a pause of this length
_MAX_ACCUSATIONS = 16  # evidence that this node is bringing forward at a time; what is left out the others bring
_TICK_GAP_S = 0.1  # between the first two ticks; doubles
_CLOCK_MARGIN_S = 0.005
_FAREWELL_S = 2.0  # a vote that the others may still need has long been passed on then
_TX_OVERHEAD_BYTES = 8  # protobuf's, for each transaction in a block

_Deed = tuple[OffenceKind, Address, int]  # whoever did it, in this round

_Proposal = TypeVar("_Proposal", pb.RequestProcessProposal, pb.RequestExtendVote, pb.RequestFinalizeBlock)
_log = logging.getLogger(__name__)


class Agent(Protocol):
    """What the application tells and asks the agent that it serves. All calls come on the application's event loop."""

    def opened(self, period: Period, committed: bool) -> None:
        """Act in `period`'s round. Called when a proposal would open it, and again (`committed`) when it is decided.

        The same opening (`opening_of(period)`) may come several times and means the same act; one that was not
        committed may be abandoned. Answer with `ServiceApp.offer`.
        """

    def settled(self, settled: Settled, period: Period, height: int) -> None:
        """A decided block ended a round; `period` is what it led to. Also called for blocks that are caught up on."""

    def sent(self, payload: SignedPayload, via: Via) -> None:
        """An offered payload went out this way; it may still be counted by the other."""

    def offended(self, offence: Offence, proof: bytes) -> None:
        """A decided block recorded this. `proof` is for a contract, its keccak256 is `offence.evidence`; empty where
        the chain itself is the evidence."""

    async def sign_tick(self, tick: UnsignedPayload) -> bytes:
        """65 bytes: the agent's signature of `tick.digest()`. The round's time is over; the chain has to see it."""

    async def sign_statement(self, statement: UnsignedStatement) -> bytes:
        """65 bytes: the agent's signature of `statement.digest()`. It votes for that block, and says what it led to."""


class ServiceApp(Application):
    """The replicated machine of one service, as one of its agents runs it."""

    def __init__(
        self,
        service: Service,
        genesis: Genesis,
        me: Address,
        store: Store,
        agent: Agent,
        wall_clock: Callable[[], float] = time.time,
        archive: Archive | None = None,
        joins: bool = False,
        config_hash: str = "",
    ) -> None:
        """Load the last committed state; `ConfigError` where genesis, service, agent and state do not match.

        `UpgradeDue` where the state belongs to another version from now on. `config_hash` is that of the settings
        which agents share, compared with what they agreed on; empty: it is not compared.

        `wall_clock` (seconds since 1970) says when to tick; a simulation gives each agent one of its own. Without an
        `archive` no snapshot is written or taken, and no block is ever pruned. With `joins` this agent may be no member
        yet: it follows the chain, and acts from when it is one.
        """
        genesis.check(service)
        self.service, self.genesis, self.me = service, genesis, me
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        """Done when work beside the handlers failed, or with `UpgradeDue`; its result is the exception.

        The host must stop then.
        """
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when this agent, a member before, has left and the others need its validator no more."""
        self._agent = agent
        self._store = store
        self._wall_clock = wall_clock
        self.archive = archive
        self._incoming: Incoming | None = None
        self._watch = Watch(genesis.chain_id, service)
        self._accusing: dict[_Deed, float] = {}
        self._stating: dict[bytes, asyncio.Task[None]] = {}  # by block hash, since the last Commit
        self._stated: dict[bytes, bytes] = {}
        self._suspected: dict[tuple[Address, bytes], WrongAppHash] = {}  # until their block is decided, or another is
        self.has_half_a_snapshot = store.is_adopted
        """True where an earlier life took a snapshot and died before a block followed: CometBFT may know nothing of it,
        and would never start beside it. The application is empty again, and the node's blocks have to go, too."""
        saved = None if self.has_half_a_snapshot else store.load()
        first = Replica.start(begin(service, genesis), genesis.has_landmarks)
        self._replica = first if saved is None else Replica.decode(service, saved)
        if not joins and me not in {*genesis.addresses, *self.period.members}:
            raise ConfigError(
                f"{me} is no member of {genesis.chain_id}; its members are {', '.join(self.period.members)}",
                fix="Start it with the key of a member, or as one who joins.",
            )
        self._welcome: set[str] = set()
        self._left_at = 0
        self._seat()
        self._replica.refuse_next(self._replica.height + 1)
        self._config_hash = config_hash
        if not self.awaits_snapshot:
            self._check_settings(self._replica)
        elif archive is None:
            raise self._began_otherwise()
        self._speculated: dict[bytes, Applied] = {}  # by block hash; all on top of the committed replica
        self._finalized: Applied | None = None
        self._is_asleep = True  # until a Commit says otherwise: after a restart nobody knows
        self._outbox = _Outbox()
        self._arrived: dict[Address, bytes] = {}  # since the last Commit: one payload of each sender that would count
        self._arrival = asyncio.Event()
        self._broadcast: Callable[[bytes], Awaitable[Broadcast]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._announced: tuple[bytes, bool] = (b"", False)
        self._quiet: asyncio.TimerHandle | None = None
        self._ticker: tuple[int, asyncio.Task[None]] | None = None

    # ---- for the host

    @property
    def period(self) -> Period:
        """The last committed period."""
        return self._replica.period

    @property
    def height(self) -> int:
        """The height of the last committed block; 0 before the first."""
        return self._replica.height

    @property
    def app_hash(self) -> bytes:
        """The app hash after the last committed block."""
        return self._replica.app_hash

    @property
    def members(self) -> tuple[Member, ...]:
        """The members after the last committed block, sorted by address."""
        return self._replica.members or self.genesis.members

    @property
    def is_asleep(self) -> bool:
        """True when the chain waits for news (or nobody knows yet)."""
        return self._is_asleep

    @property
    def upgrades(self) -> Upgrades:
        """What the members agree on about the version that runs and the next one."""
        return self._replica.upgrades

    @property
    def awaits_snapshot(self) -> bool:
        """True for a later version's code without a state: the chain's first blocks are not its own to execute."""
        return not self.height and self.genesis.spec_hash != self.service.spec_hash

    @property
    def oldest_accusation_s(self) -> float:
        """For how long this node has known of an offence that is not on record; 0 where it knows of none."""
        return max((_now_s() - since for since in self._accusing.values()), default=0.0)

    def start(self, broadcast: Callable[[bytes], Awaitable[Broadcast]]) -> None:
        """Begin to act: in a sleeping chain nobody else would. `broadcast` gives the node's mempool a transaction."""
        self._broadcast = broadcast
        if self._replica.height:  # else InitChain comes first
            self._announce_when_quiet()
            self._watch_deadline()

    async def stop(self) -> None:
        """Cancel what runs beside the handlers and close the store."""
        if self._quiet is not None:
            self._quiet.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._store.close()

    def welcome(self, node_id: str) -> None:
        """Let this node connect, which is no member's yet: whoever is to join has to catch up first."""
        self._welcome.add(node_id.lower())

    def offer(self, payload: SignedPayload) -> None:
        """Send this agent's payload: by the next vote extension if it is in time, else as a transaction.

        A payload that can no longer count is dropped. `ConfigError` where the payload is not this agent's own.
        """
        self._require_own(payload)
        if not self._may_still_count(payload):
            return
        self._outbox.put(payload)
        if self._is_asleep or self._outbox.is_late(payload.opening):
            self._send(payload)

    def ask_upgrade(self, ask: SignedPayload) -> None:
        """Send this agent's signed ask (`quorate.abci.ask_for`) until it counts; `ConfigError` where it never can."""
        self._require_own(ask)
        tx = Transaction(Kind.UPGRADE, (ask,))
        try:
            execute(self._replica, tx)
        except PeerError as error:
            raise ConfigError(error.message) from error
        wire = encode_single(Kind.UPGRADE, ask)
        self._spawn(self._repeat(wire, lambda: _counted(self._replica, tx) is not None))

    def ask(self, request: SignedPayload) -> None:
        """Send this agent's request for an interrupt (`Period.ask`), beside its payload of the round.

        At once as a transaction, which wakes a sleeping chain, and by the next vote extension: where rounds take one
        block, a transaction comes too late. One that can no longer count is dropped. `ConfigError` as `offer`.
        """
        self._require_own(request)
        if self._may_request(request) and request not in self._outbox.requests(request.opening):
            self._outbox.request(request)
            tx = encode_single(Kind.PAYLOAD, request)
            self._spawn(self._repeat(tx, lambda: self._may_request(request)))

    def _require_own(self, payload: SignedPayload) -> None:
        if payload.sender != self.me or not payload.is_signed_by_sender(self.genesis.chain_id):
            raise ConfigError(f"a payload of {payload.sender} that {self.me} did not sign for {self.genesis.chain_id}")

    # ---- handlers: consensus

    async def info(self, request: pb.RequestInfo) -> pb.ResponseInfo:
        """Where this application is, so that CometBFT replays to it what came later."""
        height = self._replica.height
        app_hash = self._replica.app_hash if height else b""
        return pb.ResponseInfo(data=self.service.name, last_block_height=height, last_block_app_hash=app_hash)

    async def init_chain(self, request: pb.RequestInitChain) -> pb.ResponseInitChain:
        """Refuse to begin a chain whose genesis, as CometBFT read it, is not the one that this agent was given."""
        if self.awaits_snapshot:
            raise self._began_otherwise()
        expected = sorted((bytes.fromhex(member.validator_key), POWER) for member in self.genesis.members)
        if sorted((v.pub_key.ed25519, v.power) for v in request.validators) != expected:
            raise ConfigError(
                f"the validators in the node's genesis are not the members of {self.genesis.chain_id}, {POWER} each"
            )
        if request.chain_id != self.genesis.chain_id or json.loads(request.app_state_bytes) != self.genesis.app_state():
            raise ConfigError(f"the node's genesis is of {request.chain_id}, or another one of {self.genesis.chain_id}")
        self._announce_when_quiet()
        return pb.ResponseInitChain(app_hash=self._replica.app_hash)

    async def prepare_proposal(self, request: pb.RequestPrepareProposal) -> pb.ResponsePrepareProposal:
        """The payloads of the last commit's extensions in one bundle, then what in the mempool counts now.

        The block that wakes the chain waits a moment for what its round lacks: a block without a quorum would only keep
        the rest waiting for the next one.
        """
        self._replica.refuse_next(request.height)
        if self._is_asleep and self._may_be_part_of_a_quorum(request.txs):
            return pb.ResponsePrepareProposal(txs=await self._gathered(request))
        return pb.ResponsePrepareProposal(txs=self._proposal(request)[1])

    def _may_be_part_of_a_quorum(self, txs: Sequence[bytes]) -> bool:
        """A tick must not wait, and a full mempool takes long enough to read."""
        is_few = 0 < len(txs) <= len(self.members)
        return is_few and all(data[:1] == bytes([Kind.PAYLOAD]) for data in txs)

    async def _gathered(self, request: pb.RequestPrepareProposal) -> list[bytes]:
        """What the block holds as soon as that ends the round, or else after the moment."""
        time_ms = request.time.ToNanoseconds() // 1_000_000
        replica, txs = self._proposal(request)
        try:
            async with asyncio.timeout(_GATHER_S):
                while replica.period.end_block(time_ms)[1] is None:
                    self._arrival.clear()
                    await self._arrival.wait()
                    replica, txs = self._proposal(request)
        except TimeoutError:
            pass  # whoever is still missing comes in a later block
        return txs

    def _proposal(self, request: pb.RequestPrepareProposal) -> tuple[Replica, list[bytes]]:
        """What a block could hold now, and the replica with all of it counted."""
        room = request.max_tx_bytes
        replica, txs = self._replica, []
        bundle: list[SignedPayload] = []
        for payload in sorted(self._extensions(request), key=lambda payload: payload.sender):
            size = len(encode_bundle([*bundle, payload])) + _TX_OVERHEAD_BYTES
            if size <= room and (after := _counted(replica, Transaction(Kind.PAYLOAD, (payload,)))):
                replica = after
                bundle.append(payload)
        if bundle:
            txs.append(encode_bundle(bundle))
            room -= len(txs[0]) + _TX_OVERHEAD_BYTES
        for data in dict.fromkeys([*request.txs, *self._arrived.values()]):
            tx = self._read(data)
            size = len(data) + _TX_OVERHEAD_BYTES
            if tx and tx.kind is not Kind.BUNDLE and size <= room and (after := _counted(replica, tx)):
                replica = after
                txs.append(data)
                room -= size
        return replica, txs

    def _extensions(self, request: pb.RequestPrepareProposal) -> list[SignedPayload]:
        """Verified anew: precommits that come after the decision never passed VerifyVoteExtension."""
        found: list[SignedPayload] = []
        for vote in request.local_last_commit.votes:
            if vote.block_id_flag == validator_pb2.BLOCK_ID_FLAG_COMMIT and vote.vote_extension:
                try:
                    said, wire = split(vote.vote_extension)
                    if said is not None:
                        self._compare_late(vote.validator.address, said)
                    if wire:
                        found.append(self._roll.payload(wire))
                except PeerError as error:
                    _log.warning("a vote extension is left out: %s", error)
        return found

    async def process_proposal(self, request: pb.RequestProcessProposal) -> pb.ResponseProcessProposal:
        """Accept what an honest proposer could have made, execute it on a copy, and begin the act it leads to."""
        self._replica.refuse_next(request.height)
        problem = self._problem(list(request.txs))
        if problem is not None:
            _log.warning(
                "refused the proposal of %s for block %d: %s", request.proposer_address.hex(), request.height, problem
            )
            return pb.ResponseProcessProposal(status=pb.ResponseProcessProposal.REJECT)
        applied = self._speculate(request, request.proposed_last_commit)
        self._announce(applied.replica, committed=False)
        self._begin_to_state(request.hash, applied.replica)
        return pb.ResponseProcessProposal(status=pb.ResponseProcessProposal.ACCEPT)

    def _problem(self, txs: list[bytes]) -> str | None:
        try:
            return judge(self._replica, [self._roll.transaction(data) for data in txs])
        except PeerError as error:
            return error.message

    async def extend_vote(self, request: pb.RequestExtendVote) -> pb.ResponseExtendVote:
        """What this agent says the block leads to, and its payload for that round, if it is ready or about to be.

        A request for an interrupt goes first; the payload follows as a transaction.
        """
        replica = self._speculate(request, request.proposed_last_commit).replica
        self._begin_to_state(request.hash, replica)
        carried = await self._carried(replica)
        stating = self._stating.get(request.hash)
        if stating is not None and not stating.done():
            await asyncio.wait({stating}, timeout=_FAST_ACT_S)
        return pb.ResponseExtendVote(vote_extension=self._stated.get(request.hash, b"") + carried)

    async def _carried(self, replica: Replica) -> bytes:
        payload = None
        if self.me in replica.period.missing():
            self._announce(replica, committed=False)
            payload = await self._outbox.get(replica.opening)
        asked = next((one for one in self._outbox.requests(replica.opening) if replica.why_not(one) is None), None)
        if payload is None or asked is not None:
            self._outbox.mark_late(replica.opening)
            if payload is not None:
                self._send(payload)
            return asked.encode() if asked else b""
        if self._outbox.is_first(payload, "extension"):
            self._agent.sent(payload, "extension")
        return payload.encode()

    def _begin_to_state(self, block: bytes, replica: Replica) -> None:
        """Have it signed what `block` leads to, if it changes the app hash."""
        is_landmark = any(one.height == replica.height for one in replica.landmarks[-1:])
        if is_landmark and block not in self._stating and self.me in self._roll.members:
            self._stating[block] = self._spawn(self._state(block, replica))

    async def _state(self, block: bytes, replica: Replica) -> None:
        statement = UnsignedStatement(self.genesis.chain_id, replica.height, block, replica.app_hash)
        self._stated[block] = join(replica.app_hash, await self._agent.sign_statement(statement))

    async def verify_vote_extension(self, request: pb.RequestVerifyVoteExtension) -> pb.ResponseVerifyVoteExtension:
        """Depends on the extension and the members alone: nodes that disagreed here could halt the chain."""
        sound = pb.ResponseVerifyVoteExtension(status=pb.ResponseVerifyVoteExtension.ACCEPT)
        if not request.vote_extension:
            return sound
        member = self._by_validator.get(request.validator_address.hex().upper())
        try:
            if len(request.vote_extension) > MAX_PREFIX_BYTES + MAX_PAYLOAD_BYTES or member is None:
                raise PeerError(f"an extension of {len(request.vote_extension)} bytes, or from no member")
            said, wire = split(request.vote_extension)
            if wire and (sender := self._roll.payload(wire).sender) != member.address:
                raise PeerError(f"the extension of {member.address} carries a payload of {sender}")
            ours = self._speculated.get(request.hash)
            if said is not None and ours is not None:  # whatever comes of it, the answer is the same
                self._compare(member.address, ours.replica.height, request.hash, said, ours.replica.app_hash)
        except PeerError as error:
            _log.warning("refused the vote extension of %s: %s", request.validator_address.hex(), error)
            return pb.ResponseVerifyVoteExtension(status=pb.ResponseVerifyVoteExtension.REJECT)
        return sound

    async def finalize_block(self, request: pb.RequestFinalizeBlock) -> pb.ResponseFinalizeBlock:
        """What the decided block does: results, the new app hash, and who votes with which power two blocks later."""
        is_live = request.hash in self._speculated  # else the block was decided without us: we are catching up
        applied = self._finalized = self._speculate(request, request.decided_last_commit)
        if not is_live:
            self._announce_when_quiet()
        updates = [self._update(applied.replica, address, power) for address, power in applied.powers]
        results = [pb.ExecTxResult(code=0 if accepted else 1) for accepted in applied.accepted]
        return pb.ResponseFinalizeBlock(
            tx_results=results, app_hash=applied.replica.app_hash, validator_updates=updates
        )

    async def commit(self, request: pb.RequestCommit) -> pb.ResponseCommit:
        """Make the finalized state durable, then act on it; answers the height below which blocks may go."""
        applied, before = self._finalized, self._replica
        if applied is None:
            raise ConfigError("CometBFT asks to commit a block that was not finalized in this life of the application")
        stored = applied.replica.encode()
        self._store.save(stored)
        self._replica, self._finalized, self._speculated, self._arrived = applied.replica, None, {}, {}
        self._stating, self._stated = {}, {}
        self._change_members(before)
        self._accuse_suspected()
        self._is_asleep = applied.replica.app_hash == before.app_hash  # CometBFT's own rule for a block without news
        self._outbox.forget_before(self.period.sequence)
        self._tell_offences(applied)
        if applied.settled is not None:
            self._agent.settled(applied.settled, self.period, self.height)
        self._go_on()
        began = self._replica.upgrades.began
        is_new_version = self.height == began > FIRST_HEIGHT
        retain = self.archive.committed(self.height, stored, is_new_version=is_new_version) if self.archive else 0
        return pb.ResponseCommit(retain_height=retain)

    def _go_on(self) -> None:
        """After a Commit: act, tick and send in the round that is open now, unless another version has to."""
        try:
            self._replica.refuse_next(self.height + 1)
        except UpgradeDue as due:
            if self._quiet is not None:
                self._quiet.cancel()
            if not self.failed.done():
                self.failed.set_result(due)
            return
        if self._quiet is None:
            self._announce(self._replica, committed=True)
        self._watch_deadline()
        is_late = self._is_asleep or self._outbox.is_late(self._replica.opening)
        if is_late and (payload := self._outbox.peek(self._replica.opening)) is not None:
            self._send(payload)

    def _seat(self) -> None:
        """Believe the members of the committed state."""
        validators = by_validator(self.members, self._replica.turnover)
        self._by_validator = validators
        self._owners = {validator: member.address for validator, member in validators.items()}
        self._roll = Roll(self.genesis.chain_id, {member.address for member in validators.values()}, self._hear)

    def _change_members(self, before: Replica) -> None:
        """What the block just committed means for who may speak, and for this agent where it comes or goes."""
        if self._replica.turnover != before.turnover:
            self._seat()
            was, is_member = self.me in before.period.members, self.me in self.period.members
            self._left_at = self.height if was and not is_member else 0
            if is_member and not was:
                self._outbox.mark_late(self._replica.opening)  # the next block is voted on without this validator
        if self._left_at and self.height == self._left_at + 1:
            self._spawn(self._leave())

    async def _leave(self) -> None:
        await asyncio.sleep(_FAREWELL_S)
        if not self.left.done():
            self.left.set_result(None)

    def _speculate(self, request: _Proposal, last_commit: pb.CommitInfo) -> Applied:
        """What the block would do (on a copy). FinalizeBlock finds it here when it was proposed to us first."""
        known = self._speculated.get(request.hash)
        if known is None:
            known = self._speculated[request.hash] = apply_block(self._replica, self._block(request, last_commit))
        return known

    def _block(self, request: _Proposal, last_commit: pb.CommitInfo) -> Block:
        absent: list[str] = []
        present: list[str] = []
        for vote in last_commit.votes:
            is_absent = vote.block_id_flag == validator_pb2.BLOCK_ID_FLAG_ABSENT
            (absent if is_absent else present).append(vote.validator.address.hex().upper())
        time_ms = request.time.ToNanoseconds() // 1_000_000
        txs = tuple(map(self._read, request.txs))
        convicted = tuple(one.validator.address.hex().upper() for one in request.misbehavior)
        return Block(
            request.height, time_ms, txs, tuple(absent), tuple(present), convicted, bytes(request.hash), self._owners
        )

    def _read(self, data: bytes) -> Transaction | None:
        try:
            return self._roll.transaction(data)
        except PeerError:
            return None

    def _update(self, after: Replica, validator_address: str, power: int) -> pb.ValidatorUpdate:
        known = by_validator(after.members or self.genesis.members, after.turnover)
        update = pb.ValidatorUpdate(power=power)
        update.pub_key.ed25519 = bytes.fromhex(known[validator_address].validator_key)
        return update

    def _check_settings(self, replica: Replica) -> None:
        agreed = replica.upgrades.config_hash
        if replica.upgrades.began == FIRST_HEIGHT:
            agreed = self.genesis.config_hash
        if agreed and self._config_hash and agreed != self._config_hash:
            raise ConfigError(
                f"the settings of {self.service.name} hash to {self._config_hash}; its agents agreed on {agreed}",
                fix="Give every agent the same service.yaml and the same addresses.",
            )

    def _began_otherwise(self) -> ConfigError:
        """Why this code cannot execute the chain's first block."""
        return ConfigError(
            f"{self.genesis.chain_id} began with the version {self.genesis.spec_hash[:12]} of {self.service.name}; "
            f"version {self.service.version} ({self.service.spec_hash[:12]}) cannot execute its first block",
            fix="Let it take a snapshot that its peers have made since the upgrade (name their nodes in `peers`, and "
            "see that they run), or start the version that the chain began with until it ends by itself.",
        )

    # ---- handlers: snapshots

    async def list_snapshots(self, request: pb.RequestListSnapshots) -> pb.ResponseListSnapshots:
        """Those that a peer could verify now."""
        offers = self.archive.offers(self.height) if self.archive else []
        return pb.ResponseListSnapshots(
            snapshots=[pb.Snapshot(height=s.height, format=FORMAT, chunks=s.chunks, hash=s.hash) for s in offers]
        )

    async def load_snapshot_chunk(self, request: pb.RequestLoadSnapshotChunk) -> pb.ResponseLoadSnapshotChunk:
        """A part of one; empty where it is gone, and the peer asks another agent."""
        is_ours = self.archive is not None and request.format == FORMAT
        chunk = self.archive.chunk(request.height, request.chunk) if self.archive and is_ours else b""
        return pb.ResponseLoadSnapshotChunk(chunk=chunk)

    async def offer_snapshot(self, request: pb.RequestOfferSnapshot) -> pb.ResponseOfferSnapshot:
        """Take a snapshot only into an empty application; `request.app_hash` comes from the light client."""
        if self.height or self.archive is None:
            return pb.ResponseOfferSnapshot(result=pb.ResponseOfferSnapshot.ABORT)
        if request.snapshot.format != FORMAT:
            return pb.ResponseOfferSnapshot(result=pb.ResponseOfferSnapshot.REJECT_FORMAT)
        offered = Snapshot(request.snapshot.height, request.snapshot.hash, request.snapshot.chunks)
        try:
            self._incoming = Incoming(offered, request.app_hash)
        except PeerError as error:
            _log.warning("refused a snapshot: %s", error)
            return pb.ResponseOfferSnapshot(result=pb.ResponseOfferSnapshot.REJECT)
        return pb.ResponseOfferSnapshot(result=pb.ResponseOfferSnapshot.ACCEPT)

    async def apply_snapshot_chunk(self, request: pb.RequestApplySnapshotChunk) -> pb.ResponseApplySnapshotChunk:
        """Adopt the state once it is whole and has the verified app hash; else ask for another snapshot."""
        if self.height or self._incoming is None:
            return pb.ResponseApplySnapshotChunk(result=pb.ResponseApplySnapshotChunk.ABORT)
        try:
            whole = self._incoming.put(request.index, request.chunk)
            if whole is not None:
                self._adopt(self._incoming, whole)
        except PeerError as error:
            _log.warning("refused a snapshot of %s: %s", request.sender, error)
            self._incoming = None
            return pb.ResponseApplySnapshotChunk(result=pb.ResponseApplySnapshotChunk.REJECT_SNAPSHOT)
        return pb.ResponseApplySnapshotChunk(result=pb.ResponseApplySnapshotChunk.ACCEPT)

    def _adopt(self, incoming: Incoming, whole: bytes) -> None:
        try:
            replica = Replica.decode(self.service, whole)
        except ConfigError as error:  # whoever wrote it is a peer here
            raise PeerError(error.message, evidence=whole[:1000]) from error
        if (replica.height, replica.app_hash) != (incoming.snapshot.height, incoming.app_hash):
            raise PeerError(
                f"a state of height {replica.height} with the app hash {replica.app_hash.hex()}; the chain's at "
                f"{incoming.snapshot.height} is {incoming.app_hash.hex()}"
            )
        self._check_settings(replica)
        self._store.adopt(whole)
        self._replica, self._incoming, self._speculated = replica, None, {}
        self._seat()
        _log.info("took the state of block %d from peers", replica.height)
        self._announce_when_quiet()
        self._watch_deadline()

    # ---- handlers: mempool and queries

    async def check_tx(self, request: pb.RequestCheckTx) -> pb.ResponseCheckTx:
        """Strict on the past (a stale payload would keep the chain awake), lenient by `AHEAD` rounds on the future."""
        try:
            tx = self._roll.transaction(request.tx)
            if tx.kind is Kind.BUNDLE:
                raise PeerError("a bundle; only a proposer writes one")
            if tx.kind is Kind.EVIDENCE:
                execute(self._replica, tx)
                return pb.ResponseCheckTx()
            rounds_ahead = tx.payloads[0].sequence - self.period.sequence
            if rounds_ahead > AHEAD:
                raise PeerError(f"a payload for {rounds_ahead} rounds ahead; at most {AHEAD} are held")
            may_wait = rounds_ahead > 0 or (tx.kind is Kind.TICK and rounds_ahead == 0 and not self.period.clock_ms)
            if not may_wait:
                execute(self._replica, tx)
                if tx.kind is Kind.PAYLOAD:
                    self._arrived.setdefault(tx.payloads[0].sender, request.tx)
                    self._arrival.set()
        except PeerError as error:
            return pb.ResponseCheckTx(code=1, log=error.message)
        return pb.ResponseCheckTx()

    async def query(self, request: pb.RequestQuery) -> pb.ResponseQuery:
        """`/p2p/filter/...`: only nodes of members, and welcome ones, may connect. `/status`: where this agent is.

        Nodes of those who left last may, too: an agent that was away has to hear of it.
        """
        if request.path.startswith("/p2p/filter/id/"):
            node_id = request.path.rsplit("/", 1)[1].lower()
            members = (*self.members, *self._replica.turnover.former)
            is_known = node_id in self._welcome or any(member.node_id == node_id for member in members)
            return pb.ResponseQuery(code=0 if is_known else 1, log="" if is_known else f"{node_id} is no member's node")
        if request.path.startswith("/p2p/filter/"):
            return pb.ResponseQuery()  # by address: members may move
        if request.path == "/status":
            return pb.ResponseQuery(value=json.dumps(self._status()).encode(), height=self.height)
        return pb.ResponseQuery(code=1, log=f"no answer to {request.path!r}; ask /status")

    def _status(self) -> dict[str, Any]:
        return {
            "height": self.height,
            "app_hash": self.app_hash.hex(),
            "sequence": self.period.sequence,
            "period": self.period.state.period,
            "round": self.period.round.name,
            "voted": list(self.period.votes.senders()),
            "members": list(self.period.members),
            "asleep": self._is_asleep,
            "version": self.service.version,
            "upgrade": json.loads(codec.encode(self._replica.upgrades)),
            "offences": [asdict(offence) for offence in self._replica.offences.latest],
        }

    # ---- beside the handlers

    def _announce(self, replica: Replica, committed: bool) -> None:
        """Tell the agent of the round that `replica` is in, once as proposed and once as committed."""
        is_known = self._announced in ((replica.opening, committed), (replica.opening, True))
        if is_known or self.me not in replica.period.members:
            return
        self._announced = (replica.opening, committed)
        self._outbox.expect(replica.opening)
        self._agent.opened(replica.period, committed)

    def _announce_when_quiet(self) -> None:
        """Announce the committed round after a pause without old blocks: nobody should act in rounds long gone."""
        if self._quiet is not None:
            self._quiet.cancel()
        self._quiet = asyncio.get_running_loop().call_later(_QUIET_S, self._announce_now)

    def _announce_now(self) -> None:
        self._quiet = None
        try:
            self._announce(self._replica, committed=True)
        except Exception as error:  # the agent's fault; there is no handler above us that could tell the host
            self._fail(error)

    def _send(self, payload: SignedPayload) -> None:
        if self._outbox.is_first(payload, "transaction"):
            self._spawn(self._send_until_counted(payload))

    async def _send_until_counted(self, payload: SignedPayload) -> None:
        self._agent.sent(payload, "transaction")
        await self._repeat(encode_single(Kind.PAYLOAD, payload), lambda: self._may_still_count(payload))

    async def _repeat(self, tx: bytes, may_count: Callable[[], bool]) -> None:
        """Hand it to the mempool again and again: the node may be starting, or a peer have dropped it."""
        while may_count():
            await self._hand_over(tx)
            await asyncio.sleep(_RESEND_S)

    def _may_request(self, request: SignedPayload) -> bool:
        """True while the round is to come, or goes on and the request does not stand yet."""
        return request.sequence > self.period.sequence or self._replica.why_not(request) is None

    def _may_still_count(self, payload: SignedPayload) -> bool:
        """True while the round is to come, or goes on from the opening that was answered and without our payload."""
        if payload.sequence != self.period.sequence:
            return payload.sequence > self.period.sequence
        return payload.opening == self._replica.opening and self.me not in self.period.votes

    async def _hand_over(self, tx: bytes) -> None:
        if self._broadcast is None:
            return
        try:
            answer = await self._broadcast(tx)
        except NodeUnreachable as error:  # it starts or stops; if it died, its exit is reported where it is watched
            _log.info("a transaction waits for the node: %s", error)
            return
        if answer.code:
            _log.info("the mempool refused a transaction: %s", answer.log)

    def _hear(self, payload: SignedPayload) -> None:
        """Every payload whose signature was checked here; who contradicts himself is accused."""
        evidence = self._watch.heard(payload)
        if evidence is not None:
            self._bring(evidence)

    def _compare(self, who: Address, height: int, block: bytes, said: tuple[bytes, bytes], ours: bytes) -> None:
        """Suspect whoever signed another app hash than the one that the block has led to here."""
        app_hash, signature = said
        if app_hash != ours:
            statement = SignedStatement(who, height, block, app_hash, signature)
            if statement.is_signed_by_member(self.genesis.chain_id):
                self._suspected[who, block] = WrongAppHash(self.genesis.chain_id, statement)

    def _compare_late(self, validator: bytes, said: tuple[bytes, bytes]) -> None:
        """As `_compare`, for a vote for the last block that came when that was decided."""
        member = self._by_validator.get(validator.hex().upper())
        last = next((one for one in self._replica.landmarks[-1:] if one.height == self.height), None)
        if member is not None and last is not None:
            self._compare(member.address, last.height, bytes.fromhex(last.block), said, self.app_hash)
            self._accuse_suspected()

    def _accuse_suspected(self) -> None:
        """After a Commit: what was said of another block than the decided one is held against nobody."""
        for evidence in self._suspected.values():
            self._bring(evidence)
        self._suspected = {}

    def _bring(self, evidence: Evidence) -> None:
        """Accuse, if it would count."""
        if self._replica.why_no_evidence(evidence) is not None:
            return
        deed = (evidence.kind, evidence.member, self._replica.round_of(evidence)[0])
        if deed not in self._accusing and len(self._accusing) < _MAX_ACCUSATIONS:
            self._accusing[deed] = _now_s()
            self._spawn(self._accuse(deed, evidence))

    async def _accuse(self, deed: _Deed, evidence: Evidence) -> None:
        """Hand the evidence to the mempool until it is on record, by whomever."""
        await self._repeat(encode_evidence(evidence), lambda: self._replica.why_no_evidence(evidence) is None)
        del self._accusing[deed]

    def _tell_offences(self, applied: Applied) -> None:
        proofs = {"0x" + keccak(proof).hex(): proof for proof in applied.proofs}
        for offence in applied.replica.offences.recorded_in(applied.replica.height):
            self._agent.offended(offence, proofs.get(offence.evidence, b""))

    def _watch_deadline(self) -> None:
        """See to it that the running round's deadline finds a block to be noticed in."""
        period = self.period
        if self._ticker is not None and self._ticker[0] != period.sequence:
            self._ticker[1].cancel()
            self._ticker = None
        if self._ticker is None and period.deadline_ms is not None and self.me in period.members:
            self._ticker = (period.sequence, self._spawn(self._tick(period, period.deadline_ms)))

    async def _tick(self, period: Period, deadline_ms: int) -> None:
        """Wait for the deadline by our clock, then tick until the chain has seen it by its own."""
        await asyncio.sleep(
            min(max(0.0, deadline_ms / 1000 - self._wall_clock()), period.round.timeout_ms / 1000) + _CLOCK_MARGIN_S
        )
        gap = _TICK_GAP_S
        for attempt in range(self._replica.ticks_of(self.me), MAX_TICKS):
            tick = tick_for(self.genesis.chain_id, period, attempt)
            signed = tick.signed(self.me, await self._agent.sign_tick(tick))
            await self._hand_over(encode_single(Kind.TICK, signed))
            await asyncio.sleep(gap)
            gap *= 2

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        _log.error("the application failed: %r", error)
        if not self.failed.done():
            self.failed.set_result(error if isinstance(error, Exception) else RuntimeError(repr(error)))


class _Outbox:
    """This agent's own payloads of rounds that are not over, by opening, and how they have been sent."""

    def __init__(self) -> None:
        self._payloads: dict[bytes, SignedPayload] = {}
        self._requests: dict[bytes, tuple[SignedPayload, ...]] = {}
        self._arrived: dict[bytes, asyncio.Event] = {}
        self._since: dict[bytes, float] = {}
        self._late: set[bytes] = set()
        self._sent: set[tuple[bytes, Via]] = set()
        self._usual_act_s = 0.0  # mean of recent acts, exponentially weighted

    def expect(self, opening: bytes) -> None:
        """An act for `opening` begins."""
        self._since.setdefault(opening, _now_s())

    def put(self, payload: SignedPayload) -> None:
        opening = payload.opening
        if opening not in self._payloads:
            took = _now_s() - self._since.get(opening, _now_s())
            self._usual_act_s += (took - self._usual_act_s) * 0.3
        self._payloads.setdefault(opening, payload)  # one payload a round, and a repeated act does not change it
        self._arrived.setdefault(opening, asyncio.Event()).set()

    def request(self, request: SignedPayload) -> None:
        """Keep a request for an interrupt, of which there may be several in a round."""
        self._requests[request.opening] = (*self.requests(request.opening), request)

    def requests(self, opening: bytes) -> tuple[SignedPayload, ...]:
        return self._requests.get(opening, ())

    async def get(self, opening: bytes) -> SignedPayload | None:
        """The payload, waiting a moment where recent acts took no longer than that."""
        if opening not in self._payloads and self._usual_act_s < _FAST_ACT_S:
            arrived = self._arrived.setdefault(opening, asyncio.Event())
            try:
                await asyncio.wait_for(arrived.wait(), _FAST_ACT_S)
            except TimeoutError:
                return None
        return self._payloads.get(opening)

    def peek(self, opening: bytes) -> SignedPayload | None:
        return self._payloads.get(opening)

    def mark_late(self, opening: bytes) -> None:
        """The vote on `opening`'s block went out without the payload."""
        self._late.add(opening)

    def is_late(self, opening: bytes) -> bool:
        return opening in self._late

    def is_first(self, payload: SignedPayload, via: Via) -> bool:
        """True at the first call for this payload and way."""
        key = (payload.opening, via)
        if key in self._sent:
            return False
        self._sent.add(key)
        return True

    def forget_before(self, sequence: int) -> None:
        """Drop the payloads of rounds that are over, and all that is known of other openings but the recent ones."""
        self._payloads = {k: p for k, p in self._payloads.items() if p.sequence >= sequence}
        self._requests = {k: some for k, some in self._requests.items() if some[0].sequence >= sequence}
        recent = set(list(self._since)[-8:]) | set(self._payloads)
        self._since = {k: v for k, v in self._since.items() if k in recent}
        self._arrived = {k: v for k, v in self._arrived.items() if k in recent}
        self._late &= recent
        self._sent = {key for key in self._sent if key[0] in recent}


def _now_s() -> float:
    """Seconds that only grow; the event loop's own, so that a simulation can make them virtual."""
    return asyncio.get_running_loop().time()


def _counted(replica: Replica, tx: Transaction) -> Replica | None:
    try:
        return execute(replica, tx)
    except PeerError:
        return None
