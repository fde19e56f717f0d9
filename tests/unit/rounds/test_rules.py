"""The rules beyond the core's: when each ends, with what, and what it stores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from quorate import (
    Address,
    Bps,
    Context,
    Outcome,
    ServiceError,
    State,
    Votes,
    agree,
    first_valid,
    median,
    rotating_keeper,
    trimmed_mean,
    until_deadline,
    weighted,
)

A, B, C, D = (Address(name) for name in "ABCD")


@dataclass(frozen=True)
class Poll(State):
    keeper: Address = Address("")
    blamed: tuple[Address, ...] = ()
    word: str | None = None
    words: tuple[tuple[Address, str], ...] = ()
    weights: tuple[tuple[Address, int], ...] = ()
    number: Bps = Bps(0)


def votes(*payloads: Any, n: int = 4) -> Votes[Any]:
    return Votes.of(zip((A, B, C, D), payloads, strict=False), n=n)


def test_the_median_of_a_quorum_is_an_honest_value_or_between_two() -> None:
    assert median("number")(Poll(), votes(1, 2)) is None
    assert median("number")(Poll(), votes(9, 1, 5)) == Outcome("DONE", Poll(number=Bps(5)))
    assert median("number")(Poll(), votes(9, 1, 5, 7)) == Outcome("DONE", Poll(number=Bps(5)))  # the lower of two


def test_the_trimmed_mean_leaves_out_the_f_outermost_on_both_sides() -> None:
    assert trimmed_mean("number")(Poll(), votes(1, 2)) is None
    assert trimmed_mean("number")(Poll(), votes(10**9, 4, 7, -(10**9))) == Outcome("DONE", Poll(number=Bps(5)))
    assert trimmed_mean("number")(Poll(), votes(-3, -4, n=2)) == Outcome("DONE", Poll(number=Bps(-4)))  # down


@pytest.mark.parametrize("rule", [median("number"), trimmed_mean("number")])
def test_only_integers_can_be_averaged(rule: Any) -> None:
    with pytest.raises(ServiceError, match=r"TalkRound .*integers; its payload is .*str"):

        @agree(rule)
        async def talk(ctx: Context, state: Poll) -> str:
            return ""

    @agree(rule)
    async def price(ctx: Context, state: Poll) -> Bps:
        return Bps(1)


def test_weights_decide_and_not_heads() -> None:
    state = Poll(weights=((A, 70), (B, 10), (C, 10), (D, 10)))
    assert weighted("word")(state, votes("x", "y", "y", "y")) == Outcome("DONE", replace(state, word="x"))
    assert weighted("word")(state, Votes.of([(B, "y"), (C, "y"), (D, "y")], n=4)) is None


def test_an_impossible_weight_ends_at_once() -> None:
    state = Poll(weights=((A, 50), (B, 50)))
    assert weighted("word")(state, votes("x")) is None
    assert weighted("word")(state, votes("x", "y")) == Outcome("NO_MAJORITY", state)
    assert weighted("word")(Poll(), votes("x", "x", "x")) == Outcome("NO_MAJORITY", Poll())  # nobody weighs anything


def test_weight_for_none_of_these_has_an_event_of_its_own() -> None:
    state = Poll(weights=((A, 1), (B, 1), (C, 1)), word="old")
    assert weighted("word", none="NONE")(state, votes(None, None, None)) == Outcome("NONE", state)
    assert weighted("word")(state, votes(None, None, None)) == Outcome("DONE", replace(state, word=None))


def test_the_rules_say_what_they_store() -> None:
    assert weighted("word").stores(str | None) == {"word": str | None}
    assert weighted("word", none="NONE").stores(str | None) == {"word": str}
    assert rotating_keeper("word").stores(str | None)["word"] is str
    assert first_valid("word", lambda state, payload: True).stores(str) == {"word": str}


def test_a_negative_weight_stops_the_machine() -> None:
    with pytest.raises(ServiceError, match="weights holds a negative weight"):
        weighted("word")(Poll(weights=((A, -1),)), votes("x"))


def test_what_has_come_at_the_deadline_counts() -> None:
    rule = until_deadline("words")
    assert rule(Poll(), votes("x", "y", "z")) is None
    assert rule.at_deadline is not None
    assert rule.at_deadline(Poll(), votes("x", "y")) is None
    assert rule.at_deadline(Poll(), votes("x", "y", "z")) == Outcome("DONE", Poll(words=((A, "x"), (B, "y"), (C, "z"))))
    everybody = rule(Poll(), votes("x", "y", "z", "w"))
    assert everybody is not None
    assert len(everybody.state.words) == 4
    few = until_deadline("words", least=1).at_deadline
    assert few is not None
    assert few(Poll(), votes("x")) == Outcome("DONE", Poll(words=((A, "x"),)))


def test_the_first_valid_payload_decides_alone() -> None:
    rule = first_valid("word", lambda state, payload: payload.startswith("ok"))
    assert rule(Poll(), votes("bad", "worse")) is None
    assert rule(Poll(), votes("bad", "ok 2", "ok 3")) == Outcome("DONE", Poll(word="ok 2"))
    assert rule(Poll(), votes("a", "b", "c", "d")) == Outcome("NONE", Poll())


TURN = rotating_keeper("word")
CREW = Poll(participants=(A, B, C, D), keeper=B)


def test_the_keepers_word_counts_whatever_the_others_say() -> None:
    assert TURN(CREW, votes(None, "x", None, None)) == Outcome("DONE", replace(CREW, word="x"))
    assert TURN(CREW, votes("y")) is None


def test_a_keeper_is_blamed_by_more_than_f_others() -> None:
    assert TURN(CREW, Votes.of([(A, None)], n=4)) is None
    blamed = TURN(CREW, Votes.of([(A, None), (C, None)], n=4))
    assert blamed == Outcome("ROTATE", replace(CREW, keeper=C, blamed=(B,)))


def test_a_keeper_may_decline() -> None:
    assert TURN(CREW, votes("y", None)) == Outcome("ROTATE", replace(CREW, keeper=C, blamed=(B,)))


def test_a_silent_keeper_is_followed_by_the_next_until_none_is_left() -> None:
    assert TURN.at_deadline is not None
    state, keepers = CREW, []
    for _ in range(3):
        ended = TURN.at_deadline(state, votes())
        assert ended is not None
        assert ended.event == "ROTATE"
        state = ended.state
        keepers.append(state.keeper)
    assert keepers == [C, D, A]
    last = TURN.at_deadline(state, votes())
    assert last == Outcome("NO_KEEPER", replace(state, blamed=(B, C, D, A)))


def test_after_a_keeper_that_is_no_participant_comes_the_first() -> None:
    assert TURN.at_deadline is not None
    ended = TURN.at_deadline(replace(CREW, keeper=Address("?")), votes())
    assert ended is not None
    assert ended.state.keeper == A
