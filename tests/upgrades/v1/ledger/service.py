"""The first version: a number is written down and added up, period by period, in whole coins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from quorate import Context, Outcome, Service, State, Votes, agree, keep, same


@dataclass(frozen=True)
class Ledger(State):
    coins: int = keep(0)
    entry: int = 0


@agree(same("entry"), timeout_s=5)
async def write_down(ctx: Context, state: Ledger) -> int:
    """Each period one more."""
    await ctx.sleep(0.02)
    return state.period + 1


def settle_sum(state: Ledger, votes: Votes[int]) -> Outcome[Literal["DONE"], Ledger] | None:
    """A quorum has seen the entry: it counts, and the period ends."""
    if votes.same() is None:
        return None
    return Outcome("DONE", replace(state.next_period(), coins=state.coins + state.entry))


@agree(settle_sum, timeout_s=5, needs=("entry",), resets=("DONE",))
async def add_up(ctx: Context, state: Ledger) -> int:
    await ctx.sleep(0.02)
    return state.entry


service = Service("ledger", state=Ledger, start=write_down, otherwise=write_down, transitions={
    (write_down, "DONE"): add_up, (add_up, "DONE"): write_down,
})  # fmt: skip
