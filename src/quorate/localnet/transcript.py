"""A transcript: the decided blocks of a real network and what they led to, replayed through today's code.

A file of JSON lines. The first holds the service, the specification that it had, the chain's genesis and, unless the
recording begins with the first block, the replicated state that it begins with (`start`). Each other one is a block:
what the application saw of it (`time_ms`, `txs`, who was `absent` and `present`), and what came of it (`app_hash`;
`counted`, for each transaction; where a round ended `settled` and the agreed `state`). Nothing in it is secret.
Nothing here does I/O but `Transcript.load` and `save`.

Where the network changed its code on the way (`quorate.abci.upgrade`), each version executes the blocks that it
decided: the older ones are given as `older`. A recording whose start is the last state of an older version needs none:
that is taken over by the migration of today's code, and the blocks after it are replayed.

A replay that gives another app hash is a *break*: agents of the old and the new code would part there. Where that is
meant, the first line names the block and the reason (`broken`), and the replay has to break exactly there.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorate.abci import Genesis
from quorate.abci.machine import Applied, Block, Replica, apply_block
from quorate.abci.membership import begin, by_validator
from quorate.abci.transaction import Roll, Transaction
from quorate.errors import ConfigError, PeerError, QuorateError
from quorate.fsm import Period, Service, codec

__all__ = ["Break", "Broken", "Decided", "Replayed", "Transcript", "annotate", "first_replica", "replay"]

VERSION = 1


@dataclass(frozen=True)
class Decided:
    """One decided block, as every agent's application saw it."""

    height: int
    time_ms: int
    txs: tuple[bytes, ...]
    absent: tuple[str, ...]
    present: tuple[str, ...]
    app_hash: str
    """Hex, after the block."""
    counted: tuple[bool, ...] = ()
    """For each transaction, whether it counted; empty before `annotate`."""
    settled: tuple[str, str] | None = None
    """The round that the block ended, and the event."""
    state: Mapping[str, Any] | None = None
    """What was agreed when it did."""
    hash: str = ""
    """Hex; what offences of validators have as evidence."""
    misbehaved: tuple[str, ...] = ()
    """Validators whom CometBFT convicts in it."""


@dataclass(frozen=True)
class Broken:
    """A break that is meant."""

    height: int
    why: str


@dataclass(frozen=True)
class Transcript:
    """What is in a file."""

    service: str
    genesis: Genesis
    spec: Mapping[str, Any]
    """The service's specification when it was recorded."""
    blocks: tuple[Decided, ...]
    broken: Broken | None = None
    start: bytes | None = None
    """The encoded replica before the first of the blocks; None: that of the genesis."""

    @staticmethod
    def load(path: Path) -> Transcript:
        """Read a file; `ConfigError` names the line that is wrong."""
        number = 0
        try:
            with path.open(encoding="utf-8") as file:
                head: dict[str, Any] = {}
                blocks = []
                for number, line in enumerate(file, 1):
                    value = json.loads(line)
                    if number == 1:
                        head = value
                    else:
                        blocks.append(_block(value))
            if head["transcript"] != VERSION:
                raise ConfigError(f"{path} is of version {head['transcript']}; this is {VERSION}")
            broken = None if head.get("broken") is None else Broken(**head["broken"])
            genesis, start = Genesis.parse(head["genesis"]), head.get("start")
            start = None if start is None else base64.b64decode(start, validate=True)
            return Transcript(head["service"], genesis, head["spec"], tuple(blocks), broken, start)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}, line {number} is not of a transcript: {type(error).__name__}: {error}",
                fix="Record it again: ./quorate replay --record FILE",
            ) from error

    def save(self, path: Path) -> None:
        """Write a file."""
        head = {
            "transcript": VERSION,
            "service": self.service,
            "broken": None if self.broken is None else dataclasses.asdict(self.broken),
            "spec": self.spec,
            "genesis": self.genesis.document(),
            "start": None if self.start is None else base64.b64encode(self.start).decode(),
        }
        lines = [json.dumps(one, separators=(",", ":")) for one in (head, *map(_line, self.blocks))]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@dataclass(frozen=True)
