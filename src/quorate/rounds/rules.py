"""Rules beyond those of `quorate.fsm`, in the same terms: n agents, f below a third of them, a quorum above two thirds.

Pure like all rules; each says what it tolerates. Unless it says otherwise it ends with DONE, and a round that it
cannot end ends with ROUND_TIMEOUT.
"""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quorate.errors import ServiceError
from quorate.fsm import NO_MAJORITY, Outcome, Ready, Votes, codec, quorum_of
from quorate.fsm.rules import from_all, without_none
from quorate.units import Address

__all__ = ["first_valid", "median", "rotating_keeper", "trimmed_mean", "until_deadline", "weighted"]

_Ended = Outcome[str, Any] | None


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
        return {into: payload if none is None else without_none(payload)}

    events = {"DONE", NO_MAJORITY} if none is None else {"DONE", NO_MAJORITY, none}
    return Ready(settle, frozenset(events), stores, {weights: tuple[tuple[str, int], ...]})


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
        return {into: without_none(payload), keeper: Address, blamed: tuple[Address, ...]}

    events = frozenset({"DONE", "ROTATE", "NO_KEEPER"})
    return Ready(settle, events, stores, reads={keeper: str}, at_deadline=rotate)


def _of_integers(into: str, combine: Callable[[Votes[Any]], int]) -> Ready:
    def settle(state: Any, votes: Votes[Any]) -> _Ended:
        return Outcome("DONE", replace(state, **{into: combine(votes)})) if len(votes) >= votes.quorum else None

    def accepts(payload: Any) -> str | None:
        whole = payload
        while isinstance(whole, typing.NewType):
            whole = whole.__supertype__
        return None if whole is int else f"the rule computes with integers; its payload is {payload}"

    return Ready(settle, stores=lambda payload: {into: payload}, accepts=accepts)
