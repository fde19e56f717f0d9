"""The last round of a lap: rest, then begin the next period with the fields that the state declares to keep."""

from __future__ import annotations

from typing import Literal

from quorate.fsm import NO_MAJORITY, Context, Outcome, State, Votes, agree

__all__ = ["pause"]

REST_S = 10
LIMIT_S = 3600  # only bounds how long a lost quorum goes unnoticed; the chain sleeps meanwhile


def settle_pause(state: State, votes: Votes[int]) -> Outcome[Literal["DONE", "NO_MAJORITY"], State] | None:
    """DONE when a quorum has rested; the state becomes its `next_period`.

    Tolerates f silent or lying agents (f below a third). A liar can neither shorten the rest nor, alone, draw it out.
    """
    if votes.same() == state.period:
        return Outcome("DONE", state.next_period())
    return Outcome(NO_MAJORITY, state) if votes.split() else None


@agree(settle_pause, timeout_s=LIMIT_S, resets=("DONE",))
async def pause(ctx: Context, state: State) -> int:
    """Rest for ``ctx.config.pause_s`` seconds (10 if there is no such setting), then name the period that is over.

    More than an hour ends in ROUND_TIMEOUT.
    """
    await ctx.sleep(getattr(ctx.config, "pause_s", REST_S))
    return state.period
