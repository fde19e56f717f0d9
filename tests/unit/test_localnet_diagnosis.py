"""`why`: what a snapshot of a service means, in words that a person who did not build it can act on."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from quorate.abci.upgrade import Plan, Target, Upgrades
from quorate.events import Event
from quorate.fsm import codec
from quorate.localnet.diagnosis import Diagnosis, diagnose, plain_round
from quorate.localnet.snapshot import AgentView, ChainView, OperatorView, Part, Snapshot, Told, _part, last_words, told

NOW = 1000.0
ADDRESSES = [f"0x{number}{'0' * 39}" for number in range(1, 5)]
JUDGE = Part(height=9, app_hash="aa" * 32, sequence=5, period=1, round="JudgeRound", voted=(), is_asleep=False)
AT_WORK = Told(sequence=5, round="JudgeRound", opened_t=NOW - 3, act_t=NOW - 3)
RICH = 10**18


def agent(number: int, **changes: Any) -> AgentView:
    others = tuple(f"agent-{one}" for one in range(1, 5) if one != number)
    well = AgentView(
        f"agent-{number}", ADDRESSES[number - 1], "running", "running", JUDGE, others, False, AT_WORK, None
    )
    return dataclasses.replace(well, **changes)


def gone(number: int, **changes: Any) -> AgentView:
    return agent(number, **{"life": "gone", "node_life": "gone", "part": None, "peers": None, **changes})


def look(*changed: AgentView, chain: ChainView | None = None, operators: tuple[OperatorView, ...] = ()) -> Snapshot:
    agents = {f"agent-{number}": agent(number) for number in range(1, 5)} | {one.name: one for one in changed}
    return Snapshot("run", "delegate", "delegate-1", NOW, tuple(agents.values()), chain, operators)


def kinds(found: Diagnosis) -> list[str]:
    return [one.kind for one in found.findings]


CHAIN = ChainView("http://127.0.0.1:8545", "", 12, 10**9)
OPERATORS = tuple(OperatorView(f"operator-{n}", f"http://127.0.0.1:{n}", "running", "") for n in (1, 2))


def test_a_service_at_work_is_well() -> None:
    found = diagnose(look(chain=CHAIN, operators=OPERATORS))
    assert (found.is_well, found.round, found.findings) == (True, "judge", ())
    assert found.verdict == "All is well: judge (round 5, period 1), open for 3.0 s: its acts are at work."
    assert [one.why for one in found.missing] == ["is at work, for 3.0 s"] * 4


def test_a_rest_is_no_fault() -> None:
    resting = dataclasses.replace(JUDGE, round="PauseRound", is_asleep=True)
    found = diagnose(look(*(agent(n, part=resting) for n in range(1, 5))))
    assert found.is_well
    assert "rest in pause" in found.verdict


@pytest.mark.parametrize(("due", "expected"), [(Plan(Target(2, "ab" * 32), 12), (2, 12)), (None, (0, 0))])
def test_an_agreed_upgrade_is_told_with_its_block_and_what_to_do(due: Plan | None, expected: tuple[int, int]) -> None:
    said = {
        **{"height": 9, "app_hash": "aa", "sequence": 5, "period": 1, "round": "JudgeRound", "voted": []},
        **{"asleep": False, "offences": [], "upgrade": json.loads(codec.encode(Upgrades(due=due)))},
    }
    part = _part(said)
    assert (part.next_version, part.next_height) == expected
    found = diagnose(look(*(agent(n, part=part) for n in range(1, 5))))
    assert found.is_well
    assert kinds(found) == (["upgrade"] if due else [])
    if due:
        assert "version 2 of the code is agreed from block 12 on" in found.verdict
        assert "./quorate upgrade" in found.findings[0].fix


def test_one_stopped_peer_weakens_and_two_stop_the_service() -> None:
    one = diagnose(look(gone(4, last_words="error: the disk is full")))
    assert kinds(one) == ["agent-gone"]
    assert "goes on" in one.verdict
    assert "the disk is full" in one.verdict
    two = diagnose(look(gone(3), agent(4, life="paused", part=None)))
    assert kinds(two) == ["no-quorum", "agent-gone", "agent-paused"]
    assert two.verdict.startswith("Nothing can be decided in judge (round 5, period 1): 2 of 4 agents answer; 3 are")
    assert "Agent-3 does not run" in two.verdict
    assert "agent-4 is paused" in two.verdict
    assert not two.is_well


def test_an_agent_that_has_left_is_missed_by_nobody_and_one_that_joined_counts() -> None:
    now = dataclasses.replace(JUDGE, members=(*ADDRESSES[:3], "0x5"))
    new = dataclasses.replace(agent(3), name="agent-5", address="0x5", part=now)
    found = diagnose(look(*(agent(n, part=now) for n in range(1, 4)), gone(4), new))
    assert (found.is_well, found.findings) == (True, ())
    assert "agent-4" not in [one.agent for one in found.missing]
    two = diagnose(look(agent(1, part=now), gone(2), gone(3), gone(4), new))
    assert two.verdict.startswith("Nothing can be decided in judge (round 5, period 1): 2 of 4 agents answer; 3 are")


def test_nobody_answers() -> None:
    found = diagnose(look(*(gone(n) for n in range(1, 5))))
    assert found.verdict.startswith("No agent of delegate answers. agent-1 does not run; agent-2")
    assert (found.round, found.missing) == ("", ())


def test_a_paused_node_is_told_from_a_paused_agent_and_from_one_that_hangs() -> None:
    found = diagnose(look(agent(2, node_life="paused", part=None)))
    assert "its CometBFT node is paused" in found.findings[0].text
    assert found.missing[1].why.startswith("its node is paused")
    found = diagnose(look(agent(2, part=None, told=Told(error="the state file cannot be written"))))
    assert kinds(found) == ["agent-silent"]
    assert "the state file cannot be written" in found.verdict


def test_a_wrong_key_is_told_by_the_last_words_of_who_did_not_start() -> None:
    words = "error: the keystore k holds the key of 0xB; expected 0xA"
    assert words in diagnose(look(gone(1, last_words=words))).verdict


def test_a_dead_rpc_is_named_before_the_acts_that_fail_for_it() -> None:
    dead = ChainView("http://127.0.0.1:8545", "nothing listens there", None, None)
    failing = dataclasses.replace(AT_WORK, waiting_for="JudgeRound", reason="http://127.0.0.1:8545 does not answer")
    found = diagnose(look(*(agent(n, told=failing) for n in range(1, 5)), chain=dead))
    assert kinds(found) == ["chain-silent", "act-fails"]
    assert "held up: the EVM chain at http://127.0.0.1:8545 cannot be used: nothing listens there" in found.verdict
    assert found.findings[1].who == ("agent-1", "agent-2", "agent-3", "agent-4"), "one reason is told once"


def test_a_chain_of_another_id_is_no_chain_to_act_on() -> None:
    other = dataclasses.replace(CHAIN, problem="it is chain 5; the agents expect 1")
    assert "it is chain 5" in diagnose(look(chain=other)).verdict


def test_one_silent_model_operator_weakens_and_all_of_them_stop_the_service() -> None:
    silent = [dataclasses.replace(one, problem="no answer in 3 s") for one in OPERATORS]
    one = diagnose(look(chain=CHAIN, operators=(silent[0], OPERATORS[1])))
    assert [(f.kind, f.weight) for f in one.findings] == [("operator-silent", "weakens")]
    both = diagnose(look(chain=CHAIN, operators=(silent[0], silent[1])))
    assert {f.weight for f in both.findings} == {"stops"}
    assert "held up: operator-1 at http://127.0.0.1:1 gives no answers: no answer in 3 s" in both.verdict
    dead = dataclasses.replace(OPERATORS[0], life="gone", problem="nothing listens there", last_words="error: no stake")
    assert "does not run; its last words: error: no stake" in diagnose(look(operators=(dead, OPERATORS[1]))).verdict


def test_a_model_that_gives_no_answer_is_named_with_its_operator_before_anybody_gives_up() -> None:
    operator = dataclasses.replace(OPERATORS[0], account="0xAb")
    asking = dataclasses.replace(AT_WORK, asking="0xAb", asking_model="talker", asking_t=NOW - 5)
    soon = diagnose(look(agent(1, told=asking), operators=(operator,)))
    assert soon.is_well
    assert soon.missing[0].why == "waits for an answer of operator-1 (talker), for 5.0 s"
    late = dataclasses.replace(asking, asking_t=NOW - 25)
    found = diagnose(look(agent(1, told=late), agent(2, told=late), operators=(operator,)))
    (finding,) = found.findings
    assert (finding.kind, finding.who) == ("model-silent", ("agent-1", "agent-2"))
    assert "no answer of operator-1's model talker for 25.0 s" in found.verdict


def test_who_cannot_pay_for_gas_is_named_with_where_to_send_it() -> None:
    found = diagnose(look(*(agent(n, balance_wei=RICH) for n in (1, 2, 3)), agent(4, balance_wei=0), chain=CHAIN))
    (finding,) = found.findings
    assert (finding.kind, finding.who, finding.weight) == ("no-gas", ("agent-4",), "weakens")
    assert "it has nothing" in finding.text
    assert ADDRESSES[3] in finding.fix
    all_poor = diagnose(look(*(agent(n, balance_wei=10) for n in range(1, 5)), chain=CHAIN))
    assert {one.weight for one in all_poor.findings} == {"stops"}


def test_acts_that_fail_stop_the_service_only_when_no_quorum_of_others_is_left() -> None:
    failing = dataclasses.replace(AT_WORK, reason=f"the key of {ADDRESSES[1]} is not registered")
    one = diagnose(look(agent(1, told=failing)))
    assert [(f.kind, f.weight) for f in one.findings] == [("act-fails", "weakens")]
    assert "agent-1 cannot do judge: the key of agent-2 is not registered" in one.findings[0].text
    two = diagnose(look(agent(1, told=failing), agent(2, told=failing)))
    assert [(f.weight, f.who) for f in two.findings] == [("stops", ("agent-1", "agent-2"))]


def test_a_hope_is_no_fault() -> None:
    hoping = dataclasses.replace(AT_WORK, waiting_for="a proposal that is open for votes")
    found = diagnose(look(*(agent(n, told=hoping) for n in range(1, 5))))
    assert found.is_well
    assert "waiting for a proposal" in found.verdict


def test_a_rule_that_wants_all_of_them_is_told() -> None:
    sent = dataclasses.replace(JUDGE, round="RegisterRound", voted=tuple(ADDRESSES[:3]))
    found = diagnose(look(*(agent(n, part=sent) for n in (1, 2, 3)), gone(4)))
    assert "rule-wants-more" in kinds(found)
    assert "3 agents have sent, and register still waits for agent-4" in found.verdict


def test_two_states_at_one_height_are_the_first_thing_said() -> None:
    other = dataclasses.replace(JUDGE, app_hash="bb" * 32)
    found = diagnose(look(agent(4, part=other)))
    assert (
        "different states at block 9: agent-1, agent-2 and agent-3 hold aaaaaaaaaaaa and agent-4 hold" in found.verdict
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"told": dataclasses.replace(AT_WORK, handed_in_t=NOW)}, "has sent; no block holds it yet"),
        ({"told": Told(sequence=4, round="ReadRound")}, "has not begun"),
        ({"told": dataclasses.replace(AT_WORK, reason="x")}, "tries again: x"),
        ({"part": dataclasses.replace(JUDGE, sequence=4, height=8)}, "is still in round 4"),
    ],
)
def test_each_who_has_not_sent_has_its_reason(changes: dict[str, Any], why: str) -> None:
    assert diagnose(look(agent(3, **changes))).missing[2].why == why


def test_one_that_catches_up_or_has_no_peers_is_named() -> None:
    late = dataclasses.replace(JUDGE, height=2, sequence=1)
    assert "agent-3 catches up: block 2 of 9" in diagnose(look(agent(3, part=late, is_catching_up=True))).verdict
    assert kinds(diagnose(look(agent(3, peers=())))) == ["no-peers"]


def test_events_tell_what_an_agent_does_in_its_latest_round_only() -> None:
    def at(t: float, kind: str, **fields: Any) -> Event:
        return Event(t, "agent-1", kind, fields)

    events = [
        at(1, "ready"),
        at(2, "round", sequence=1, round="ReadRound"),
        at(3, "act", sequence=1, round="ReadRound"),
        at(4, "waiting", **{"for": "ReadRound", "reason": "the node is silent"}),
    ]
    assert told(events).reason == "the node is silent"
    events += [at(5, "payload", sequence=1, round="ReadRound", via="transaction")]
    assert (told(events).reason, told(events).handed_in_t) == ("", 5)
    events += [
        at(6, "settled", sequence=1, round="ReadRound"),
        at(6, "round", sequence=2, round="JudgeRound"),
        at(7, "act", sequence=2, round="JudgeRound"),
    ]
    last = told(events)
    assert (last.sequence, last.round, last.opened_t, last.act_t, last.handed_in_t) == (2, "JudgeRound", 6, 7, None)
    assert last.settled_t == 6
    assert told([*events, at(8, "error", message="boom")]).error == "boom"
    asked = [*events, at(8, "asking", operator="0xAb", model="talker")]
    assert (told(asked).asking, told(asked).asking_t) == ("0xAb", 8)
    assert told([*asked, at(9, "payload", sequence=2, round="JudgeRound", via="extension")]).asking == ""
    assert told([*events, at(8, "error", message="boom"), at(9, "ready")]) == Told(settled_t=6), "a new life"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""),
        ("error: the keystore holds another key\nGive it the right one.\n", "error: the keystore holds another key"),
        ("Traceback (most recent call last):\n  File x\nTypeError: boom\n", "TypeError: boom"),
        ('{"t": 1.0, "level": "info", "message": "the node stopped"}\n', "the node stopped"),
    ],
)
def test_the_last_words_of_a_process_are_its_error_or_its_last_line(tmp_path: Path, log: str, words: str) -> None:
    (tmp_path / "agent-1.log").write_text(log)
    assert last_words(tmp_path / "agent-1.log") == words
    assert last_words(tmp_path / "none.log") == ""


def test_a_round_is_called_as_its_function() -> None:
    assert [plain_round(name) for name in ("ReadProposalRound", "Round", "PauseRound")] == [
        "read_proposal",
        "",
        "pause",
    ]
    assert not re.search("Round", diagnose(look()).verdict)
