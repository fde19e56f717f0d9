"""Who may be a member, and which changes of members are possible (quorate.members)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quorate.fsm import Votes
from quorate.members import MAX_MEMBERS, Change, Member, Membership, with_change
from quorate.rounds.membership import settle_change
from tests.chain_of_agents.services import Moved
from tests.unit.member_records import CHAIN, KEYS, member, records

FOUR = records(0, 1, 2, 3)
NEW = member(4)


def state(*members: Member) -> Moved:
    return Moved(chain=CHAIN, roster=members or FOUR)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (Change(), "neither somebody who joins"),
        (Change(leave=KEYS[4].address), "is no member"),
        (Change(join=member(2)), "is to join, but is a member"),
        (Change(join=member(2, generation=1)), "is to join, but is a member"),
        (Change(join=member(2), leave=FOUR[1].address), "is to join, but is a member"),
        (Change(join=member(2), leave=FOUR[2].address), "with the validator key of a member"),
        (Change(join=replace(NEW, validator_key=FOUR[0].validator_key)), "with the validator key of a member"),
        (Change(join=replace(NEW, validator_key=FOUR[0].validator_key), leave=FOUR[0].address), "validator key"),
        (Change(join=replace(NEW, node_id=FOUR[0].node_id)), "with the node of another member"),
        (Change(join=member(4, chain="chain-2")), "but the signature is of 0x"),
        (Change(join=replace(NEW, address=KEYS[5].address)), "but the signature is of 0x"),
        (Change(join=replace(NEW, binding="00" * 65)), "no valid one"),
        (Change(join=replace(NEW, binding="beef")), "no valid one"),
        (Change(join=replace(NEW, binding="no hex")), "no valid one"),
        (Change(join=replace(NEW, validator_key="00")), "no valid one"),
        (Change(join=replace(NEW, validator_key=NEW.validator_key.upper())), "not written in small hex digits"),
        (Change(join=replace(NEW, node_id=NEW.node_id.upper())), "not written in small hex digits"),
    ],
)
def test_an_impossible_change_is_refused_with_its_reason(change: Change, says: str) -> None:
    problem = change.problem(CHAIN, FOUR)
    assert problem is not None
    assert says in problem
    with pytest.raises(ValueError, match=r"0x|neither"):
        with_change(state(), change)


def test_a_service_keeps_one_member_and_grows_to_the_limit() -> None:
    assert "0 members would be left" in (Change(leave=KEYS[0].address).problem(CHAIN, records(0)) or "")
    full = records(*range(MAX_MEMBERS))
    assert "11 members would be left" in (Change(join=member(10)).problem(CHAIN, full) or "")
    assert Change(join=member(10), leave=full[3].address).problem(CHAIN, full) is None


@pytest.mark.parametrize("n", range(1, MAX_MEMBERS))
def test_from_1_to_10_members_somebody_can_join_and_leave_again(n: int) -> None:
    before = records(*range(n))
    after = with_change(state(*before), Change(join=member(12))).roster
    assert after == records(*range(n), 12)
    assert with_change(state(*after), Change(leave=member(12).address)).roster == before


def test_a_member_takes_new_keys_by_replacing_itself() -> None:
    after = with_change(state(), Change(join=member(2, generation=1), leave=FOUR[2].address)).roster
    assert after == (*FOUR[:2], member(2, generation=1), FOUR[3])


def test_participants_follow_the_members_once_they_are_known() -> None:
    """Keepers are drawn from the participants: one who left must not be waited for."""
    registered = replace(state(), participants=tuple(one.address for one in FOUR))
    swapped = with_change(registered, Change(join=NEW, leave=FOUR[0].address))
    assert swapped.participants == tuple(one.address for one in swapped.roster)
    assert with_change(state(), Change(join=NEW)).participants == ()


def votes(*changes: Change | None) -> Votes[Change | None]:
    return Votes.of(zip([one.address for one in FOUR], changes, strict=False), n=4)


def test_the_members_change_as_a_quorum_approves() -> None:
    join = Change(join=NEW)
    done = settle_change(state(), votes(join, None, join, join))
    assert done is not None
    assert (done.event, done.state) == ("DONE", with_change(state(), join))
    assert settle_change(state(), votes(join, join)) is None, "two of four are no quorum"


@pytest.mark.parametrize(
    ("sent", "event"),
    [
        ((None, None, None), "REFUSED"),
        ((Change(leave=KEYS[9].address),) * 3, "REFUSED"),
        ((Change(join=member(4, chain="chain-2")),) * 4, "REFUSED"),
        ((Change(join=NEW), Change(leave=FOUR[0].address), None), "NO_MAJORITY"),
    ],
)
def test_what_is_not_agreed_or_not_possible_changes_nothing(sent: tuple[Change | None, ...], event: str) -> None:
    outcome = settle_change(state(), votes(*sent))
    assert outcome is not None
    assert (outcome.event, outcome.state) == (event, state())


def test_the_roster_outlives_the_period() -> None:
    assert state().next_period().roster == FOUR
    assert issubclass(Moved, Membership)


def test_a_change_says_in_words_what_it_does() -> None:
    assert str(Change(join=NEW, leave=FOUR[0].address)) == f"{NEW.address} joins and {FOUR[0].address} leaves"
    assert str(Change()) == "nothing changes"
