"""Which change of members this agent's operator approves: in the agent's home, so that a restart forgets nothing."""

from __future__ import annotations

from pathlib import Path

from quorate.errors import ConfigError, PeerError
from quorate.fsm import ROUND_TIMEOUT, Period, Settled, codec
from quorate.members import Change, Membership
from quorate.rounds.membership import change_members
from quorate.rounds.owners import agree_change

__all__ = ["Approvals"]


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
        part = self._path.with_suffix(".part")
        part.touch(mode=0o600)
        part.write_bytes(codec.encode(change))
        part.replace(self._path)

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
