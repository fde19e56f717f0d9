"""Change the members of a service that owns a Safe: in one transaction its owners and threshold, then its members.

The rules that hold here:
- A quorum approves a change (`agree_change`, an interrupt that is asked for). It then waits in agreed state until
  nothing is being settled; nothing else can be settled until it is made or given up.
- The Safe's owners and threshold change by its own transaction, settled as any other intent (quorate.rounds.settle):
  signed by a quorum of the *old* members, final at the configured depth.
- Only then the members change, at the end of that very round. The threshold is always the quorum of the members.
- An agent's signing boundary signs calls that change owners for the agreed change alone.

How a service offers it: its state extends `OwnedMembership`, its table joins `transitions`, and
``interrupts=interrupts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

from quorate.errors import ChainError
from quorate.fsm import BACK, AnyRound, Interrupt, Outcome, Votes, agree, keep, with_deadline
from quorate.fsm.votes import quorum_of
from quorate.members import Change, Membership, with_change
from quorate.rounds import settle
from quorate.rounds.membership import CHANGE_MEMBERS, MembershipContext
from quorate.rounds.settle import Intent, SafeSignature, SettleContext, Settlement, Settling, Verdict
from quorate.units import Address, Call, Hash

__all__ = [
    "CHANGE_OWNERS",
    "OwnedMembership",
    "OwnersContext",
    "agree_change",
    "confirm_owners",
    "interrupts",
    "owners_of",
    "propose_owners",
    "review_owners",
    "send_owners",
    "sign_owners",
    "threshold_after",
    "transitions",
]

CHANGE_OWNERS = "CHANGE_OWNERS"
"""The interrupt by which an agreed change is made."""


@dataclass(frozen=True)
class OwnedMembership(Membership, Settling):
    """The state of a service whose members own a Safe and may change while it runs."""

    change: Change | None = keep(None)
    """Agreed, and not made yet."""
    made: Change | None = keep(None)
    """The last that was made: a reorg deeper than the depth that counts may take it away, and it is made again."""


class OwnersContext(MembershipContext, SettleContext, Protocol):
    """What an agent reaches while owners change."""

    async def owner_calls(self, change: Change, threshold: int) -> tuple[Call, ...]:
        """What the Safe has to call of itself for `change`, by its owners now; empty where nothing is left to do."""
        ...


M = TypeVar("M", bound=OwnedMembership)


def owners_of(change: Change) -> tuple[Address | None, Address | None]:
    """Who becomes an owner of the Safe and who is one no more; a member with new keys stays one."""
    come = change.join.address if change.join else None
    return (None, None) if come == change.leave else (come, change.leave)


def threshold_after(state: OwnedMembership) -> int:
    """How many owners must sign once the agreed change, if there is one, is made: the quorum of the members."""
    return quorum_of(len(state.change.made(state.roster)) if state.change else len(state.roster))


def settle_approval(
    state: M, votes: Votes[Change | None]
) -> Outcome[Literal["DONE", "REFUSED", "NO_MAJORITY"], M] | None:
    """DONE where a quorum approves the same possible change and none is being made; it then waits in the state."""
    for change in votes.agreed():
        if change is None or state.change is not None or change.problem(state.chain, state.roster) is not None:
            return Outcome("REFUSED", state)
        return Outcome("DONE", replace(state, change=change))
    return Outcome("NO_MAJORITY", state) if votes.split() else None


@agree(settle_approval, timeout_s=30)
async def agree_change(ctx: MembershipContext, state: OwnedMembership) -> Change | None:
    """Say which change this agent's operator approves."""
    return ctx.approved


def settle_owner_intent(state: M, votes: Votes[Intent]) -> Outcome[Literal["DONE", "NOTHING", "NO_MAJORITY"], M] | None:
    """DONE where a quorum proposes the same calls at the same nonce; NOTHING where the owners are so already."""
    bare = Votes(tuple((who, replace(one, block=0)) for who, one in votes.items()), votes.n, votes.quorum)
    for agreed in bare.agreed():
        if not agreed.calls and not state.unsettled:
            return Outcome("NOTHING", _made(state))
        block = settle.middle_block(one for one in votes.values() if replace(one, block=0) == agreed)
        known = replace(state, participants=state.participants or tuple(one.address for one in state.roster))
        return Outcome("DONE", settle.with_intent(known, replace(agreed, block=block)))
    return Outcome("NO_MAJORITY", state) if bare.split() else None


def give_up(state: M, votes: Votes[Intent]) -> Outcome[Literal["GIVEN_UP"], M] | None:
    """Where not even the calls can be agreed on in time, nothing was signed yet: the change has to be approved anew."""
    return None if state.unsettled else Outcome("GIVEN_UP", replace(state, change=None))


