"""An agent goes on with the one of its installed versions whose turn it is, and says what is wrong where none is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from quorate.abci import Plan, Store, Target, UpgradeDue
from quorate.abci.machine import Block, Replica, apply_block
from quorate.cli import upgrade as command
from quorate.cli.upgrade import Outcome, change
from quorate.errors import ConfigError
from quorate.fsm import Period
from quorate.host.agent_file import AgentFile
from quorate.host.control import NoAgent
from quorate.host.versions import installed
from tests.chain_of_agents.keys import keys
from tests.upgrades.v1.ledger.service import service as v1
from tests.upgrades.v2.ledger.service import service as v2

ROOT = Path(__file__).parents[2]
OLD, NEW = "tests/upgrades/v1/ledger", "tests/upgrades/v2/ledger"
MEMBERS = [key.address for key in keys(4)]
START = Replica.start(Period.start(v1, MEMBERS))


def agent(home: Path, **changes: Any) -> AgentFile:
    values: dict[str, Any] = {
        "home": home, "service": OLD, "next": NEW, "name": "agent-1", "me": MEMBERS[0], "keystore": home / "key",
        "chain_id": "ledger-1", "socket_dir": Path("/tmp/q"), "comet_home": home, "cometbft": home, "p2p_port": 1,  # noqa: S108
        "events": home / "events.jsonl", "evidence_dir": home,
    }  # fmt: skip
    return AgentFile(**{**values, **changes})


def stored(home: Path, replica: Replica | None) -> Path:
    store = Store(home / "state.db", "ledger-1")
    if replica is not None:
        store.save(replica.encode())
    store.close()
    return home


def due(height: int, target: Target) -> Replica:
    return dataclasses.replace(START, height=7, upgrades=dataclasses.replace(START.upgrades, due=Plan(target, height)))


def test_the_old_version_up_to_its_last_block_and_then_the_new_one(tmp_path: Path) -> None:
    last = due(8, Target.of(v2))
    begun = apply_block(Replica.decode(v2, last.encode()), Block(8, 1000, ())).replica
    for number, (replica, folder) in enumerate(
        [(None, OLD), (START, OLD), (due(20, Target.of(v2)), OLD), (last, NEW), (begun, NEW)]
    ):
        home = tmp_path / str(number)
        home.mkdir()
        service, found = installed(agent(stored(home, replica)), ROOT)
        assert (found, service.version) == (ROOT / folder, 1 if folder == OLD else 2)


def test_where_neither_has_its_turn_the_first_says_why(tmp_path: Path) -> None:
    home = stored(tmp_path, due(8, Target(3, "ab" * 32)))
    with pytest.raises(UpgradeDue, match="agreed on version 3"):
        installed(agent(home), ROOT)
    with pytest.raises(UpgradeDue):
        installed(agent(home, next=""), ROOT)
    with pytest.raises(ConfigError, match="next is 'No Folder'"):
        agent(home, next="No Folder")


async def test_nothing_is_asked_where_the_migration_fails_or_nobody_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_settings", lambda *_: _Settings)
    file = agent(stored(tmp_path, START), next="", socket_dir=tmp_path)
    file.save()
    broken = dataclasses.replace(v2, migrations={})
    with monkeypatch.context() as patch:
        patch.setattr(command, "load_service", lambda _: broken)
        with pytest.raises(ConfigError, match="cannot take over"):
            await change([file], ROOT, ROOT / NEW, wait_s=0)
    assert AgentFile.load(tmp_path).next == ""
    with pytest.raises(ConfigError, match="is the service hello_world; these agents run ledger"):
        await change([file], ROOT, ROOT / "services/hello_world", wait_s=0)
    with pytest.raises(ConfigError, match="is not below"):
        await change([file], ROOT, tmp_path, wait_s=0)
    with pytest.raises(NoAgent):
        await change([file], ROOT, ROOT / NEW, wait_s=0)
    assert AgentFile.load(tmp_path).next == NEW


class _Settings:
    @staticmethod
    def config_hash() -> str:
        return ""


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Outcome(2, "ab" * 32, 9, ("agent-1", "agent-2"), (), 0, 3), "all 2 agents run version 2 (abababababab), from"),
        (Outcome(2, "ab" * 32, 0, (), ("agent-1",), 2, 3), "2 agents ask for version 2 (abababababab); 3 are needed"),
        (Outcome(2, "ab" * 32, 9, ("agent-1",), ("agent-2",), 0, 3), "begins with block 9; agent-2 does not run it"),
    ],
)
def test_the_command_says_how_it_stands(found: Outcome, said: str) -> None:
    assert said in command._told(found)
