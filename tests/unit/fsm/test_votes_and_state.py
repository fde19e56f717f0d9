"""Votes count by content, never by order; a state crosses a period only in the fields that say so."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from quorate import Address, ServiceError, State, Votes, keep
from quorate.fsm import quorum_of

A, B, C, D = (Address(name) for name in "ABCD")


@dataclass(frozen=True)
class Ledger(State):
    note: str = "none"
    wins: int = keep(0)


def test_a_quorum_is_more_than_two_thirds() -> None:
    assert [quorum_of(n) for n in range(1, 11)] == [1, 2, 3, 3, 4, 5, 5, 6, 7, 7]
    assert all(3 * quorum_of(n) > 2 * n for n in range(1, 100))


def test_votes_are_in_sender_order_however_they_came() -> None:
    votes = Votes.of([(C, 3), (A, 1), (B, 2)], n=4)
    assert votes.senders() == (A, B, C)
    assert votes.values() == (1, 2, 3)
    assert votes.items() == ((A, 1), (B, 2), (C, 3))
    assert (len(votes), votes.n, votes.quorum) == (3, 4, 3)
    assert B in votes
    assert D not in votes
    assert (votes.get(B), votes.get(D)) == (2, None)


def test_without_a_size_everybody_has_sent() -> None:
    assert Votes.of([(A, 1), (B, 1)]).n == 2
    assert Votes.of([(A, 1), (B, 1)], quorum=1).quorum == 1


def test_a_sender_cannot_vote_twice() -> None:
    with pytest.raises(ServiceError, match="twice"):
        Votes.of([(A, 1), (A, 2)])


def test_same_needs_a_quorum() -> None:
    assert Votes.of([(A, "x"), (B, "x")], n=4).same() is None
    assert Votes.of([(A, "x"), (B, "y"), (C, "x"), (D, "x")]).same() == "x"


def test_one_and_true_are_different_payloads() -> None:
    assert Votes.of([(A, 1), (B, True), (C, 1)], n=4).same() is None


def test_payloads_may_be_dicts() -> None:
    assert Votes.of([(A, {"x": 1}), (B, {"x": 1}), (C, {"x": 1})], n=4).same() == {"x": 1}


def test_a_quorum_for_nothing_is_a_quorum() -> None:
    votes = Votes.of([(A, None), (B, None), (C, None)], n=4)
    assert votes.agreed() == (None,)
    assert Votes.of([(A, None)], n=4).agreed() == ()


def test_split_only_when_no_payload_can_win_any_more() -> None:
    assert not Votes.of([], n=4).split()
    assert not Votes.of([(A, 1), (B, 2)], n=4).split()
    assert Votes.of([(A, 1), (B, 2), (C, 3)], n=4).split()
    assert Votes.of([(A, 1), (B, 1), (C, 2), (D, 2)]).split()


def test_only_kept_fields_cross_into_the_next_period() -> None:
    ended = Ledger(participants=(A, B), period=4, note="x", wins=7)
    assert ended.next_period() == Ledger(participants=(A, B), period=5, note="none", wins=7)


def test_the_states_quorum_is_that_of_its_participants() -> None:
    assert Ledger(participants=(A, B, C, D)).quorum == 3
