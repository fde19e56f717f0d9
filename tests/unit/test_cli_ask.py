"""`./quorate ask`: what is said of agents that ask, that do not, and that are not there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quorate.cli.ask import _told, request
from quorate.errors import ConfigError
from quorate.host.control import Control, NoAgent, Verb


class Service:
    """What four agents' control sockets say of one service: three requests make the interrupt happen."""

    def __init__(self, folder: Path) -> None:
        self.files: list[Any] = [
            SimpleNamespace(name=f"agent-{n}", me=f"0x{n}", control=folder / f"{n}.sock") for n in range(1, 5)
        ]
        self.wants: set[str] = set()
        self.taken = 0

    def verbs(self, me: str) -> dict[str, Verb]:
        def now() -> Mapping[str, Any]:
            return {
                "event": "HALT", "is_wanted": me in self.wants, "standing": sorted(self.wants), "is_going_on": False,
                "taken": self.taken, "quorum": 3, "members": ["0x1", "0x2", "0x3", "0x4"], "sequence": 7 + self.taken,
                "round": "LookRound",
            }  # fmt: skip

        async def ask(request: Mapping[str, Any]) -> Mapping[str, Any]:
            if request["event"] != "HALT":
                raise ConfigError("no such interrupt", fix="It has HALT.")
            before = now()
            self.wants.add(me)
            if len(self.wants) >= 3:
                self.taken, self.wants = 8, set()
            return before

        async def withdraw(request: Mapping[str, Any]) -> Mapping[str, Any]:
            self.wants.discard(me)
            return now()

        async def asked(request: Mapping[str, Any]) -> Mapping[str, Any]:
            return now()

        answers = {"ask": ask, "withdraw": withdraw, "asked": asked}
        return {name: Verb(answer, {"event": str}) for name, answer in answers.items()}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    made = Service(tmp_path)
    async with AsyncExitStack() as stack:
        for file in made.files[:3]:  # the fourth does not run
            await stack.enter_async_context(Control(file.control, made.verbs(file.me)))
        yield made


async def test_when_a_quorum_asks_it_happens_and_the_missing_agent_is_named(service: Service) -> None:
    found = await request(service.files, "HALT", wait_s=5)
    assert (found.happened, found.needed, found.members, found.sequence) == (True, 3, 4, 15)
    assert list(found.silent) == ["agent-4"]
    assert _told(found, 5, False).splitlines()[-1] == "HALT has happened; the service is in round 15 (look)."


async def test_when_too_few_ask_it_is_said_who_does_and_how_many_must(service: Service) -> None:
    found = await request(service.files, "HALT", ["agent-1", "agent-2"], wait_s=0)
    assert (found.happened, found.asking) == (False, ("agent-1", "agent-2"))
    assert "3 of 4 agents have to ask for it, 2 do (agent-1, agent-2)" in _told(found, 0, False)
    again = await request(service.files, "HALT", ["agent-3"], wait_s=5)
    assert again.happened, "what the first two asked for stands"


async def test_it_can_be_withdrawn(service: Service) -> None:
    await request(service.files, "HALT", ["agent-1", "agent-2"], wait_s=0)
    found = await request(service.files, "HALT", ["agent-1"], wait_s=0, withdraw=True)
    assert (found.happened, found.asking) == (False, ("agent-2",))
    assert _told(found, 0, True) == "HALT is withdrawn; agent-2 still asks for it."


async def test_mistakes_are_said(service: Service) -> None:
    with pytest.raises(ConfigError, match="no such interrupt"):
        await request(service.files, "HLAT", wait_s=0)
    with pytest.raises(ConfigError, match="no agent of this run is named agent-9") as unknown:
        await request(service.files, "HALT", ["agent-9"], wait_s=0)
    assert "agent-1, agent-2" in unknown.value.fix
    with pytest.raises(NoAgent, match="none of agent-4 answers"):
        await request(service.files, "HALT", ["agent-4"], wait_s=0)
