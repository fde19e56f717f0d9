"""agent.json: what is written is read back, and what is wrong is named."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import ConfigError
from quorate.host.agent_file import AgentFile, EvmSettings
from quorate.units import Address

ME = Address("0x70997970C51812dc3A010C7d01b50e0d17dc79C8")

AN_EVM = EvmSettings(
    url="http://127.0.0.1:8545", chain_id=31337, safe=ME, governor=ME, token=ME, timelock=ME, registry=ME
)


def an_agent(home: Path) -> AgentFile:
    return AgentFile(
        home=home,
        service="services/hello_world",
        name="agent-1",
        me=ME,
        keystore=home / "keystore.json",
        chain_id="hello_world-1",
        socket_dir=Path("/run/q-1/a1"),
        comet_home=home / "comet",
        cometbft=Path("/opt/cometbft"),
        p2p_port=26656,
        events=home / "events.jsonl",
        evidence_dir=home / "evidence",
        peers=("unix:///run/q-1/a2/rpc.sock",),
        evm=AN_EVM,
        config={"greeting": "hallo"},
    )


def changed(home: Path, **values: Any) -> Path:
    path = an_agent(home).save()
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return home


@pytest.mark.parametrize("evm", [AN_EVM, None])
def test_what_is_saved_is_loaded_again(tmp_path: Path, evm: EvmSettings | None) -> None:
    agent = replace(an_agent(tmp_path), evm=evm)
    agent.save()
    assert AgentFile.load(tmp_path) == agent


def test_a_save_that_fails_leaves_the_file_that_the_agent_runs_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`./quorate upgrade` writes it anew while the agent runs; half a file would be the end of its restarts."""
    agent = an_agent(tmp_path)
    agent.save()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace(agent, next="services/next").save()
    assert AgentFile.load(tmp_path) == agent


def test_a_home_may_be_moved_because_its_own_paths_are_relative(tmp_path: Path) -> None:
    replace(an_agent(tmp_path / "old"), keystore=Path("keystore.json"), events=Path("events.jsonl")).save()
    (tmp_path / "old").rename(tmp_path / "new")
    moved = AgentFile.load(tmp_path / "new")
    assert moved.home == tmp_path / "new"
    assert moved.keystore == tmp_path / "new" / "keystore.json"


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"me": ME.lower()}, "me is .*checksum"),
        ({"me": None}, "me is None; expected Address"),
        ({"name": "Agent 1"}, "name is 'Agent 1'"),
        ({"service": "../etc"}, "service is '../etc'"),
        ({"p2p_port": 70_000}, "p2p_port is 70000; expected 1 to 65535"),
        ({"p2p_port": True}, "p2p_port is True; expected int"),
        ({"chain_id": "x" * 51}, "1 to 50 bytes"),
        ({"socket_dir": "/" + "long/" * 20}, "over 100 bytes"),
        ({"passphrase": "x"}, "unknown field passphrase; known are .*keystore"),
        ({"evm": {**asdict(AN_EVM), "safe": "0x12"}}, "evm.safe is '0x12'"),
        ({"evm": {**asdict(AN_EVM), "url": "ws://x"}}, "url is 'ws://x'"),
        ({"evm": {"chain_id": 1}}, "governor, .*, url is missing"),
        ({"evm": {**asdict(AN_EVM), "confirmations": -1}}, "confirmations is -1; expected at least 0"),
        ({"evm": {**asdict(AN_EVM), "max_fee_gwei": 0}}, "max_fee_gwei is 0; expected at least 1"),
        ({"evm": []}, r"evm is \[\]; expected a JSON object"),
        ({"config": []}, r"config is \[\]"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(tmp_path: Path, values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        AgentFile.load(changed(tmp_path, **values))
    assert str(tmp_path / "agent.json") in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"'])
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "agent.json").write_text(text)
    with pytest.raises(ConfigError):
        AgentFile.load(tmp_path)


def test_a_folder_without_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        AgentFile.load(tmp_path)
    assert "home of an agent" in caught.value.fix
