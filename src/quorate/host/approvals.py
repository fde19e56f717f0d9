"""Which change of members this agent's operator approves: in the agent's home, so that a restart forgets nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quorate.abci import ServiceApp
from quorate.durable import replace_file
from quorate.errors import ConfigError, PeerError, ServiceError
from quorate.fsm import ROUND_TIMEOUT, Period, Settled, codec
from quorate.members import Change, Membership
from quorate.rounds.membership import CHANGE_MEMBERS, change_members
from quorate.rounds.owners import agree_change

from .control import Verb
from .runner import Runner

__all__ = ["Approvals", "Guests", "membership_verbs"]

MOST_GUESTS = 16


class Approvals:
    """The one change that is approved at a time, in a file that only its owner may read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def change(self) -> Change | None:
        """What is approved; None where nothing is. `ConfigError` where the file is damaged."""
        try:
            approved: Change = codec.decode(Change, self._path.read_bytes())
        except FileNotFoundError:
            return None
        except PeerError as error:  # no peer: our own disk
            raise ConfigError(f"{self._path} holds no approved change: {error}", fix="Remove it.") from error
        return approved

    def approve(self, change: Change, period: Period) -> None:
        """Approve `change` in place of whatever was. `ConfigError` where it is not possible after `period`."""
        state = period.state
        if not isinstance(state, Membership):
            raise ConfigError(
                f"the members of {period.service.name} cannot change: its state is no Membership",
                fix="See docs/membership.md for what its service.py has to declare.",
            )
        if (problem := change.problem(state.chain, state.roster)) is not None:
            raise ConfigError(f"this change cannot be made: {problem}")
        replace_file(self._path, codec.encode(change), mode=0o600)

    def settled(self, settled: Settled) -> None:
        """Forget what is approved once a round has decided about it: an approval counts for one round, then it is over.

        Else an old one would let a member in whom the others had thrown out since.
        """
        rounds = (change_members.name, agree_change.name)
        if settled.round_name in rounds and settled.event != ROUND_TIMEOUT:
            self.withdraw()

    def withdraw(self) -> None:
        """Approve nothing."""
        self._path.unlink(missing_ok=True)


class Guests:
    """The nodes that are no member's and may connect all the same: in a file, so that a restart turns nobody away."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def nodes(self) -> tuple[str, ...]:
        """Their ids, the newest last. `ConfigError` where the file is damaged."""
        try:
            found: tuple[str, ...] = codec.decode(tuple[str, ...], self._path.read_bytes())
        except FileNotFoundError:
            return ()
        except PeerError as error:  # no peer: our own disk
            raise ConfigError(f"{self._path} holds no nodes' ids: {error}", fix="Remove it.") from error
        return found

    def welcome(self, node: str) -> None:
        """One more; the oldest beyond `MOST_GUESTS` is forgotten."""
        others = [one for one in self.nodes if one != node]
        replace_file(self._path, codec.encode((*others, node)[-MOST_GUESTS:]), mode=0o600)


def membership_verbs(app: ServiceApp, runner: Runner, approvals: Approvals, guests: Guests) -> dict[str, Verb]:
    """What this machine's user can tell this agent of its members: `members`, `welcome`, `approve`, `disapprove`."""

    async def members(request: Mapping[str, Any]) -> Mapping[str, Any]:
        change, period = approvals.change, app.period
        return {
            "members": [asdict(one) for one in app.members],
            "quorum": period.quorum,
            "height": app.height,
            "is_member": app.me in period.members,
            "can_change": isinstance(period.state, Membership),
            "approved": None if change is None else str(change),
        }

    async def welcome(request: Mapping[str, Any]) -> Mapping[str, Any]:
        guests.welcome(request["node"])
        app.welcome(request["node"])
        return {}

    async def approve(request: Mapping[str, Any]) -> Mapping[str, Any]:
        change = _change(request["change"])
        approvals.approve(change, app.period)
        if change.join is not None:
            app.welcome(change.join.node_id)
        runner.ask(CHANGE_MEMBERS)
        return {"approved": str(change)}

    async def disapprove(request: Mapping[str, Any]) -> Mapping[str, Any]:
        approvals.withdraw()
        runner.withdraw(CHANGE_MEMBERS)
        return {}

    return {
        "members": Verb(members),
        "welcome": Verb(welcome, {"node": str}),
        "approve": Verb(approve, {"change": dict}),
        "disapprove": Verb(disapprove),
    }


def _change(told: Mapping[str, Any]) -> Change:
    try:
        change: Change = codec.decode(Change, codec.encode(dict(told)))
    except (PeerError, ServiceError) as error:
        raise ConfigError(f"this is no change of members: {error.message}") from error
    return change