class Break:
    """Where today's code parts from the recorded network."""

    height: int
    round: str
    """The round that was going on."""
    cause: str
    """What differs, as near to its source as can be told."""
    expected: str
    """The recorded app hash."""
    got: str


@dataclass(frozen=True)
class Replayed:
    """What a replay gave."""

    blocks: int
    """Blocks that gave the recorded app hash."""
    rounds: int
    periods: int
    broken: Break | None

    def is_as_meant(self, broken: Broken | None) -> bool:
        """True where it breaks exactly where the transcript says, or nowhere if it says nothing."""
        return (self.broken and self.broken.height) == (broken and broken.height)


def replay(transcript: Transcript, service: Service, older: Sequence[Service] = ()) -> Replayed:
    """Run the transcript's blocks through today's `service` and machine, up to the first difference.

    `older` are the versions that decided some of the blocks before `service` did.
    """
    rounds = periods = 0
    first: int | None = None
    steps = zip(transcript.blocks, _run(transcript, service, older), strict=False)
    for done, (block, (before, applied)) in enumerate(steps):
        first = before.period.state.period if first is None else first
        if isinstance(applied, QuorateError):
            cause = f"today's code fails: {applied}"
            return Replayed(done, rounds, periods, Break(block.height, before.period.round.name, cause, "", ""))
        got = applied.replica.app_hash.hex()
        if got != block.app_hash:
            cause = _cause(transcript, service, older, block, applied)
            return Replayed(
                done, rounds, periods, Break(block.height, before.period.round.name, cause, block.app_hash, got)
            )
        rounds += applied.settled is not None
        periods = applied.replica.period.state.period - first
    return Replayed(len(transcript.blocks), rounds, periods, None)


def annotate(
    transcript: Transcript, service: Service, periods: int | None = None, older: Sequence[Service] = ()
) -> Transcript:
    """The transcript with what its blocks led to, cut after `periods` periods.

    `ConfigError` where today's code does not give the recorded app hashes: what it adds would not be true.
    """
    blocks = []
    last: int | None = None
    for block, (before, applied) in zip(transcript.blocks, _run(transcript, service, older), strict=False):
        if last is None and periods is not None:
            last = before.period.state.period + periods
        if isinstance(applied, QuorateError) or applied.replica.app_hash.hex() != block.app_hash:
            raise ConfigError(
                f"the network decided another state at block {block.height} than this code",
                fix="Record with the version of Quorate and of the service that the network runs.",
            )
        settled = _settled(applied)
        state = None if settled is None else _plain(applied.replica.period)
        blocks.append(dataclasses.replace(block, counted=applied.accepted, settled=settled, state=state))
        if last is not None and applied.replica.period.state.period >= last:
            break
    return dataclasses.replace(transcript, blocks=tuple(blocks), spec=service.spec())


def _run(
    transcript: Transcript, service: Service, older: Sequence[Service]
) -> Iterator[tuple[Replica, Applied | QuorateError]]:
    genesis = transcript.genesis
    versions = {one.spec_hash: one for one in (*older, service)}
    replica = Replica.start(begin(versions.get(genesis.spec_hash, service), genesis), genesis.has_landmarks)
    if transcript.start is not None:
        try:
            replica = first_replica(transcript.start, service, older)
        except ConfigError as error:  # of another version: that is the break
            yield replica, error
            return
    for block in transcript.blocks:
        due = replica.upgrades.due
        if due is not None and replica.upgrades.is_due(block.height) and due.target.spec_hash in versions:
            try:
                replica = Replica.decode(versions[due.target.spec_hash], replica.encode())
            except ConfigError as error:
                yield replica, error
                return
        senders = by_validator(replica.members or genesis.members, replica.turnover).values()
        roll = Roll(genesis.chain_id, {member.address for member in senders})
        owners = {member.validator_address: member.address for member in senders}
        txs = tuple(_transaction(roll, data) for data in block.txs)
        try:
            proved = block.misbehaved, bytes.fromhex(block.hash), owners
            seen = Block(block.height, block.time_ms, txs, block.absent, block.present, *proved)
            applied = apply_block(replica, seen)
        except QuorateError as error:
            yield replica, error
            return
        yield replica, applied
        replica = applied.replica


