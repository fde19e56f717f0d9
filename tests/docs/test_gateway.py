"""docs/gateway.md names the commands, errors and settings that there are."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from quorate.cli.gateway import gateway, key
from quorate.gateway import GatewayConfig

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/gateway.md").read_text()
SOURCES = "".join(path.read_text() for path in sorted((ROOT / "src/quorate/gateway").glob("*.py")))


def test_its_commands_are_those_that_there_are() -> None:
    assert set(re.findall(r"\./quorate gateway (\w+)", TEXT)) == set(gateway.commands)
    assert set(re.findall(r"\./quorate gateway key (\w+)", TEXT)) | {"revoke"} == set(key.commands)


def test_its_errors_are_those_that_there_are() -> None:
    shown = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", TEXT.partition("## Errors")[2].partition("##")[0]))
    raised = set(re.findall(r'(?:ApiError|cls)\(\s*\d{3}, "(\w+)"', SOURCES))
    assert raised - shown == {"receipt_not_found"}
    assert shown <= raised


def test_its_settings_are_those_that_there_are() -> None:
    shown = set(re.findall(r"`(\w+)`", TEXT.partition("GatewayConfig`):")[2].partition("##")[0]))
    assert shown == {field.name for field in dataclasses.fields(GatewayConfig)} - {"evm"}
