"""What a person is told of a run, and that it fits the screen. The events are those of a small vote."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from rich.console import Console

from quorate.events import Event, Tailer
from quorate.localnet.story import Line, Story, Tone, duration, short
from quorate.localnet.view import _Board, _Lines, draw, follow, view

OPERATOR = "0x" + "aB" * 20
TX = "0x" + "c4" * 32
AGENTS = ("agent-1", "agent-2", "agent-3", "agent-4")


def told(*events: Event, names: dict[str, str] | None = None) -> list[Line]:
    story = Story(names)
    return [line for event in events for line in story.add(event)]


def texts(lines: Iterable[Line]) -> list[str]:
    return [f"{line.subject}: {line.text}" for line in lines]


def event(kind: str, who: str = "agent-1", t: float = 0.0, **fields: object) -> Event:
    return Event(t, who, kind, fields)


def a_vote() -> list[Event]:
    """One round in which every kind of event happens."""
    text = "pays ten tokens from the treasury to an address, for the translation of the documentation into German"
    return [
        event("step", "demo", text="start four agents"),
        event("starting", "operator-1", 0, models=["minilm", "smollm2"], memory_need=1),
        event("models", "operator-1", 1, seconds=31.2),
        event("registered", "operator-1", 1, stake=1000 * 10**18, operator=OPERATOR, sent=["register", "stake"]),
        event("ready", "operator-1", 2, models=["minilm", "smollm2"]),
        *(event("ready", name, 3) for name in AGENTS),
        event("step", "demo", 4, text="start four agents", done=True, s=4.0),
        *(event("round", name, 5, sequence=7, period=1, round="judge") for name in AGENTS),
        *(event("act", name, 5, round="judge", sequence=7) for name in AGENTS),
        event(
            "model", "agent-1", 6, operator=OPERATOR, model="smollm2", text=text, ms=900, receipt_ok=True, weight_bps=0
        ),
        event(
            "model", "agent-2", 6, operator=OPERATOR, model="smollm2", text=text, ms=950, receipt_ok=True, weight_bps=0
        ),
        event("refused", "agent-3", 6, operator=OPERATOR, reason="the receipt is signed by another key"),
        event("down", "agent-4", 7),
        event("waiting", "agent-1", 8, **{"for": "2 of 4 agents answer; 3 are needed"}),
        event("waiting", "agent-2", 8, **{"for": "2 of 4 agents answer; 3 are needed"}),
        event("payload", "agent-1", 9, round="judge", sequence=7, via="extension", ms=900),
        event("payload", "agent-2", 9, round="judge", sequence=7, via="transaction", ms=4000),
        *(event("settled", name, 10, round="judge", event="FOR", sequence=7, height=9, ms=5000) for name in AGENTS),
        event("signed", "agent-1", 11, what="the Safe transaction", digest=TX),
        event("sent", "agent-2", 12, tx=TX, keeper="agent-2"),
        *(event("mined", name, 13, tx=TX, gas=181_240, block=23) for name in AGENTS),
        event("error", "agent-4", 14, message="the node ended"),
        event("ready", "agent-4", 15),
    ]


def test_a_whole_vote_is_told_in_order_and_each_thing_once() -> None:
    lines = texts(told(*a_vote()))
    assert [line for line in lines if not line.startswith("operator-1: smollm2")] == [
        "operator-1: has loaded its models in 31.2 s",
        "operator-1: is registered with a stake of 1,000 tokens",
        "operator-1: is ready and serves minilm, smollm2",
        "demo: start four agents (4.0 s)",
        "operator-1: is not counted by agent-3: the receipt is signed by another key",
        "agent-4: is down",
        "waiting: 2 of 4 agents answer; 3 are needed",
        "judge: FOR in 5.0 s (acts 900 ms, 4.0 s, –, –)",
        "agent-1: signs the Safe transaction 0xc4c4…c4c4",
        "agent-2: sends transaction 0xc4c4…c4c4",
        "chain: transaction 0xc4c4…c4c4 in block 23, 181,240 gas",
        "agent-4: the node ended",
        "agent-4: is back",
    ]


def test_a_models_words_come_with_who_signed_them_and_what_they_weigh() -> None:
    (line,) = told(
        event("model", operator=OPERATOR, model="m", text="a\n b", ms=1234, receipt_ok=True, weight_bps=2500),
        event("model", "agent-2", operator=OPERATOR, model="m", text="a b", ms=99, receipt_ok=True, weight_bps=2500),
        names={OPERATOR.lower(): "operator-1"},
    )
    assert (line.subject, line.text) == ("operator-1", "m: “a b” (1.2 s, receipt holds, weight 25 %)")


def test_that_no_operator_answers_is_told_once() -> None:
    refused = [event("refused", name, operator="", reason="operator-1: no answer in 60 s") for name in AGENTS]
    assert texts(told(*refused)) == ["agent-1: counts no answer: operator-1: no answer in 60 s"]


def test_an_answer_whose_receipt_fails_is_not_shown_like_the_others() -> None:
    (line,) = told(event("model", operator=OPERATOR, model="m", text="a", ms=1, receipt_ok=False, weight_bps=0))
    assert line.tone is Tone.BAD
    assert "RECEIPT DOES NOT HOLD" in line.text
    assert line.subject == "0xaBaB…aBaB", "nobody has told its name"


def test_the_board_counts_an_operators_answers() -> None:
    story = Story()
    story.add(event("ready", "operator-1", models=["m"], address=OPERATOR))
    for name in AGENTS[:2]:
        story.add(event("model", name, operator=OPERATOR, model="m", text=name, receipt_ok=True, weight_bps=0))
    assert story.operators["operator-1"].doing == "has given 2 answers, the last to agent-2 (m)"
    assert "operator-1" not in story.agents, "an operator is no part of the quorum"


def test_waiting_is_over_when_a_round_settles_and_may_be_told_again_then() -> None:
    waiting = Event(0.0, "agent-1", "waiting", {"for": "agent-4"})
    settled = event("settled", round="a", event="DONE", sequence=1, height=1, ms=1)
    assert len(told(waiting, waiting)) == 1
    assert len(told(waiting, settled, waiting)) == 3


def test_an_agent_that_waits_in_the_next_round_already_still_waits_when_this_one_settles() -> None:
    story = Story()
    story.add(event("act", round="WatchRound", sequence=2))
    story.add(Event(0.0, "agent-1", "waiting", {"for": "a proposal"}))
    story.add(event("settled", round="RegisterRound", event="DONE", sequence=1, height=1, ms=1))
    assert story.waiting == "a proposal"
    story.add(event("settled", round="WatchRound", event="DONE", sequence=2, height=2, ms=1))
    assert story.waiting == ""


def test_too_few_agents_are_waited_for_and_enough_go_on() -> None:
    story = Story()
    for name in AGENTS:
        story.add(event("ready", name))
    assert texts(story.add(event("down", "agent-4"))) == ["agent-4: is down"]
    assert story.waiting == "", "three of four are a quorum"
    assert texts(story.add(event("down", "agent-3")))[1:] == ["waiting: 2 of 4 agents answer; 3 are needed"]
    assert story.waiting
    story.add(event("ready", "agent-4"))
    assert story.waiting == ""


def test_an_agent_that_ended_by_itself_is_said_to_come_back() -> None:
    story = Story()
    story.add(event("ready", "agent-1"))
    (line, _) = texts(story.add(event("down", "agent-1", how="killed by SIGKILL", again_s=2.0)))
    assert line == "agent-1: is down: killed by SIGKILL; it is started again in 2 s"
    assert texts(story.add(event("ready", "agent-1"))) == ["agent-1: is back"]


def test_a_round_whose_length_the_agent_does_not_know_is_measured_from_its_opening() -> None:
    opened = event("round", t=10.0, sequence=1, period=0, round="judge")
    (line,) = told(opened, event("settled", t=12.5, round="judge", event="DONE", sequence=1, height=1, ms=None))
    assert line.text == "DONE in 2.5 s"


def test_a_round_is_called_as_its_function_is() -> None:
    settled = event("settled", round="ReadProposalRound", event="DONE", sequence=1, height=1, ms=1)
    assert texts(told(settled)) == ["read_proposal: DONE in 1 ms"]


def test_acts_that_took_alike_are_told_once() -> None:
    parts = [event("payload", name, round="PauseRound", sequence=1, via="extension", ms=2000) for name in AGENTS]
    settled = event("settled", round="PauseRound", event="DONE", sequence=1, height=1, ms=2050)
    assert texts(told(*parts, settled)) == ["pause: DONE in 2.0 s (acts 2.0 s each)"]


def test_an_agent_that_does_not_know_how_long_its_act_took_breaks_nothing() -> None:
    part = event("payload", round="PauseRound", sequence=1, via="transaction", ms=None)
    assert texts(told(part, event("settled", round="PauseRound", event="DONE", sequence=1, height=1, ms=20))) == [
        "pause: DONE in 20 ms"
    ]


def test_a_late_event_of_an_earlier_round_does_not_turn_the_board_back() -> None:
    story = Story()
    story.add(event("round", sequence=2, period=0, round="second"))
    story.add(event("round", "agent-2", sequence=1, period=0, round="first"))
    assert (story.sequence, story.round) == (2, "second")


def test_a_kind_that_the_story_does_not_know_is_told_as_it_is() -> None:
    assert texts(told(event("slashed", amount=3))) == ["agent-1: slashed {'amount': 3}"]


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0 ms"), (41.4, "41 ms"), (999, "999 ms"), (999.6, "1.0 s"), (14_210, "14.2 s"), (185_000, "3:05 min")],
)
def test_a_duration_has_the_unit_that_reads_best(ms: float, text: str) -> None:
    assert duration(ms) == text


def test_only_long_hexadecimal_is_shortened() -> None:
    assert short("0x1234") == "0x1234"
    assert short("a long sentence with no hexadecimal") == "a long sentence with no hexadecimal"
    assert short(OPERATOR) == "0xaBaB…aBaB"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_line_and_the_board_fit_the_screen_and_nothing_is_lost(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None, highlight=False)
    board = _Board(Story(), "Quorate demo", console)
    for happened in a_vote():
        board.show(happened)
        if happened.kind == "down":
            console.print(board.render())
    shown = out.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert "into German”" in " ".join(shown.split()), "a model's words are wrapped, not cut"


def test_a_pipe_gets_one_whole_line_for_each_thing() -> None:
    out = io.StringIO()
    lines = _Lines(Story(), Console(file=out, width=80))
    for happened in a_vote():
        lines.show(happened)
    text = out.getvalue()
    assert "\x1b" not in text
    assert len(text.splitlines()) == len(told(*a_vote()))


def test_with_json_nothing_but_the_result_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with view("demo", to_stderr=True) as shown:
        shown.show(event("error", message="look here"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "look here" in captured.err


async def test_following_shows_also_what_was_written_last(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(event("error", message="the last words").line() + "\n")
    tailer = Tailer()
    tailer.add(path)
    out = io.StringIO()
    await follow_briefly(tailer, _Lines(Story(), Console(file=out, width=80)))
    assert "the last words" in out.getvalue()


async def follow_briefly(tailer: Tailer, shown: _Lines) -> None:
    import asyncio

    task = asyncio.create_task(follow(tailer, shown))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_picture_of_a_run_refers_to_nothing_outside_of_itself() -> None:
    svg = draw([Event(1.0, "quorate", "note", {"text": "hello <b>"})], "a run")
    assert svg.startswith("<svg")
    assert "hello" in svg
    assert re.findall(r"https?://[^\"]+", svg) == ["http://www.w3.org/2000/svg"]


def test_while_a_quorum_is_missing_nothing_else_is_said_to_be_waited_for() -> None:
    story = Story()
    for number in range(1, 5):
        story.add(event("round", f"agent-{number}", 1, sequence=4, round="JudgeRound"))
    for name in ("agent-3", "agent-4"):
        story.add(event("down", name, 2))
    story.add(event("settled", "agent-2", 3, round="WatchRound", event="DONE", sequence=4))  # it catches up
    story.add(event("waiting", "agent-2", 3, **{"for": "a proposal that is open for votes"}))
    assert story.waiting == "2 of 4 agents answer; 3 are needed"
    story.add(event("ready", "agent-3", 4))
    assert story.waiting == ""
