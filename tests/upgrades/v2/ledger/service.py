"""The second version: amounts in cents, entries are counted, and `add_up` became `book`.

A state of the first version is taken over by `from_1`: nothing is added up twice, and nothing is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from quorate import Context, Outcome, Service, State, Votes, agree, keep, same

OF_1 = "22c21f39108d10ed911bd124ab6ab00111d31baf9ab37afd603cb69002a0b7f0"


@dataclass(frozen=True)
class Ledger(State):
    cents: int = keep(0)
    entry_cents: int = 0
    entries: int = keep(0)


@agree(same("entry_cents"), timeout_s=5)
async def write_down(ctx: Context, state: Ledger) -> int:
    """Each period one coin more."""
    await ctx.sleep(0.02)
    return 100 * (state.period + 1)


def settle_sum(state: Ledger, votes: Votes[int]) -> Outcome[Literal["DONE"], Ledger] | None:
    """A quorum has seen the entry: it counts, and the period ends."""
    if votes.same() is None:
        return None
    booked = replace(state.next_period(), cents=state.cents + state.entry_cents, entries=state.entries + 1)
    return Outcome("DONE", booked)


@agree(settle_sum, timeout_s=5, needs=("entry_cents",), resets=("DONE",))
async def book(ctx: Context, state: Ledger) -> int:
    await ctx.sleep(0.02)
    return state.entry_cents


def from_1(old: Mapping[str, Any], round: str) -> tuple[Ledger, str]:
    """Coins become cents; the first version had one entry a period. It goes on where it was."""
    state = Ledger(
        participants=tuple(old["participants"]),
        period=old["period"],
        cents=100 * old["coins"],
        entry_cents=100 * old["entry"],
        entries=old["period"],
    )
    return state, {"AddUpRound": book.name}.get(round, round)


service = Service("ledger", state=Ledger, start=write_down, otherwise=write_down, version=2, transitions={
    (write_down, "DONE"): book, (book, "DONE"): write_down,
}, migrations={OF_1: from_1})  # fmt: skip
