"""Trivial services for tests of the chain beneath: a number that rounds raise at once, slowly, or on demand."""

from __future__ import annotations

from dataclasses import dataclass

from quorate.fsm import ROUND_TIMEOUT, Context, Service, State, agree
from quorate.members import Membership
from quorate.rounds import from_all, membership, same
from quorate.units import Address
from services.hello_world.service import service as hello_world
from tests.fault.paying.service import service as paying
from tests.upgrades.v1.ledger.service import service as ledger_1
from tests.upgrades.v2.ledger.service import service as ledger_2


@dataclass(frozen=True)
class Counted(State):
    value: int = 0
    heard: tuple[tuple[Address, int], ...] = ()


@agree(same("value"))
async def add(ctx: Context, state: Counted) -> int:
    """Propose one more, after as long as the configuration says."""
    if pause_s := ctx.config.act_s:
        await ctx.sleep(pause_s)
    return state.value + 1


counting = Service("counting", state=Counted, start=add, transitions={(add, "DONE"): add}, otherwise=add)


@agree(same("value"), timeout_s=600)
async def await_leave(ctx: Context, state: Counted) -> int:
    """Propose one more as soon as the test allows that number."""
    while ctx.config.allowed() <= state.value:
        await ctx.sleep(0.01)
    return state.value + 1


on_demand = Service(
    "on_demand",
    state=Counted,
    start=await_leave,
    transitions={(await_leave, "DONE"): await_leave},
    otherwise=await_leave,
)
"""Between two numbers that the test allows, nothing happens and the chain sleeps."""


@agree(from_all("heard"), timeout_s=1)
async def keep_silent(ctx: Context, state: Counted) -> int:
    """Never answer: only the clock ends this round."""
    await ctx.sleep(10**6)
    return 0


@agree(same("value"), timeout_s=600)
async def rest(ctx: Context, state: Counted) -> int:
    """Never answer, and have all the time of the world."""
    await ctx.sleep(10**6)
    return 0


deadline = Service(
    "deadline",
    state=Counted,
    start=keep_silent,
    transitions={(keep_silent, "DONE"): rest, (keep_silent, ROUND_TIMEOUT): rest, (rest, "DONE"): rest},
    otherwise=rest,
)
"""The first round is over after one second; then nothing happens."""


@dataclass(frozen=True)
class Moved(Membership):
    value: int = 0


@agree(same("value"), timeout_s=60)
async def raise_value(ctx: Context, state: Moved) -> int:
    """Propose one more, after as long as the configuration says."""
    if ctx.config.act_s:
        await ctx.sleep(ctx.config.act_s)
    return state.value + 1


moving = Service(
    "moving",
    state=Moved,
    start=raise_value,
    transitions={**membership.transitions, (raise_value, "DONE"): raise_value},
    otherwise=raise_value,
    interrupts=(membership.interrupt,),
)
"""Counts, while its members change."""

ALL = {service.name: service for service in (counting, on_demand, deadline, hello_world, moving, ledger_1, paying)} | {
    "ledger_2": ledger_2
}
