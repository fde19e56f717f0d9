"""A skill gives rounds and a partial table; a service joins tables, with loops inside loops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from quorate import ROUND_TIMEOUT, Address, Bps, Context, Outcome, Service, ServiceError, State, Votes, agree, median
from quorate.rounds import pause, register
from quorate.testing import Network


@dataclass(frozen=True)
class Haggle(State):
    price: Bps | None = None
    tries: int = 0
    deals: tuple[Bps, ...] = ()


@agree(median("price"), timeout_s=5)
async def offer(ctx: Context, state: Haggle) -> Bps:
    """The skill's inner loop begins here."""
    return Bps(100 + state.tries)


def settle_weigh(state: Haggle, votes: Votes[bool]) -> Outcome[Literal["AGAIN", "DEAL"], Haggle] | None:
    """Three tries a deal."""
    if len(votes) < votes.quorum or state.price is None:
        return None
    if state.tries < 2:
        return Outcome("AGAIN", replace(state, tries=state.tries + 1))
    return Outcome("DEAL", replace(state, tries=0, deals=(*state.deals, state.price)))


@agree(settle_weigh, timeout_s=5, needs=("price",))
async def weigh(ctx: Context, state: Haggle) -> bool:
    return True


def settle_count(state: Haggle, votes: Votes[int]) -> Outcome[Literal["MORE", "ENOUGH"], Haggle] | None:
    """Two deals a period."""
    if len(votes) < votes.quorum:
        return None
    return Outcome("MORE" if len(state.deals) < 2 else "ENOUGH", state)


@agree(settle_count, timeout_s=5)
async def count(ctx: Context, state: Haggle) -> int:
    return len(state.deals)


HAGGLING: dict[Any, Any] = {(offer, "DONE"): weigh, (weigh, "AGAIN"): offer, (weigh, ROUND_TIMEOUT): offer}
"""The skill's partial table; a service says where DEAL leads."""

OUTER: dict[Any, Any] = {
    (register, "DONE"): offer, (register, ROUND_TIMEOUT): register,
    (weigh, "DEAL"): count, (count, "MORE"): offer, (count, "ENOUGH"): pause,
    (pause, "DONE"): offer,
}  # fmt: skip


async def test_loops_run_inside_loops() -> None:
    service = Service("market", state=Haggle, start=register, transitions={**HAGGLING, **OUTER}, otherwise=pause)
    async with Network(service, agents=4, seed=1) as net:
        await net.run_until(settled=(count, "ENOUGH"))
        assert net.state.deals == (102, 102)
        assert [one.round_name for one in net.rounds].count("OfferRound") == 6
        await net.run_until(period=2)


def test_a_partial_table_whose_exit_is_missing_is_an_error_that_names_it() -> None:
    without_exit = {edge: to for edge, to in OUTER.items() if edge != (weigh, "DEAL")}
    with pytest.raises(ServiceError, match=r"service market .*nothing leads to CountRound"):
        Service("market", state=Haggle, start=register, transitions={**HAGGLING, **without_exit}, otherwise=pause)


def test_an_act_that_a_skill_brings_needs_its_fields_in_the_services_state() -> None:
    @dataclass(frozen=True)
    class Bare(State):
        keeper: Address = Address("")

    with pytest.raises(ServiceError, match=r"uses the field 'price'; Bare has"):
        Service("market", state=Bare, start=register, transitions={**HAGGLING, **OUTER}, otherwise=pause)
