"""A service's code changes between two blocks that a quorum of members agreed on; its state goes on. Pure.

- Each member asks for a plan: a version, and from which block on at the earliest. An ask is a signed transaction; it
  stands until that member's next one, and has an effect when a quorum asks for the same plan: the change is then due
  at that block, or at the next one. A quorum that asks for the version that runs takes it back.
- Blocks below that height belong to the old code, which stops before it (`UpgradeDue`); the others to the new one,
  which refuses a state that is not yet there. Neither ever executes a block of the other.
- The new code reads the last state of the old one and has the service's migration make its own from it (`take_over`).
  Payloads, asks for interrupts and ticks of the round that went on are dropped: the round begins anew.
- The app hash covers asks and plan, and that of the last old block is what the new code answers for it: so all agents
  change at the same block to the same code, or stop.

A version is meant by its `spec_hash`, which covers its number, and by the hash of the settings that agents share.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from quorate.abci.payload import SignedPayload, UnsignedPayload
from quorate.errors import ConfigError, PeerError
from quorate.fsm import Period, Service, Votes, codec
from quorate.members import Membership
from quorate.nesting import load_json
from quorate.units import Address

__all__ = ["ASK_ROUND", "FIRST_HEIGHT", "Plan", "Target", "UpgradeDue", "Upgrades", "ask_for", "take_over"]

FIRST_HEIGHT = 1
ASK_ROUND = "/upgrade"
"""Under this name an ask is signed; no round's own name holds a slash."""
_MOST = 1 << 53  # of a version or height: exact in every JSON reader
_HASH = re.compile(r"[0-9a-f]{64}")
_Rest = tuple[int, int, str, tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]  # as `Period.encode` writes it


class UpgradeDue(ConfigError):
    """The next block belongs to another version of the service than this code is. Nothing is wrong with the state."""

    exit_code = 3
    """With which an agent's process ends then."""

    def __init__(self, service: str, running: int, plan: Plan) -> None:
        super().__init__(
            f"the members of {service} agreed on version {plan.target.version} ({plan.target.spec_hash[:12]}) from "
            f"block {plan.height} on; this is version {running}, and its work is done",
            fix="Start this agent again with that version; it takes the state over.",
        )
        self.plan = plan


@dataclass(frozen=True)
class Target:
    """A version of a service, as agents agree on it."""

    version: int
    spec_hash: str
    config_hash: str = ""
    """Of the settings that agents share; empty where they are not compared."""

    @staticmethod
    def of(service: Service, config_hash: str = "") -> Target:
        """The version that this code is."""
        return Target(service.version, service.spec_hash, config_hash)


@dataclass(frozen=True)
class Plan:
    """A change of the code."""

    target: Target
    height: int = 0
    """The first block of the new version, at the earliest; once a quorum has asked for it, exactly."""


@dataclass(frozen=True)
class Upgrades:
    """What the agents agree on about the version that runs and the next one."""

    began: int = FIRST_HEIGHT
    """The first block of the version that runs."""
    config_hash: str = ""
    """Of the settings that its agents share; empty for the genesis' own."""
    asks: tuple[tuple[Address, int, Plan], ...] = ()
    """Who asks for what, and in which round (its sequence number) that was signed; sorted."""
    due: Plan | None = None

    @cached_property
    def encoding(self) -> bytes:
        """In canonical JSON; made once, for every block needs it."""
        return codec.encode(self)

    def is_due(self, height: int) -> bool:
        """True where the block of that height belongs to the next version."""
        return self.due is not None and height >= self.due.height

    def asked(self, period: Period, payload: SignedPayload) -> Upgrades:
        """With this verified ask; `PeerError` where it does not count now."""
        if payload.round != ASK_ROUND:
            raise PeerError(f"an ask under the name {payload.round}; expected {ASK_ROUND}")
        running = period.service
        last = {who: sequence for who, sequence, _ in self.asks}.get(payload.sender, 0)
        if payload.sender not in period.members:
            raise PeerError(f"an ask of {payload.sender}, who is no member any more")
        if payload.opening.hex() != running.spec_hash:
            raise PeerError(f"an ask to leave the version {payload.opening.hex()[:12]}; {running.spec_hash[:12]} runs")
        if not last < payload.sequence <= period.sequence:
            raise PeerError(f"an ask of round {payload.sequence}; expected one of {last + 1} to {period.sequence}")
        plan = codec.decode(Plan, payload.body)
        if problem := _problem(plan, running):
            raise PeerError(problem, evidence=payload.body)
        asks = {ask[0]: ask for ask in (*self.asks, (payload.sender, payload.sequence, plan))}
        return dataclasses.replace(self, asks=tuple(asks[who] for who in sorted(asks)))

    def decided(self, period: Period, height: int) -> Upgrades:
        """After the block of `height`: with the plan that a quorum of members asks for, if there is one."""
        counts = Counter(plan for who, _, plan in self.asks if who in period.members)
        plan = next((plan for plan, count in counts.items() if count >= period.quorum), None)
        if plan is None:
            return self
        is_back = plan.target.spec_hash == period.service.spec_hash
        return dataclasses.replace(
            self, due=None if is_back else dataclasses.replace(plan, height=max(plan.height, height + 1))
        )


NO_UPGRADES = Upgrades()


def ask_for(chain_id: str, period: Period, plan: Plan) -> UnsignedPayload:
    """What a member signs to ask for `plan`; for the version of `period` itself: to take its ask back.

    `ConfigError` where no member could ask for that.
    """
    if problem := _problem(plan, period.service):
        raise ConfigError(problem)
    leave = bytes.fromhex(period.service.spec_hash)
    return UnsignedPayload(chain_id, 0, period.sequence, ASK_ROUND, leave, codec.encode(plan))


