"""One agent's process in a simulation: the real application, runner, signing boundary and Safe; the edges are ours.

Scripted are the disk, the wall clock, the journal (kept in memory) and the thread between runner and decision maker.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from coincurve import PrivateKey
from eth_account import Account
from eth_utils.address import to_checksum_address

from quorate.abci import (
    Broadcast,
    Genesis,
    Member,
    ServiceApp,
    SignedPayload,
    UnsignedPayload,
    UnsignedStatement,
    Via,
    binding_digest,
)
from quorate.fsm import Period, Service, Settled
from quorate.host.agreed import Agreed
from quorate.host.context import ActContext, Equipment
from quorate.host.decision_maker import IntentRequest, QuorateDecisionMaker, SigningMessage, SigningRequest
from quorate.host.journal import Journal
from quorate.host.runner import Runner
from quorate.host.settler import SafeSettler
from quorate.host.signer import Signer
from quorate.offences import Offence
from quorate.signatures import keccak
from quorate.testing.disk import Disk, MemoryArchive, MemoryStore
from quorate.testing.oracles import Judge
from quorate.testing.world import World
from quorate.units import Address

__all__ = ["CHAIN_ID", "Key", "Process", "genesis_of", "keys", "mutate", "signed_by"]

CHAIN_ID = "simulation-1"
_log = logging.getLogger(__name__)
_LIE_RATE = 0.6


_REMEMBERED = 4096
_signed: dict[tuple[bytes, bytes], Address] = {}


def signed_by(digest: bytes, signature: bytes) -> Address | None:
    """Which of our keys made this signature a while ago; None where nobody remembers."""
    return _signed.get((digest, signature))


class Key:
    """An agent's Ethereum key: the same at every run."""

    def __init__(self, name: str) -> None:
        self.secret = keccak(text=name)
        self._key = PrivateKey(self.secret)
        self.address = Address(to_checksum_address(keccak(self._key.public_key.format(compressed=False)[1:])[12:]))

    def sign_digest(self, digest: bytes) -> bytes:
        """A signature that `recover` takes for this key's."""
        raw: bytes = self._key.sign_recoverable(digest, hasher=None)
        signature = raw[:64] + bytes([raw[64] + 27])
        if len(_signed) >= _REMEMBERED:
            _signed.clear()
        _signed[digest, signature] = self.address
        return signature

    def unsafe_sign_hash(self, digest: bytes) -> Any:
        """As eth_account's accounts have it."""
        return SimpleNamespace(signature=self.sign_digest(digest))

    def sign_transaction(self, transaction: dict[str, Any]) -> Any:
        """The transaction, signed."""
        return Account.from_key(self.secret).sign_transaction(transaction)


@functools.cache
def keys(n: int) -> tuple[Key, ...]:
    """The keys of agents 0 to n - 1, in the order of their addresses (as the members of a chain are)."""
    return tuple(sorted((Key(f"simulated agent {index}") for index in range(n)), key=lambda key: key.address))


@functools.cache
def genesis_of(service: Service, n: int) -> Genesis:
    """A genesis whose validators exist only here."""
    members = []
    for index, key in enumerate(keys(n)):
        validator = hashlib.sha256(b"validator %d" % index).digest()
        node = hashlib.sha256(b"node %d" % index).hexdigest()[:40]
        binding = key.sign_digest(binding_digest(CHAIN_ID, validator, node))
        members.append(Member(key.address, validator.hex(), node, binding.hex()))
    return Genesis(
        CHAIN_ID, service.name, service.spec_hash, "", tuple(members), "2026-01-01T00:00:00Z", has_landmarks=True
    )


class _Journal(Journal):
    """Events in memory: nothing of them is agreed, but an error is a violation."""

    def __init__(self, error: Callable[[str], None]) -> None:
        self._error = error
        self._acting_since: dict[int, float] = {}
        self._acted_ms: dict[int, int] = {}
        self._opened_at = (0, 0.0)

    def emit(self, kind: str, **fields: Any) -> None:
        if kind == "error":
            self._error(str(fields.get("message")))

    def close(self) -> None:
        """Nothing is open."""


class _Context(ActContext):
    """Keeps evidence nowhere."""

    def keep(self, name: str, content: bytes) -> None:
        if Path(name).name != name:
            raise ValueError(f"{name!r} is no plain file name")


class _Signer(Signer):
    """The decision maker without the thread between, and what it signed, told to the judge."""

    def __init__(self, process: Process, key: Key, handler: QuorateDecisionMaker) -> None:
        super().__init__(key.address, lambda message: None)
        self._process, self._handler = process, handler

    async def sign(self, request: SigningRequest) -> bytes:
        if not self._process.is_alive:
            raise asyncio.CancelledError
        message = SigningMessage(request)
        self._handler.handle(message)
        signature = message.answer.result(timeout=0)
        self._process.signed(request)
        return signature


