"""Change who the agents are while the service runs: one lets itself in, leaves, or is replaced, as a quorum approves.

The rules that hold here:
- Each operator approves one concrete change at his own agent: a join names the member with its keys, bound to this
  chain by its own signature. Agents of a quorum that approve the same change make it; nothing else does.
- A change that is not possible (a member joins, a stranger leaves, a binding is forged) is refused, whoever approved.
- The others do their part until the round in which it is agreed ends; from the next one on the new members count.

How a service offers it: its state extends `quorate.members.Membership`, its table joins `transitions`, and
``interrupts=(interrupt, ...)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, TypeVar

from quorate.fsm import BACK, AnyRound, Context, Interrupt, Outcome, Votes, agree
from quorate.members import Change, Membership, with_change

__all__ = ["CHANGE_MEMBERS", "MembershipContext", "change_members", "interrupt", "transitions"]

CHANGE_MEMBERS = "CHANGE_MEMBERS"
"""The interrupt that an agent asks for once its operator has approved a change."""


class MembershipContext(Context, Protocol):
    """What an agent reaches while the members change."""

    @property
    def approved(self) -> Change | None:
        """The change that this agent's operator approves; None: none, or it was made or withdrawn."""
        ...


M = TypeVar("M", bound=Membership)


def settle_change(
    state: M, votes: Votes[Change | None]
) -> Outcome[Literal["DONE", "REFUSED", "NO_MAJORITY"], M] | None:
    """DONE where a quorum approves the same possible change: its members are the service's from the next round on.

    REFUSED where a quorum approves none, or one that is not possible. Fewer than a third of liars can neither bring a
    member in nor throw one out; absent agents only delay.
    """
    for change in votes.agreed():
        if change is None or change.problem(state.chain, state.roster) is not None:
            return Outcome("REFUSED", state)
        return Outcome("DONE", with_change(state, change))
    return Outcome("NO_MAJORITY", state) if votes.split() else None


@agree(settle_change, timeout_s=30)
async def change_members(ctx: MembershipContext, state: Membership) -> Change | None:
    """Say which change this agent's operator approves."""
    return ctx.approved


interrupt = Interrupt(CHANGE_MEMBERS, change_members)
transitions: Mapping[tuple[AnyRound, str], AnyRound] = {
    (change_members, "DONE"): BACK,
    (change_members, "REFUSED"): BACK,
    (change_members, "NO_MAJORITY"): BACK,
    (change_members, "ROUND_TIMEOUT"): BACK,
}
