"""What an agent does at its start about an EVM node that is dead, silent or the wrong one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import ConfigError
from quorate.host.agent import _look_at
from quorate.host.journal import Journal
from tests.unit.scripted_chain import scripted_chain


async def _told(answer: Any, folder: Path) -> list[dict[str, Any]]:
    journal = Journal(folder / "events.jsonl", "agent-1")
    chain = scripted_chain({"eth_chainId": answer}, is_known=False)
    if answer is None:
        chain._provider.make_request = lambda *_: asyncio.sleep(3600)  # type: ignore[method-assign]
    try:
        await _look_at(chain, journal, patience_s=0.01)
    finally:
        journal.close()
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (OSError("connection refused"), "gave no answer to eth_chainId: connection refused"),
        ({"error": {"code": -32000, "message": "starting"}}, "refused eth_chainId: starting"),
        (None, "gave no answer within 0.01 s"),
    ],
    ids=["dead", "not ready", "silent"],
)
async def test_an_agent_starts_without_its_evm_node_and_says_so(answer: Any, why: str, tmp_path: Path) -> None:
    (event,) = await _told(answer, tmp_path)
    assert (event["kind"], event["for"]) == ("waiting", "the EVM node")
    assert event["reason"] == f"http://scripted {why}; rounds that need it wait until it is back"


async def test_an_agent_whose_evm_node_answers_says_nothing_of_it(tmp_path: Path) -> None:
    assert await _told("0x7a69", tmp_path) == []


async def test_an_agent_whose_evm_node_serves_another_chain_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="http://scripted serves chain 1; expected chain 31337"):
        await _told("0x1", tmp_path)
