"""Each ready-made rule: when it ends, with what, and what it stores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from quorate import (
    Address,
    Context,
    Outcome,
    ServiceError,
    State,
    Votes,
    agree,
    choice,
    each,
    from_all,
    only_keeper,
    same,
    with_deadline,
)

A, B, C, D = (Address(name) for name in "ABCD")


@dataclass(frozen=True)
class Ballot:
    support: Literal["FOR", "AGAINST", "ABSTAIN"]
    why: str = ""


@dataclass(frozen=True)
class Poll(State):
    keeper: Address = Address("")
    word: str | None = None
    words: tuple[tuple[Address, str], ...] = ()
    support: Literal["FOR", "AGAINST", "ABSTAIN"] = "ABSTAIN"
    ballots: tuple[tuple[Address, Ballot], ...] = ()


def votes(*payloads: Any, n: int = 4) -> Votes[Any]:
    return Votes.of(zip((A, B, C, D), payloads, strict=False), n=n)


def test_same_stores_what_a_quorum_sent() -> None:
    rule = same("word")
    assert rule(Poll(), votes("x", "x")) is None
    assert rule(Poll(), votes("x", "x", "y")) is None
    assert rule(Poll(), votes("x", "y", "x", "x")) == Outcome("DONE", Poll(word="x"))


def test_same_ends_at_once_when_no_quorum_can_come() -> None:
    assert same("word")(Poll(), votes("x", "y", "z")) == Outcome("NO_MAJORITY", Poll())


def test_same_can_agree_on_nothing() -> None:
    assert same("word")(Poll(word="x"), votes(None, None, None)) == Outcome("DONE", Poll(word=None))


def test_a_quorum_for_none_of_these_has_an_event_of_its_own() -> None:
    rule = same("word", none="NONE")
    assert rule.events == {"DONE", "NO_MAJORITY", "NONE"}
    assert rule(Poll(word="x"), votes(None, None, None)) == Outcome("NONE", Poll(word="x"))
    assert rule(Poll(), votes("x", "x", None, "x")) == Outcome("DONE", Poll(word="x"))


def test_a_vote_for_none_of_the_options_may_have_an_event_of_its_own() -> None:
    rule = choice("support", OPTIONS, "ABSTAIN", none="UNDECIDED")
    assert rule(Poll(), votes("FOR", "FOR", "AGAINST", "AGAINST")) == Outcome("UNDECIDED", Poll(support="ABSTAIN"))
    assert rule(Poll(), votes("FOR", "FOR", "FOR")) == Outcome("DONE", Poll(support="FOR"))


def test_what_may_be_none_need_not_fit_the_field_if_none_has_its_event() -> None:
    assert same("word", none="NONE").stores(str | None) == {"word": str}
    assert same("word").stores(str | None) == {"word": str | None}
    assert same("word", none="NONE").stores(tuple[str, None]) == {"word": tuple[str, None]}


def test_each_stores_a_quorum_of_pairs_in_sender_order() -> None:
    assert each("words")(Poll(), votes("x", "y")) is None
    done = each("words")(Poll(), Votes.of([(C, "z"), (A, "x"), (B, "y")], n=4))
    assert done == Outcome("DONE", Poll(words=((A, "x"), (B, "y"), (C, "z"))))


def test_from_all_waits_for_the_last() -> None:
    assert from_all("words")(Poll(), votes("x", "y", "z")) is None
    done = from_all("words")(Poll(), votes("x", "y", "z", "w"))
    assert done is not None
    assert len(done.state.words) == 4


def test_only_the_keepers_payload_counts() -> None:
    state = Poll(keeper=C)
    assert only_keeper("word")(state, votes("x", "y")) is None
    assert only_keeper("word")(state, votes("x", "y", "z")) == Outcome("DONE", replace(state, word="z"))


def test_a_keeper_may_send_nothing() -> None:
    state = Poll(keeper=A, word="old")
    assert only_keeper("word")(state, votes(None)) == Outcome("DONE", replace(state, word=None))


OPTIONS = ("FOR", "AGAINST", "ABSTAIN")
VOTE = choice("support", OPTIONS, "ABSTAIN", by="support", keep="ballots")


def ballots(*sides: Any) -> Votes[Any]:
    return votes(*(Ballot(side) for side in sides))


def test_the_option_of_a_quorum_wins_and_the_ballots_are_kept() -> None:
    done = VOTE(Poll(), ballots("AGAINST", "FOR", "AGAINST", "AGAINST"))
    assert done is not None
    assert (done.event, done.state.support) == ("DONE", "AGAINST")
    assert [sender for sender, _ in done.state.ballots] == [A, B, C, D]


@pytest.mark.parametrize("sides", [("FOR", "FOR", "AGAINST", "AGAINST"), ("FOR", "AGAINST", "ABSTAIN")])
def test_a_tie_abstains_as_soon_as_it_is_certain(sides: tuple[str, ...]) -> None:
    done = VOTE(Poll(support="FOR"), ballots(*sides))
    assert done is not None
    assert done.state.support == "ABSTAIN"


def test_a_vote_goes_on_while_an_option_can_still_win() -> None:
    assert VOTE(Poll(), ballots("FOR", "AGAINST")) is None
    assert VOTE(Poll(), ballots("FOR", "FOR", "AGAINST")) is None


def test_at_the_deadline_a_quorum_without_majority_abstains_and_fewer_time_out() -> None:
    at_deadline = getattr(VOTE, "at_deadline")  # noqa: B009  # a function's attribute, which mypy does not know
    done = at_deadline(Poll(), ballots("FOR", "FOR", "AGAINST"))
    assert done.state.support == "ABSTAIN"
    assert at_deadline(Poll(), ballots("FOR", "FOR")) is None


def test_a_plain_option_can_be_the_payload() -> None:
    done = choice("support", OPTIONS, "ABSTAIN")(Poll(), votes("FOR", "FOR", "x", "FOR"))
    assert done == Outcome("DONE", Poll(support="FOR"))


def test_true_is_not_the_option_one() -> None:
    done = choice("word", (1, 2), 0)(Poll(), votes(True, True, True))
    assert done is not None
    assert done.state.word == 0


def test_a_vote_needs_options() -> None:
    with pytest.raises(ServiceError, match="no options"):
        choice("support", (), "ABSTAIN")


def test_a_ballot_that_may_name_an_unknown_option_is_an_error_at_import() -> None:
    with pytest.raises(ServiceError, match=r"VoteRound .*test_core_rules.py:\d+.*may be \['ABSTAIN'\]"):

        @agree(choice("support", ("FOR", "AGAINST"), "NONE", by="support"))
        async def vote(ctx: Context, state: Poll) -> Ballot:
            return Ballot("FOR")


def test_a_choice_by_a_field_that_is_not_there_is_an_error_at_import() -> None:
    with pytest.raises(ServiceError, match=r"'side'.*\['support', 'why'\]"):

        @agree(choice("support", OPTIONS, "ABSTAIN", by="side"))
        async def vote(ctx: Context, state: Poll) -> Ballot:
            return Ballot("FOR")


def at_end(state: Poll, votes: Votes[str]) -> Outcome[Literal["SILENCE"], Poll] | None:
    return Outcome("SILENCE", state) if not len(votes) else None


def settle_plain(state: Poll, votes: Votes[str]) -> Outcome[Literal["FULL"], Poll] | None:
    return Outcome("FULL", state) if len(votes) == votes.n else None


def test_a_deadline_brings_its_own_events() -> None:
    @agree(with_deadline(settle_plain, at_end))
    async def talk(ctx: Context, state: Poll) -> str:
        return ""

    assert talk.events == {"FULL", "SILENCE", "ROUND_TIMEOUT"}
    assert talk.at_deadline(Poll(), votes()) == Outcome("SILENCE", Poll())
    assert talk.settle(Poll(), votes("a", "b", "c", "d")) == Outcome("FULL", Poll())


def test_a_rule_without_deadline_times_out() -> None:
    @agree(same("word"))
    async def talk(ctx: Context, state: Poll) -> str:
        return ""

    assert talk.at_deadline(Poll(), votes()) is None
