"""The first round: every member reports, and the participants are bound."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quorate.fsm import Context, Outcome, State, Votes, agree
from quorate.units import Address

__all__ = ["register"]


def settle_register(state: State, votes: Votes[Address]) -> Outcome[Literal["DONE"], State] | None:
    """DONE when all members have reported; they are the participants from then on.

    Tolerates nobody: one missing agent holds the start up (ROUND_TIMEOUT, and again). What counts is who signed the
    payload, not the address in it.
    """
    if len(votes) < votes.n:
        return None
    return Outcome("DONE", replace(state, participants=votes.senders()))


@agree(settle_register, timeout_s=60, sets={"DONE": ("participants",)})
async def register(ctx: Context, state: State) -> Address:
    """Report that this agent is up."""
    return ctx.me
