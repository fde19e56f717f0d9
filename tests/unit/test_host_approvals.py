"""What an agent's operator approves: one change, kept over restarts, forgotten once a round has decided."""

from __future__ import annotations

import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quorate.abci.membership import begin
from quorate.errors import ConfigError
from quorate.fsm import Period, Settled
from quorate.host.approvals import MOST_GUESTS, Approvals, Guests, membership_verbs
from quorate.members import Change
from quorate.rounds.membership import CHANGE_MEMBERS
from tests.chain_of_agents.services import counting, moving
from tests.unit.member_records import KEYS, genesis_of, member

PERIOD = begin(moving, genesis_of(4))
JOIN, LEAVE = Change(join=member(4)), Change(leave=KEYS[1].address)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "approved.json"


def test_an_approval_outlives_a_restart_and_is_the_owners_alone(path: Path) -> None:
    Approvals(path).approve(JOIN, PERIOD)
    assert Approvals(path).change == JOIN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    Approvals(path).approve(LEAVE, PERIOD)
    assert Approvals(path).change == LEAVE


@pytest.mark.parametrize("name", ["ChangeMembersRound", "AgreeChangeRound"])
@pytest.mark.parametrize(("event", "is_kept"), [("DONE", False), ("REFUSED", False), ("ROUND_TIMEOUT", True)])
def test_an_approval_counts_for_one_round(path: Path, name: str, event: str, is_kept: bool) -> None:
    """Else an old one would let a member in again whom the others have thrown out since."""
    approvals = Approvals(path)
    approvals.approve(JOIN, PERIOD)
    approvals.settled(Settled("RaiseValueRound", "DONE", 1))
    assert approvals.change == JOIN
    approvals.settled(Settled(name, event, 2))
    assert (approvals.change == JOIN) is is_kept


def test_what_cannot_be_made_is_not_approved(path: Path) -> None:
    with pytest.raises(ConfigError, match="is to leave, but is no member"):
        Approvals(path).approve(Change(leave=KEYS[9].address), PERIOD)
    with pytest.raises(ConfigError, match="its state is no Membership"):
        Approvals(path).approve(LEAVE, Period.start(counting, [key.address for key in KEYS[:4]]))
    assert Approvals(path).change is None


def test_a_damaged_approval_is_told_by_its_file(path: Path) -> None:
    path.write_text('{"join":')
    with pytest.raises(ConfigError, match=r"approved\.json holds no approved change"):
        _ = Approvals(path).change


def test_who_is_welcome_outlives_a_restart_and_the_oldest_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "guests.json"
    assert Guests(path).nodes == ()
    for index in range(MOST_GUESTS + 2):
        Guests(path).welcome(f"{index:040x}")
    Guests(path).welcome(f"{5:040x}")
    expected = [*(index for index in range(2, MOST_GUESTS + 2) if index != 5), 5]
    assert Guests(path).nodes == tuple(f"{index:040x}" for index in expected)
    path.write_text('["a",')
    with pytest.raises(ConfigError, match=r"guests\.json holds no nodes' ids"):
        _ = Guests(path).nodes


async def test_the_verbs_do_what_they_say(path: Path) -> None:
    told: list[Any] = []
    app: Any = SimpleNamespace(
        period=PERIOD, members=genesis_of(4).members, height=7, me=KEYS[0].address, welcome=told.append
    )
    runner: Any = SimpleNamespace(ask=told.append, withdraw=lambda event: told.append(f"no {event}"))
    verbs = membership_verbs(app, runner, Approvals(path), Guests(path.with_name("guests.json")))
    change = {
        "join": {name: getattr(member(4), name) for name in ("address", "validator_key", "node_id", "binding")},
        "leave": None,
    }
    await verbs["approve"].answer({"change": change})
    assert told == [member(4).node_id, CHANGE_MEMBERS]
    said = await verbs["members"].answer({})
    assert (said["quorum"], said["height"], said["is_member"], said["approved"]) == (3, 7, True, str(JOIN))
    assert [one["address"] for one in said["members"]] == [key.address for key in KEYS[:4]]
    await verbs["disapprove"].answer({})
    assert (told[-1], Approvals(path).change) == (f"no {CHANGE_MEMBERS}", None)
    await verbs["welcome"].answer({"node": "ab"})
    assert told[-1] == "ab"
    assert Guests(path.with_name("guests.json")).nodes == ("ab",)
    none = {"join": None, "leave": None}
    for wrong in ({}, {"leave": KEYS[1].address}, {**none, "more": 1}, {**none, "join": 1.5}):
        with pytest.raises(ConfigError, match="no change of members"):
            await verbs["approve"].answer({"change": wrong})
