"""An agent's log and metrics: each line says where it belongs, and a program can read both."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate.fsm import Period
from quorate.host import logs
from quorate.host.journal import Journal
from quorate.host.metrics import Metrics
from quorate.loader import load_service
from quorate.localnet.logbook import Logbook, sources_of
from quorate.testing.network import agent_address

SERVICE = load_service(Path(__file__).parents[2] / "services" / "hello_world")
PERIOD = Period.start(SERVICE, [agent_address(n) for n in range(4)])


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


async def test_a_line_names_the_agent_and_the_round_of_the_act_that_speaks(written: io.StringIO) -> None:
    lines = logs.start(logging.StreamHandler(written), agent="agent-1", service="services/hello_world")
    log = logging.getLogger("quorate.test")
    log.info("before the first block")
    lines.committed = lambda: PERIOD

    async def act() -> None:
        logs.bind(PERIOD.end_block(1)[0])
        log.warning("mine: %d", 7)

    await asyncio.gather(act())
    log.info("the application's")
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed")
    first, mine, rest, failed = map(json.loads, written.getvalue().splitlines())
    assert (first["message"], first["agent"], first["level"]) == ("before the first block", "agent-1", "info")
    assert "round" not in first
    assert (mine["message"], mine["round"], mine["sequence"], mine["period"]) == ("mine: 7", "RegisterRound", 1, 0)
    assert rest["round"] == "RegisterRound"
    assert "ValueError: boom" in failed["error"], "one line holds the whole traceback"


def test_metrics_follow_from_the_events_and_count_an_act_once(tmp_path: Path) -> None:
    metrics = Metrics(agent="agent-1", service="hello_world")
    journal = Journal(tmp_path / "events.jsonl", "agent-1", metrics.count)
    journal.opened(PERIOD)
    for via in ("extension", "transaction"):
        journal.emit("payload", round="RegisterRound", sequence=1, via=via, ms=500)
    journal.emit("settled", round="RegisterRound", event="DONE", sequence=1, height=3, ms=250)
    journal.waiting("JudgeRound", 'a "reason"')
    journal.close()
    metrics.write(tmp_path / "a.prom")
    text = (tmp_path / "a.prom").read_text()
    own = 'agent="agent-1",service="hello_world"'
    assert f'quorate_act_seconds_total{{{own},round="RegisterRound"}} 0.5\n' in text
    assert f'quorate_payloads_total{{{own},round="RegisterRound",via="extension"}} 1\n' in text
    assert f'quorate_rounds_total{{{own},event="DONE",round="RegisterRound"}} 1\n' in text
    assert f"quorate_height{{{own}}} 3\n" in text
    assert f'quorate_waits_total{{{own},round="JudgeRound"}} 1\n' in text
    assert text.count("# TYPE process_cpu_seconds_total counter") == 1
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_logs_and_events_of_a_run_come_in_the_order_of_time(tmp_path: Path) -> None:
    for folder in ("logs", "events"):
        (tmp_path / folder).mkdir()
    said = {"t": 2.0, "level": "warning", "logger": "x", "message": "late", "round": "ElectRound"}
    (tmp_path / "logs/agent-1.log").write_text(json.dumps(said) + "\nTraceback: not JSON\n")
    (tmp_path / "logs/agent-1-cometbft.log").write_text("node\n")
    (tmp_path / "logs/anvil.log").write_text("anvil\n")
    (tmp_path / "events/agent-1.jsonl").write_text('{"t": 1.0, "who": "agent-1", "kind": "ready", "height": 0}\n{"t"')
    book = Logbook(sources_of(tmp_path, (), node=False))
    assert [(one.t, one.level, one.text) for one in book.new()] == [
        (1.0, "info", "ready height=0"),
        (2.0, "warning", "late"),
        (2.0, "error", "Traceback: not JSON"),
    ]
    assert book.new() == [], "an unfinished line is not read"
    assert {path.name for path in sources_of(tmp_path, ["agent-1"], node=True)} == {
        "agent-1.log",
        "agent-1-cometbft.log",
        "agent-1.jsonl",
    }
    assert [path.name for path in sources_of(tmp_path, ["anvil"], node=False)] == ["anvil.log"]