@agree(
    with_deadline(settle_owner_intent, give_up),
    timeout_s=30,
    sets={"DONE": ("participants", "intent")},
)
async def propose_owners(ctx: OwnersContext, state: OwnedMembership) -> Intent:
    """Derive from the Safe's owners what it has to call of itself for the agreed change."""
    if state.change is None:
        raise ValueError("the owners change without an agreed change; the interrupt's own condition forbids that")
    calls = await ctx.owner_calls(state.change, threshold_after(state))
    intent = await settle.intend(ctx, state, *calls)
    if not state.unsettled and intent.calls != calls:  # its outcome would be taken for the change's
        raise ChainError(f"the Safe's nonce {intent.nonce} was final and is gone: what was settled there comes first")
    return intent


def settle_owners(
    state: M, votes: Votes[Settlement | None]
) -> Outcome[Literal["DONE", "FAILED", "REOPENED", "UNSIGNED", "NO_MAJORITY"], M] | None:
    """As `settle.confirm`; with DONE the members change, with FAILED the change is given up."""
    found = settle.keep_settlement(state, votes)
    if found is None or found.event not in ("DONE", "FAILED"):
        return found
    return Outcome(found.event, _made(found.state) if found.event == "DONE" else _cleared(found.state))


@agree(settle_owners, timeout_s=60, needs=("intent", "signatures"))
async def confirm_owners(ctx: SettleContext, state: Any) -> Settlement | None:
    """Wait until the owners have changed for good."""
    return await settle.confirm.act(ctx, state)


@agree(settle.keep_signatures, timeout_s=30, needs=("participants", "intent"), sets=settle.sign.sets)
async def sign_owners(ctx: SettleContext, state: Any) -> SafeSignature:
    """Sign the Safe's transaction that changes its owners."""
    return await settle.sign.act(ctx, state)


@agree(with_deadline(settle.see_it_mined, settle.rotate_keeper), timeout_s=12, needs=("intent", "keeper", "signatures"))
async def send_owners(ctx: SettleContext, state: Any) -> Hash:
    """The keeper sends it, everybody looks."""
    seen: Hash = await settle.send.act(ctx, state)
    return seen


@agree(settle.keep_review, timeout_s=30, needs=("intent",))
async def review_owners(ctx: SettleContext, state: Any) -> Verdict:
    """After every keeper has tried in vain: could the calls still succeed?"""
    verdict: Verdict = await settle.review.act(ctx, state)
    return verdict


def _can_begin(state: OwnedMembership) -> bool:
    return state.change is not None and state.intent is None and not state.unsettled


interrupts = (Interrupt(CHANGE_MEMBERS, agree_change), Interrupt(CHANGE_OWNERS, propose_owners, when=_can_begin))
transitions: Mapping[tuple[AnyRound, str], AnyRound] = {
    (agree_change, "DONE"): BACK,
    (agree_change, "REFUSED"): BACK,
    (agree_change, "NO_MAJORITY"): BACK,
    (agree_change, "ROUND_TIMEOUT"): BACK,
    (propose_owners, "DONE"): sign_owners,
    (propose_owners, "NOTHING"): BACK,
    (propose_owners, "GIVEN_UP"): BACK,
    (propose_owners, "NO_MAJORITY"): propose_owners,
    (propose_owners, "ROUND_TIMEOUT"): propose_owners,
    (sign_owners, "DONE"): send_owners,
    (sign_owners, "NO_MAJORITY"): propose_owners,
    (sign_owners, "ROUND_TIMEOUT"): propose_owners,
    (send_owners, "DONE"): confirm_owners,
    (send_owners, "ROTATE"): send_owners,
    (send_owners, "STUCK"): review_owners,
    (send_owners, "ROUND_TIMEOUT"): send_owners,
    (review_owners, "AGAIN"): send_owners,
    (review_owners, "CANCEL"): sign_owners,
    (review_owners, "REOPENED"): send_owners,
    (review_owners, "UNSIGNED"): sign_owners,
    (review_owners, "ROUND_TIMEOUT"): send_owners,
    (confirm_owners, "DONE"): BACK,
    (confirm_owners, "FAILED"): BACK,
    (confirm_owners, "REOPENED"): send_owners,
    (confirm_owners, "UNSIGNED"): sign_owners,
    (confirm_owners, "NO_MAJORITY"): send_owners,
    (confirm_owners, "ROUND_TIMEOUT"): confirm_owners,
}
"""From an approved change to the owners, the threshold and the members that it means."""


def _cleared(state: M) -> M:
    """Nothing of the change is left; whatever was interrupted settles from the start."""
    return replace(state, change=None, intent=None, signatures=(), settlement=None, keeper=Address(""))


def _made(state: M) -> M:
    change = state.change
    return _cleared(state) if change is None else replace(with_change(_cleared(state), change), made=change)