def first_replica(start: bytes, service: Service, older: Sequence[Service]) -> Replica:
    """The state that a recording begins with, in the one version that goes on from it."""
    try:
        return Replica.decode(service, start)
    except ConfigError:
        for one in older:
            with contextlib.suppress(ConfigError):
                return Replica.decode(one, start)
        raise


def _transaction(roll: Roll, data: bytes) -> Transaction | None:
    try:
        return roll.transaction(data)
    except PeerError:
        return None


def _cause(transcript: Transcript, service: Service, older: Sequence[Service], block: Decided, applied: Applied) -> str:
    if transcript.spec != service.spec():
        return f"the specification of {service.name} changed: {_differences(transcript.spec, service.spec())}"
    is_known = transcript.genesis.spec_hash in {one.spec_hash for one in (service, *older)}
    if not is_known and transcript.start is None and service.version > 1:
        return (
            f"the chain began with the version {transcript.genesis.spec_hash[:12]}, which is not among the older ones"
        )
    if not is_known and service.version == 1:
        return f"a time limit of a round of {service.name}, or the type of a payload or of the state, changed"
    if block.counted and block.counted != applied.accepted:
        which = [index for index, (a, b) in enumerate(zip(block.counted, applied.accepted, strict=False)) if a != b]
        then, now = ("counted", "is refused") if block.counted[which[0]] else ("was refused", "counts")
        return f"transaction {which[0]} {then}, and {now} today"
    settled = _settled(applied)
    if block.settled != settled:
        return f"a rule decides otherwise: recorded {_event(block.settled)}, today {_event(settled)}"
    state = _plain(applied.replica.period)
    if block.state is not None and block.state != state:
        return f"the agreed state differs: {_differences(block.state, state)}"
    return "the encoding of what is agreed changed, or what the app hash covers"


def _settled(applied: Applied) -> tuple[str, str] | None:
    return None if applied.settled is None else (applied.settled.round_name, applied.settled.event)


def _event(settled: tuple[str, str] | None) -> str:
    return "no end of a round" if settled is None else f"{settled[0]} {settled[1]}"


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    return "; ".join(_difference(name, then.get(name), now.get(name)) for name in names)


def _difference(name: str, then: Any, now: Any) -> str:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        return f"{name} ({_differences(then, now)})"
    if isinstance(then, Sequence) and isinstance(now, Sequence) and not isinstance(then, str):
        gone, come = [one for one in then if one not in now], [one for one in now if one not in then]
        return f"{name} (without {gone}, with {come})"
    return f"{name} was {json.dumps(then)}, is {json.dumps(now)}"


def _plain(period: Period) -> Any:
    return json.loads(codec.encode(period.state))


def _block(value: dict[str, Any]) -> Decided:
    settled = value.get("settled")
    return Decided(
        height=int(value["height"]),
        time_ms=int(value["time_ms"]),
        txs=tuple(base64.b64decode(tx, validate=True) for tx in value["txs"]),
        absent=tuple(value["absent"]),
        present=tuple(value["present"]),
        app_hash=str(value["app_hash"]),
        counted=tuple(map(bool, value["counted"])),
        settled=None if settled is None else (str(settled[0]), str(settled[1])),
        state=value.get("state"),
        hash=str(value.get("hash", "")),
        misbehaved=tuple(value.get("misbehaved", ())),
    )


def _line(block: Decided) -> dict[str, Any]:
    value = dataclasses.asdict(block) | {"txs": [base64.b64encode(tx).decode() for tx in block.txs]}
    return {name: one for name, one in value.items() if one is not None}
