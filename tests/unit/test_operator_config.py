"""An operator's configuration is checked whole before anything starts, and says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import ConfigError
from quorate.operator import OperatorConfig
from tests.model_world import CLIENT, REGISTRY

HASH = "0x" + "ab" * 32


def minimal(**changes: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "name": "operator-1",
        "keystore": "keystore.json",
        "evm": {"url": "http://127.0.0.1:8545", "chain_id": 31337, "registry": REGISTRY},
        "models": [{"name": "talker", "task": "chat", "folder": "models/talker"}],
        "events": "events.jsonl",
        "logs": "logs",
        "model_python": "/env/bin/python",
    }
    return said | changes


def model(**changes: Any) -> dict[str, Any]:
    return {"models": [{"name": "talker", "task": "chat", "folder": "m"} | changes]}


def test_a_minimal_file_is_enough_and_paths_are_taken_from_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "operator.json"
    file.write_text(json.dumps(minimal()))
    config = OperatorConfig.load(file)
    assert (config.keystore, config.events) == (tmp_path / "keystore.json", tmp_path / "events.jsonl")
    assert config.models[0].folder == tmp_path / "models/talker"
    assert config.model_python == Path("/env/bin/python")
    assert (config.host, config.port, config.models[0].length) == ("127.0.0.1", 0, 1024)


def test_a_server_that_runs_already_needs_no_model_environment(tmp_path: Path) -> None:
    said = minimal(**model(folder=None, upstream="http://127.0.0.1:9", manifest_hash=HASH), model_python=None)
    config = OperatorConfig.from_json(said, tmp_path)
    assert config.models[0].upstream == "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"port": "80"}, "port is '80'; expected int"),
        ({"port": True}, "port is True"),
        ({"port": 70000}, "0 to 65535"),
        ({"stake": -1}, "stake is -1"),
        ({"models": []}, "1 to 16 different names"),
        ({"models": minimal()["models"] * 2}, "1 to 16 different names"),
        ({"evm": {"url": "x", "chain_id": 1, "registry": "0x12"}}, "checksummed address"),
        ({"evm": {"url": "x"}}, "evm has no 'chain_id'"),
        ({"clients": ["0x12"]}, "checksummed addresses"),
        ({"host": "::"}, "endpoint is not given"),
        ({"endpoint": "ftp://x"}, "http or https"),
        ({"model_python": None}, "model_python is not given"),
        ({"limits": {"at_once": 0}}, "limits.at_once is 0"),
        ({"limits": {"at_twice": 1}}, "unknown key 'at_twice'"),
        (model(task="paint"), "expected chat or embedding"),
        (model(folder=None), "has no folder"),
        (model(manifest_hash=HASH), "leave manifest_hash out"),
        (model(folder=None, upstream="http://x", manifest_hash="0x12"), "64 hex digits"),
        (model(name=""), "expected 1 to 64"),
        (model(max_length=1), "max_length is 1"),
        (model(cache_mb=1), "cache_mb is 1"),
        (model(upstream="ftp://x"), "unix URL"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    file = tmp_path / "operator.json"
    file.write_text(json.dumps(minimal(**changes)))
    with pytest.raises(ConfigError) as caught:
        OperatorConfig.load(file)
    assert str(file) in caught.value.message
    assert words in f"{caught.value.message} {caught.value.fix}"


@pytest.mark.parametrize("name", ["name", "keystore", "evm", "models", "events", "logs"])
def test_a_missing_value_is_named(tmp_path: Path, name: str) -> None:
    said = minimal()
    del said[name]
    with pytest.raises(ConfigError, match=f"no '{name}'"):
        OperatorConfig.from_json(said, tmp_path)


def test_a_file_that_is_missing_or_no_json_is_said_so(tmp_path: Path) -> None:
    file = tmp_path / "operator.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        OperatorConfig.load(file)
    file.write_text("{")
    with pytest.raises(ConfigError, match="no JSON"):
        OperatorConfig.load(file)


def test_who_may_ask_can_be_chosen(tmp_path: Path) -> None:
    config = OperatorConfig.from_json(minimal(clients=[CLIENT.address]), tmp_path)
    assert config.clients == (CLIENT.address,)
