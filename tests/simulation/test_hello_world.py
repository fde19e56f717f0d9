"""services/hello_world, as its README promises."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from quorate.fsm import Settled, codec
from quorate.loader import load_service, load_settings
from quorate.testing import Network

FOLDER = Path(__file__).parents[2] / "services" / "hello_world"
SERVICE = load_service(FOLDER)


async def test_each_period_an_elected_keeper_greets() -> None:
    async with Network(SERVICE) as net:
        await net.run_until(round="greet")
        assert net.keeper in net.agents
        keeper = net.keeper
        await net.run_until(round="pause")
        assert net.state.greeting == f"{keeper} says hello"
        await net.run_until(period=3)
        assert net.rounds[:5] == [
            Settled("RegisterRound", "DONE", 1),
            Settled("ElectRound", "DONE", 2),
            Settled("GreetRound", "DONE", 3),
            Settled("PauseRound", "DONE", 4),
            Settled("ElectRound", "DONE", 5),
        ]


async def test_the_greeting_is_configured() -> None:
    config = load_settings(SERVICE, FOLDER, {"greeting": "grüezi"}).config
    async with Network(SERVICE, config=config) as net:
        await net.run_until(round="pause")
        assert net.state.greeting.endswith(" says grüezi")


async def test_keepers_differ() -> None:
    keepers = set()
    async with Network(SERVICE) as net:
        for period in range(12):
            await net.run_until(period=period, round="greet")
            keepers.add(net.keeper)
    assert len(keepers) >= 3


async def test_a_dead_keeper_costs_five_seconds_and_the_next_period_has_another() -> None:
    async with Network(SERVICE) as net:
        await net.run_until(round="greet")
        net.crash(dead := net.keeper)
        await net.run_until(settled=("greet", "ROUND_TIMEOUT"))
        assert net.time_s < 7
        await net.run_until(when=lambda net: net.keeper not in ("", dead) and net.state.greeting != "")
        net.restart(dead)
        await net.run_until(when=lambda net: net.keeper == dead and net.state.greeting != "")
        assert not net.violations


async def test_a_liar_cannot_make_itself_keeper() -> None:
    async with Network(SERVICE) as net:
        liar = net.agents[1]
        net.lie(liar, lambda period: [codec.encode(liar if period.round.name == "ElectRound" else "x")])
        await net.run_until(round="pause", timeout_s=200)
        honest = [one for one in net.rounds if one.round_name == "ElectRound"]
        assert {one.event for one in honest} == {"DONE"}


@pytest.mark.parametrize("agents", [1, 2, 4, 7, 10])
async def test_it_runs_with_one_to_ten_agents(agents: int) -> None:
    async with Network(SERVICE, agents=agents) as net:
        await net.run_until(period=2)


async def test_several_periods_take_milliseconds() -> None:
    async with Network(SERVICE) as net:
        began = time.perf_counter()
        await net.run_until(period=5)
    assert time.perf_counter() - began < 1  # about 0.02 s alone on the machine; other processes share it


def test_it_has_at_most_forty_lines() -> None:
    assert len((FOLDER / "service.py").read_text().splitlines()) <= 40


def test_its_specification_on_disk_is_that_of_the_code() -> None:
    assert (FOLDER / "fsm_specification.yaml").read_text() == SERVICE.spec_yaml()