def take_over(service: Service, data: bytes, upgrades: Upgrades, height: int) -> tuple[Period, Upgrades]:
    """The period in `data` (`Period.encode`, after the block of `height`), in the version that `service` is.

    Where an older version wrote it and the change is agreed and due, it is migrated. `ConfigError` with what to do
    about it in every other case; `PeerError` or `ValueError` where the data is no period.
    """
    name, spec_hash, *_ = _head(data)
    if (name, spec_hash) == (service.name, service.spec_hash) or name != service.name:
        return Period.decode(service, data), upgrades  # which refuses another service's
    due, mine = upgrades.due, f"version {service.version} ({service.spec_hash[:12]})"
    if due is None or due.target.spec_hash != service.spec_hash:
        agreed = "no other one" if due is None else f"version {due.target.version} ({due.target.spec_hash[:12]}) next"
        raise ConfigError(
            f"the stored state of {name} (block {height}) is of the version {spec_hash[:12]} and its members have "
            f"agreed on {agreed}; this is {mine}",
            fix="Start the agent with the version that its members agreed on. If they have left it behind: let the old "
            "version catch up until it stops, or move the agent's state and node data away (not its keys and signing "
            "state), and the new one takes a snapshot from its peers.",
        )
    if not upgrades.is_due(height + 1):
        raise ConfigError(
            f"{mine} of {name} begins with block {due.height}; this agent has come to block {height}",
            fix="Start the older version until it ends by itself, then this one.",
        )
    return _migrated(service, data, spec_hash), Upgrades(due.height, due.target.config_hash)


def _migrated(service: Service, data: bytes, spec_hash: str) -> Period:
    """The older version's period in this one: its round (or what the migration says) begins anew."""
    migration = service.migrations.get(spec_hash)
    if migration is None:
        raise ConfigError(
            f"version {service.version} of {service.name} cannot take over a state of {spec_hash}",
            fix=f"Give it a migration from there; it has those from {sorted(service.migrations)}.",
        )
    _, _, old_round, *members = _head(data)
    _, state, rest, *_ = data.split(b"\n")
    sequence, _, origin, _, interrupted = codec.decode(_Rest, rest)
    plain = _plain(state)
    old_period, members_before = plain.get("period"), _membership(plain)
    try:
        made, name = migration(plain, old_round)
        new = codec.conform(service.state, made)
    except Exception as error:  # whatever the author's function raises: here it gets a name and a way out
        raise ConfigError(
            f"the migration of {service.name} from {spec_hash[:12]} failed in {old_round}: {error!r}",
            fix="Correct it (that leaves the specification's hash as it is) and start the agent again.",
        ) from error
    inside = () if name in service.main else interrupted
    known = {one.event for one in service.interrupts}
    if name not in service.rounds or (name not in service.main and not inside):
        raise ConfigError(
            f"the migration of {service.name} from {spec_hash[:12]} goes on from {old_round} in {name!r}; "
            f"expected one of {sorted(service.main)}, or of an interrupt that was going on",
            fix="Correct it and start the agent again.",
        )
    if lost := [pair for pair in inside if pair[0] not in known or pair[1] not in service.rounds]:
        raise ConfigError(
            f"the interrupts {lost} were going on, which version {service.version} of {service.name} has not",
            fix="Let the migration go on in a round outside of them.",
        )
    addresses = tuple(Address(member) for member in members)
    mine = _membership(json.loads(codec.encode(new))) if isinstance(new, Membership) else None
    if mine != members_before and (members_before or mine is None or [one["address"] for one in mine[1]] != members):
        raise ConfigError(
            f"the migration of {service.name} from {spec_hash[:12]} gives {mine} for chain and roster; they were "
            f"{members_before}, and the members are {members}",
            fix="Let it carry both over as they are: an upgrade changes no members.",
        )
    if new.period != old_period:
        origin = hashlib.sha256(codec.encode(new)).hexdigest()
    none: Votes[Any] = Votes.of((), n=len(addresses))
    return Period(service, addresses, service.rounds[name], new, sequence + 1, none, 0, origin, (), inside)


def _membership(state: dict[str, Any]) -> tuple[Any, Any] | None:
    """Chain and roster where the plain state is that of a `Membership`."""
    roster = state.get("roster")
    is_one = "chain" in state and isinstance(roster, list) and all("validator_key" in one for one in roster)
    return (state["chain"], roster) if is_one else None


def _problem(plan: Plan, running: Service) -> str:
    """Why nobody may ask for this plan while that version runs; empty where one may."""
    target = plan.target
    if target.spec_hash == running.spec_hash:
        return "" if plan == Plan(Target.of(running)) else "an ask for the version that runs, with a height or settings"
    if not (_HASH.fullmatch(target.spec_hash) and re.fullmatch(f"({_HASH.pattern})?", target.config_hash)):
        return f"the hashes {target.spec_hash[:80]!r} and {target.config_hash[:80]!r}; expected 64 hex digits each"
    if not running.version < target.version < _MOST or not 0 <= plan.height < _MOST:
        return f"version {target.version} from block {plan.height} on; expected a version over {running.version}"
    return ""


def _head(data: bytes) -> tuple[str, ...]:
    """The service's name, its spec hash, the round, and the members."""
    found: tuple[str, ...] = codec.decode(tuple[str, ...], data.split(b"\n")[0])
    if len(found) < 4:
        raise ValueError("no name, specification, round and members")
    return found


def _plain(state: bytes) -> dict[str, Any]:
    plain = load_json(state)
    if not isinstance(plain, dict):
        raise ValueError("the agreed state is no object")
    return plain
