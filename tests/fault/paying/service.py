"""Each period the agents have their Safe note a number in a contract: each number once, whatever befalls them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from quorate import ROUND_TIMEOUT, Address, Outcome, Service, Votes, Wei, agree, keep, same
from quorate.chain.abi import load_abi
from quorate.rounds import pause, register, settle
from quorate.rounds.settle import Intent, SettleContext, Settling
from quorate.units import Call

__all__ = ["Paying", "service"]


@dataclass(frozen=True)
class Config:
    governor: Address = Address("0x" + "0" * 40)
    """The contract. It takes what a Governor takes: that is what the limits of an agent allow."""
    pause_s: float = 0.2


@dataclass(frozen=True)
class Paying(Settling):
    paid: int = keep(0)
    """How many numbers are noted, as the agents know."""


def keep_intent(state: Paying, votes: Votes[Intent]) -> Outcome[Literal["DONE", "NO_MAJORITY"], Paying] | None:
    """The intent that a quorum proposes, at the middle one of the blocks that they named."""
    calls = Votes(tuple((who, replace(intent, block=0)) for who, intent in votes.items()), votes.n, votes.quorum)
    agreed = calls.same()
    if agreed is None:
        return Outcome("NO_MAJORITY", state) if calls.split() else None
    block = settle.middle_block(intent for intent in votes.values() if replace(intent, block=0) == agreed)
    return Outcome("DONE", settle.with_intent(state, replace(agreed, block=block)))


@agree(keep_intent, timeout_s=30, sets={"DONE": ("intent",)})
async def plan(ctx: SettleContext, state: Paying) -> Intent:
    """Propose to note the next number."""
    data = load_abi("QuorateGovernor").encode("castVoteWithReason", state.paid + 1, 1, "")
    return await settle.intend(ctx, state, Call(ctx.config.governor, Wei(0), data))


@agree(same("paid"))
async def note(ctx: SettleContext, state: Paying) -> int:
    """It is noted, at the depth that counts."""
    return state.paid + 1


service = Service(
    "paying",
    state=Paying,
    config=Config,
    start=register,
    otherwise=pause,
    transitions={
        (register, "DONE"): plan,
        (register, ROUND_TIMEOUT): register,
        (plan, "DONE"): settle.sign,
        **settle.transitions,
        (settle.confirm, "DONE"): note,
        (settle.confirm, "FAILED"): pause,
        (note, "DONE"): pause,
        (pause, "DONE"): plan,
    },
)
