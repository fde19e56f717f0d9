"""Ready-made agreement rules. n is the number of agents, a quorum is more than 2n/3, f is the largest number below n/3.

Every rule here depends only on the set of payloads, never on the order in which they came. The payloads that count
were in a decided block; which ones a block carries is up to its proposer, so where a rule ends at a quorum, the
proposer may leave out up to f honest payloads in favour of f lies.

Unless a rule says otherwise it ends with DONE, and a round that it cannot end ends with ROUND_TIMEOUT.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from quorate.errors import ServiceError
from quorate.fsm.round import NO_MAJORITY, Ready, Rule, events_of
from quorate.fsm.state import State
from quorate.fsm.votes import Outcome, Votes
from quorate.units import Address

__all__ = ["choice", "each", "from_all", "only_keeper", "pairs_of", "same", "with_deadline", "without_none"]

S = TypeVar("S", bound=State)
P = TypeVar("P")


def same(into: str, *, none: str | None = None) -> Ready:
    """The payload that a quorum sent goes into field `into`: DONE. NO_MAJORITY as soon as none can reach a quorum.

    A quorum for None ends with the event `none`, if named, and leaves the state as it was: "none of these".

    Tolerates f silent or lying agents: a quorum for a lie would hold an honest agent that sent it too. If honest
    agents see different facts the round may end with NO_MAJORITY, never with something that no honest agent sent.
    """

    def settle(state: Any, votes: Votes[Any]) -> Outcome[str, Any] | None:
        for payload in votes.agreed():
            if payload is None and none is not None:
                return Outcome(none, state)
            return Outcome("DONE", replace(state, **{into: payload}))
        return Outcome(NO_MAJORITY, state) if votes.split() else None

    events = {"DONE", NO_MAJORITY} if none is None else {"DONE", NO_MAJORITY, none}
    return Ready(settle, frozenset(events), lambda payload: {into: payload if none is None else without_none(payload)})


def each(into: str) -> Ready:
    """A quorum of payloads goes into field `into` as (sender, payload) pairs in sender order.

    Tolerates f silent agents. Up to f of the pairs may be lies, and up to f honest agents may be missing: what is
    computed from them must stand that (a median of a quorum stays inside the honest range, a mean or a sum does not).
    """

    def settle(state: Any, votes: Votes[Any]) -> Outcome[str, Any] | None:
        return Outcome("DONE", replace(state, **{into: votes.items()})) if len(votes) >= votes.quorum else None

    return Ready(settle, stores=lambda payload: {into: pairs_of(payload)})


def from_all(into: str) -> Ready:
    """All n agents' payloads go into field `into` as (sender, payload) pairs in sender order.

    Tolerates nobody: one silent agent holds it up until ROUND_TIMEOUT. For start-up, where all must be there.
    """

    def settle(state: Any, votes: Votes[Any]) -> Outcome[str, Any] | None:
        return Outcome("DONE", replace(state, **{into: votes.items()})) if len(votes) == votes.n else None

    return Ready(settle, stores=lambda payload: {into: pairs_of(payload)})


def only_keeper(into: str, keeper: str = "keeper") -> Ready:
    """The payload of the agent named in field `keeper` goes into field `into`; what others send does not count.

    Tolerates any number of other agents that are silent or lie, and none of the keeper's faults: a silent keeper ends
    the round with ROUND_TIMEOUT, a lying one decides alone. Let a later round check what it sent before anything
    rests on it. Where the next one shall take over, see `rotating_keeper`.
    """

    def settle(state: Any, votes: Votes[Any]) -> Outcome[str, Any] | None:
        for sender, payload in votes.items():
            if sender == getattr(state, keeper):
                return Outcome("DONE", replace(state, **{into: payload}))
        return None

    return Ready(settle, stores=lambda payload: {into: payload}, reads={keeper: str})


def choice(
    into: str,
    options: Sequence[Any],
    otherwise: Any,
    by: str | None = None,
    keep: str | None = None,
    *,
    none: str = "DONE",
) -> Ready:
    """A vote: the option that a quorum chose goes into field `into`; `otherwise` once none can reach one.

    The payload is an option, or a dataclass whose field `by` is one. Field `keep`, if named, takes all payloads that
    were in when the round ended as (sender, payload) pairs. At the deadline a quorum of payloads without a majority
    is `otherwise`; fewer payloads are ROUND_TIMEOUT. The event `none` tells `otherwise` from the options, if named.

    Tolerates f silent or lying agents: an option other than `otherwise` wins only if honest agents chose it (at least
    quorum - f). f liars can turn a narrow majority of honest agents into `otherwise`, never into the opposite.
    """
    if not options:
        raise ServiceError(f"choice({into!r}) has no options")

    def settle(state: Any, votes: Votes[Any]) -> Outcome[str, Any] | None:
        chosen = [payload if by is None else getattr(payload, by) for payload in votes.values()]
        counts = [sum(_is(option, one) for one in chosen) for option in options]
        best = max(counts)
        if best >= votes.quorum:
            return end(state, votes, options[counts.index(best)], "DONE")
        undecided = votes.n - len(votes)
        return end(state, votes, otherwise, none) if best + undecided < votes.quorum else None

    def at_deadline(state: Any, votes: Votes[Any]) -> Outcome[str, Any] | None:
        return end(state, votes, otherwise, none) if len(votes) >= votes.quorum else None

    def end(state: Any, votes: Votes[Any], option: Any, event: str) -> Outcome[str, Any]:
        kept = {} if keep is None else {keep: votes.items()}
        return Outcome(event, replace(state, **{into: option, **kept}))

    def stores(payload: Any) -> dict[str, Any]:
        return {into: Literal[(*options, otherwise)], **({} if keep is None else {keep: pairs_of(payload)})}

    def accepts(payload: Any) -> str | None:
        return _why_no_ballot(payload, options, by)

    return Ready(settle, frozenset({"DONE", none}), stores, accepts=accepts, at_deadline=at_deadline)


def with_deadline(rule: Rule[S, P], at_deadline: Rule[S, P]) -> Ready:
    """`rule`, but when the round's time is over `at_deadline` decides on what has come; None there is ROUND_TIMEOUT."""
    ready = rule if isinstance(rule, Ready) else Ready(rule)
    return replace(ready, events=events_of(rule) | events_of(at_deadline), at_deadline=at_deadline)


def pairs_of(payload: Any) -> Any:
    """The type of (sender, payload) pairs."""
    return tuple[tuple[Address, payload], ...]


def without_none(payload: Any) -> Any:
    """X for the type X | None, any other type as it is."""
    rest = [part for part in get_args(payload) if part is not types.NoneType]
    return rest[0] if len(rest) + 1 == len(get_args(payload)) == 2 else payload


def _is(option: Any, chosen: Any) -> bool:
    return type(option) is type(chosen) and bool(option == chosen)  # True is not the option 1


def _why_no_ballot(payload: Any, options: Sequence[Any], by: str | None) -> str | None:
    """Why payloads of this type cannot be counted as one of `options`; None if they can."""
    chosen = payload
    if by is not None:
        hints = get_type_hints(payload) if dataclasses.is_dataclass(payload) else {}
        if by not in hints:
            return f"choice counts by the field {by!r}; {payload} has {sorted(hints)}"
        chosen = hints[by]
    if get_origin(chosen) is Literal and (strange := [o for o in get_args(chosen) if o not in options]):
        return f"choice has the options {list(options)}; the payload may be {strange}"
    return None