class Process:
    """One life of an agent: made at its start, dead after `kill`."""

    def __init__(
        self,
        *,
        service: Service,
        n: int,
        index: int,
        life: int,
        disk: Disk,
        archive: MemoryArchive,
        world: World,
        judge: Judge,
        wall_s: Callable[[], float],
        at: Callable[[str], None],
        lies: random.Random | None,
        may_lie: Callable[[], bool],
        genesis: Genesis | None = None,
    ) -> None:
        self.is_alive = True
        self.key = keys(n)[index]
        self.life = life
        self._judge = judge
        self._lies, self._may_lie = lies, may_lie
        agreed = Agreed()
        handler = QuorateDecisionMaker(
            identity=SimpleNamespace(name=f"agent_{index + 1}", address=self.key.address),
            wallet=SimpleNamespace(crypto_objects={"ethereum": SimpleNamespace(entity=self.key)}),
            config={},
        )
        handler.bind(agreed, CHAIN_ID, world.limits, disk.signed)
        signer = _Signer(self, self.key, handler)
        journal = _Journal(self._fail)
        chain = world.chain(self.key.address)
        equipment = Equipment(
            me=self.key.address,
            chain_id=CHAIN_ID,
            config=world.config,
            log=_log,
            journal=journal,
            evidence=Path("nowhere"),
            chain=chain,
            model=world.model(self.key.address),
            settler=world.settler(self.key.address, signer)
            or (SafeSettler(chain, world.safe, signer, journal) if chain and world.safe else None),
        )
        self.runner = Runner(
            chain_id=CHAIN_ID,
            signer=signer,
            agreed=agreed,
            journal=journal,
            context_of=lambda period: _Context(equipment, period),
        )
        store = MemoryStore(disk, at)
        own = genesis or genesis_of(service, n)
        self.app = ServiceApp(service, own, self.key.address, store, self, wall_s, archive)
        self.runner.connect(self if lies else self.app)

    @property
    def failure(self) -> BaseException | None:
        """What failed beside the handlers, if anything did."""
        ours: asyncio.Future[Any] = self.app.failed if self.app.failed.done() else self.runner.failure
        return ours.result() if ours.done() else None

    def start(self, broadcast: Callable[[bytes], Any]) -> None:
        """As when the node is up."""

        async def send(tx: bytes) -> Broadcast:
            return Broadcast(await broadcast(tx) if self.is_alive else 1, "")

        self.app.start(send)

    def kill(self) -> list[asyncio.Task[None]]:
        """kill -9: from here on nothing of this life has an effect. The tasks are the broom that sweeps up."""
        self.is_alive = False
        loop = asyncio.get_running_loop()
        return [loop.create_task(self.app.stop()), loop.create_task(self.runner.close())]

    def signed(self, request: SigningRequest) -> None:
        """The boundary has signed this."""
        if isinstance(request, UnsignedPayload):
            self._judge.signed(self.key.address, self.life, request)
        elif isinstance(request, IntentRequest):
            is_agreed = request.intent in self._judge.intents
            self._judge.require("signs nothing undecided", is_agreed, f"{self.key.address} signs {request.intent}")

    def opened(self, period: Period, committed: bool) -> None:
        """The application's word for the runner; what is decided is compared with what the others were told."""
        if committed:
            self._read(period, self.app.height)
        self.runner.opened(period, committed)

    def settled(self, settled: Settled, period: Period, height: int) -> None:
        """As `opened`."""
        self._read(period, height)
        self.runner.settled(settled, period, height)

    def sent(self, payload: SignedPayload, via: Via) -> None:
        """For the runner."""
        self.runner.sent(payload, via)

    def offended(self, offence: Offence, proof: bytes) -> None:
        """For the runner."""
        self.runner.offended(offence, proof)

    async def sign_tick(self, tick: UnsignedPayload) -> bytes:
        """The runner's signature."""
        return await self.runner.sign_tick(tick)

    async def sign_statement(self, statement: UnsignedStatement) -> bytes:
        """The runner's signature."""
        return await self.runner.sign_statement(statement)

    def _read(self, period: Period, height: int) -> None:
        if self.is_alive and self._lies is None:
            self._judge.read(self.key.address, self.life, height, period.digest())

    def offer(self, payload: SignedPayload) -> None:
        """A liar's way to the chain: another payload than its act gave."""
        assert self._lies is not None  # noqa: S101  # only liars are connected here
        if self._may_lie() and self._lies.random() < _LIE_RATE:
            payload = self.forge(payload, self._lies)
        self.app.offer(payload)

    def ask(self, request: SignedPayload) -> None:
        """A liar's requests are its own business."""
        self.app.ask(request)

    def ask_upgrade(self, ask: SignedPayload) -> None:
        """A liar asks for what its operator wants, as everybody."""
        self.app.ask_upgrade(ask)

    def forge(self, payload: SignedPayload, rng: random.Random) -> SignedPayload:
        """`payload` with another body, under this agent's own valid signature."""
        body = mutate(payload.body, rng, self._judge.members)
        lie = UnsignedPayload(CHAIN_ID, payload.period, payload.sequence, payload.round, payload.opening, body)
        return lie.signed(self.key.address, self.key.sign_digest(lie.digest()))

    def _fail(self, message: str) -> None:
        if self.is_alive and not self._lies:
            self._judge.require("nobody fails", False, f"{self.key.address}: {message}")


def mutate(body: bytes, rng: random.Random, members: Iterable[Address]) -> bytes:
    """Another payload of mostly the same shape, or junk."""
    if rng.random() < 0.1:
        return rng.choice((b"", b"{", b"1.5", b"\xff\xff", b"[" * 3000, b'"' + b"x" * 8000 + b'"', b"null"))
    varied = _vary(json.loads(body), rng, list(members))
    return json.dumps(varied, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _vary(value: Any, rng: random.Random, members: list[Address]) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1, 1000, -(10**9)))
    if isinstance(value, str):
        return rng.choice([*members, value + "x", "", "ABSTAIN", "FOR", "0x" + "00" * 32])
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        return [*value[:at], _vary(value[at], rng, members), *value[at + 1 :]]
    if isinstance(value, dict) and value:
        name = rng.choice(sorted(value))
        return {**value, name: _vary(value[name], rng, members)}
    return value
