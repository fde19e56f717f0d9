"""Ready-made agreement rules. n is the number of agents, a quorum is more than 2n/3, f is the largest number below n/3.

Every rule here is pure and depends only on the set of payloads, never on the order in which they came. The payloads
that count were in a decided block; which ones a block carries is up to its proposer, so where a rule ends at a quorum,
the proposer may leave out up to f honest payloads in favour of f lies.

Unless a rule says otherwise it ends with DONE, and a round that it cannot end ends with ROUND_TIMEOUT.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from quorate.errors import ServiceError
from quorate.fsm import NO_MAJORITY, Outcome, Ready, Votes, codec, quorum_of
from quorate.units import Address

__all__ = [
    "choice",
    "each",
    "first_valid",
    "from_all",
    "median",
    "only_keeper",
    "rotating_keeper",
    "same",
    "trimmed_mean",
    "until_deadline",
    "weighted",
]

_Ended = Outcome[str, Any] | None


def same(into: str, *, none: str | None = None) -> Ready:
    """The payload that a quorum sent goes into field `into`: DONE. NO_MAJORITY as soon as none can reach a quorum.

    A quorum for None ends with the event `none`, if named, and leaves the state as it was: "none of these".

    Tolerates f silent or lying agents: a quorum for a lie would hold an honest agent that sent it too. If honest
    agents see different facts the round may end with NO_MAJORITY, never with something that no honest agent sent.
    """

    def settle(state: Any, votes: Votes[Any]) -> _Ended:
        for payload in votes.agreed():
            if payload is None and none is not None:
                return Outcome(none, state)
            return Outcome("DONE", replace(state, **{into: payload}))
        return Outcome(NO_MAJORITY, state) if votes.split() else None

    events = {"DONE", NO_MAJORITY} if none is None else {"DONE", NO_MAJORITY, none}
    return Ready(settle, frozenset(events), lambda payload: {into: payload if none is None else _without_none(payload)})


def weighted(into: str, weights: str = "weights", *, none: str | None = None) -> Ready:
    """As `same`, but a payload needs more than two thirds of the weight in field `weights`: (agent, weight) pairs.

    Weights are integers from 0 up. An agent that is not in the table weighs nothing; one that is in it and no member
    counts as silent. NO_MAJORITY as soon as no payload can get enough; a majority for None is the event `none`.

    Tolerates liars and silent agents, however many, that hold less than a third of the weight: a winning lie would
    need an honest agent's weight too. With a third or more in one hand, that hand can stop every decision.
    """

    def settle(state: Any, votes: Votes[Any]) -> _Ended:
        table = dict(getattr(state, weights))
        if any(weight < 0 for weight in table.values()):
            raise ServiceError(f"the field {weights} holds a negative weight: {table}")
        needed = quorum_of(sum(table.values()))
        tally = Counter[bytes]()
        for sender, payload in votes.items():
            tally[codec.encode(payload)] += table.get(sender, 0)
        for payload in votes.values():
            if tally[codec.encode(payload)] >= needed:
                if payload is None and none is not None:
                    return Outcome(none, state)
                return Outcome("DONE", replace(state, **{into: payload}))
        missing = sum(table.values()) - sum(tally.values())
        return Outcome(NO_MAJORITY, state) if max(tally.values(), default=0) + missing < needed else None

    def stores(payload: Any) -> dict[str, Any]:
        return {into: payload if none is None else _without_none(payload)}

    events = {"DONE", NO_MAJORITY} if none is None else {"DONE", NO_MAJORITY, none}
    return Ready(settle, frozenset(events), stores, {weights: tuple[tuple[str, int], ...]})


def each(into: str) -> Ready:
    """A quorum of payloads goes into field `into` as (sender, payload) pairs in sender order.

    Tolerates f silent agents. Up to f of the pairs may be lies, and up to f honest agents may be missing: what is
    computed from them must stand that (a median of a quorum stays inside the honest range, a mean or a sum does not).
    """

    def settle(state: Any, votes: Votes[Any]) -> _Ended:
        return Outcome("DONE", replace(state, **{into: votes.items()})) if len(votes) >= votes.quorum else None

    return Ready(settle, stores=lambda payload: {into: _pairs(payload)})


def from_all(into: str) -> Ready:
    """All n agents' payloads go into field `into` as (sender, payload) pairs in sender order.

    Tolerates nobody: one silent agent holds it up until ROUND_TIMEOUT. For start-up, where all must be there.
    """

    def settle(state: Any, votes: Votes[Any]) -> _Ended:
        return Outcome("DONE", replace(state, **{into: votes.items()})) if len(votes) == votes.n else None

    return Ready(settle, stores=lambda payload: {into: _pairs(payload)})


def until_deadline(into: str, least: int | None = None) -> Ready:
    """Whatever has come when the round's time is over goes into `into` as (sender, payload) pairs in sender order.

    Ends early when all n have sent. Fewer than `least` payloads (a quorum, if not said) are ROUND_TIMEOUT.

    Tolerates n - `least` silent agents. Lies are in it: up to f of the pairs. No proposer can leave an honest payload
    out for good, as long as a later block before the deadline has an honest proposer.
    """

    def at_deadline(state: Any, votes: Votes[Any]) -> _Ended:
        enough = len(votes) >= (votes.quorum if least is None else least)
        return Outcome("DONE", replace(state, **{into: votes.items()})) if enough else None

    return replace(from_all(into), at_deadline=at_deadline)


def median(into: str) -> Ready:
    """The lower median of a quorum of integers goes into field `into`.

    Tolerates f silent or lying agents: the result lies between the smallest and the largest honest value sent, because
    a quorum has more than twice f payloads. Within that range liars (and the proposer) can move it.
    """
    return _of_integers(into, lambda votes: sorted(votes.values())[(len(votes) - 1) // 2])


def trimmed_mean(into: str) -> Ready:
    """The mean, rounded down, of a quorum of integers without its f smallest and f largest goes into field `into`.

    Tolerates f silent or lying agents: whatever is left lies between two honest values, and so does the mean. It uses
    more of the honest values than the median; liars can move it within the honest range.
    """

    def middle(votes: Votes[Any]) -> int:
        f = (votes.n - 1) // 3
        kept = sorted(votes.values())[f : len(votes) - f]
        return int(sum(kept) // len(kept))

    return _of_integers(into, middle)


def first_valid(into: str, is_valid: Callable[[Any, Any], bool]) -> Ready:
    """The first payload for which ``is_valid(state, payload)`` goes into `into`; NONE when all n sent invalid ones.

    `is_valid` must be pure: a signature, a proof, a limit that agreed state holds. Of valid payloads in one block the
    one of the first sender by address counts.

    Tolerates n - 1 silent or lying agents, as far as `is_valid` cannot be deceived: a single payload decides, so
    whatever a liar can make valid may win, and the proposer chooses which valid payload is first.
    """

    def settle(state: Any, votes: Votes[Any]) -> _Ended:
        for payload in votes.values():
            if is_valid(state, payload):
                return Outcome("DONE", replace(state, **{into: payload}))
        return Outcome("NONE", state) if len(votes) == votes.n else None

    return Ready(settle, frozenset({"DONE", "NONE"}), lambda payload: {into: payload})


def only_keeper(into: str, keeper: str = "keeper") -> Ready:
    """The payload of the agent named in field `keeper` goes into field `into`; what others send does not count.

    Tolerates any number of other agents that are silent or lie, and none of the keeper's faults: a silent keeper ends
    the round with ROUND_TIMEOUT, a lying one decides alone. Let a later round check what it sent before anything
    rests on it. Where the next one shall take over, see `rotating_keeper`.
    """

    def settle(state: Any, votes: Votes[Any]) -> _Ended:
        for sender, payload in votes.items():
            if sender == getattr(state, keeper):
                return Outcome("DONE", replace(state, **{into: payload}))
        return None

    return Ready(settle, stores=lambda payload: {into: payload}, reads={keeper: str})


def rotating_keeper(into: str, keeper: str = "keeper", blamed: str = "blamed") -> Ready:
    """As `only_keeper`, but a keeper that is silent or blamed is replaced; payloads are X | None, and `into` takes X.

    The keeper's X is DONE, whatever the others say. ROTATE when its time is over, when it sends None itself, or at
    once when more than f others send None ("this keeper fails"): it is added to the addresses in field `blamed`, and
    `keeper` becomes the next participant that is not among them. NO_KEEPER when none is left.

    Tolerates n - 1 keepers that are silent. f liars alone cannot blame a keeper away, and cannot save one that all
    honest agents see fail: n - f of them are more than f. What a lying keeper does send counts, as in `only_keeper`.
    """

    def settle(state: Any, votes: Votes[Any]) -> _Ended:
        now = getattr(state, keeper)
        declines = False
        for sender, payload in votes.items():
            if sender == now and payload is not None:
                return Outcome("DONE", replace(state, **{into: payload}))
            declines = declines or sender == now
        complaints = sum(payload is None for sender, payload in votes.items() if sender != now)
        return rotate(state, votes) if declines or complaints > (votes.n - 1) // 3 else None

    def rotate(state: Any, votes: Votes[Any]) -> Outcome[str, Any]:
        order, now = state.participants, getattr(state, keeper)
        out = (*getattr(state, blamed), now)
        after = order.index(now) + 1 if now in order else 0
        for one in (*order[after:], *order[:after]):
            if one not in out:
                return Outcome("ROTATE", replace(state, **{blamed: out, keeper: one}))
        return Outcome("NO_KEEPER", replace(state, **{blamed: out}))

    def stores(payload: Any) -> dict[str, Any]:
        return {into: _without_none(payload), keeper: Address, blamed: tuple[Address, ...]}

    events = frozenset({"DONE", "ROTATE", "NO_KEEPER"})
    return Ready(settle, events, stores, reads={keeper: str}, at_deadline=rotate)


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

    def settle(state: Any, votes: Votes[Any]) -> _Ended:
        chosen = [payload if by is None else getattr(payload, by) for payload in votes.values()]
        counts = [sum(_is(option, one) for one in chosen) for option in options]
        best = max(counts)
        if best >= votes.quorum:
            return end(state, votes, options[counts.index(best)], "DONE")
        undecided = votes.n - len(votes)
        return end(state, votes, otherwise, none) if best + undecided < votes.quorum else None

    def at_deadline(state: Any, votes: Votes[Any]) -> _Ended:
        return end(state, votes, otherwise, none) if len(votes) >= votes.quorum else None

    def end(state: Any, votes: Votes[Any], option: Any, event: str) -> Outcome[str, Any]:
        kept = {} if keep is None else {keep: votes.items()}
        return Outcome(event, replace(state, **{into: option, **kept}))

    def stores(payload: Any) -> dict[str, Any]:
        return {into: Literal[(*options, otherwise)], **({} if keep is None else {keep: _pairs(payload)})}

    def accepts(payload: Any) -> str | None:
        return _why_no_ballot(payload, options, by)

    return Ready(settle, frozenset({"DONE", none}), stores, accepts=accepts, at_deadline=at_deadline)


def _of_integers(into: str, combine: Callable[[Votes[Any]], int]) -> Ready:
    def settle(state: Any, votes: Votes[Any]) -> _Ended:
        return Outcome("DONE", replace(state, **{into: combine(votes)})) if len(votes) >= votes.quorum else None

    def accepts(payload: Any) -> str | None:
        whole = payload
        while isinstance(whole, typing.NewType):
            whole = whole.__supertype__
        return None if whole is int else f"the rule computes with integers; its payload is {payload}"

    return Ready(settle, stores=lambda payload: {into: payload}, accepts=accepts)


def _pairs(payload: Any) -> Any:
    return tuple[tuple[Address, payload], ...]


def _without_none(payload: Any) -> Any:
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
