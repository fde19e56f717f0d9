"""An operator as a process, on a real chain with the real registry; only its model's words are scripted."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from quorate.events import replay
from quorate.localnet.processes import Child
from quorate.model import ModelClient
from tests.integration.operator_process import ONE, OPERATOR, PASSPHRASE, Ground, ground
from tests.model_world import CLIENT, GOOD, HELLO, TALKER, ScriptedModel, wallet

pytestmark = pytest.mark.integration


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Ground]:
    async with ground(tmp_path) as one:
        yield one


@pytest.fixture
async def models() -> AsyncIterator[list[dict[str, Any]]]:
    async with TestServer(ScriptedModel().application()) as server:
        url = str(server.make_url("")).rstrip("/")
        yield [{"name": "talker", "task": "chat", "upstream": url, "manifest_hash": TALKER.manifest_hash}]


async def ended(child: Child) -> tuple[int, str]:
    code = await asyncio.wait_for(child.wait(), 30)
    return code, child.log.read_text()


async def test_it_registers_stakes_answers_and_stops_when_told(place: Ground, models: list[dict[str, Any]]) -> None:
    key = wallet(33)
    child, ready = await place.ready(place.config(models, key=str(place.keystore(key))))
    (listed,) = await place.registry.operators()
    assert (listed.account, listed.key, listed.endpoint) == (OPERATOR.address, key.address, ready.get("endpoint"))
    assert listed.stake == await place.registry.minimum_stake() == 1000 * ONE
    assert await place.registry.is_active(OPERATOR.address)

    async with ModelClient(place.registry, CLIENT) as client:
        answer = await client.chat(HELLO, model="talker")
    assert (answer.text, answer.operator) == (GOOD, OPERATOR.address)

    os.kill(child.pid, signal.SIGTERM)
    assert await ended(child) == (0, "")
    kinds = [event.kind for event in replay(place.events)]
    assert kinds == ["starting", "registered", "ready", "stopped"]


async def test_a_second_start_sends_only_what_has_changed(place: Ground, models: list[dict[str, Any]]) -> None:
    sent = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for changes in ({"port": port}, {"port": port}, {"port": port, "stake": 1200 * ONE}, {"port": 0}):
        child, _ = await place.ready(place.config(models, **changes))
        os.kill(child.pid, signal.SIGTERM)
        await ended(child)
        sent.append([event for event in replay(place.events) if event.kind == "registered"][-1].get("sent"))
    assert sent == [["register", "approve", "stake"], [], ["approve", "stake"], ["update"]]
    assert await place.token.balance_of(OPERATOR.address) == 3800 * ONE


async def test_a_paused_operator_is_active_again_when_it_starts(place: Ground, models: list[dict[str, Any]]) -> None:
    child, _ = await place.ready(place.config(models))
    os.kill(child.pid, signal.SIGTERM)
    await ended(child)
    chain = place.local.chain
    await chain.wait(await chain.send(OPERATOR, place.registry.pause()))
    await place.ready(place.config(models))
    assert await place.registry.is_active(OPERATOR.address)


async def test_what_keeps_it_from_starting_is_one_clear_sentence(place: Ground, models: list[dict[str, Any]]) -> None:
    async def refused(words: str, *, passphrase: str = PASSPHRASE, **changes: Any) -> None:
        code, said = await ended(await place.operator(place.config(models, **changes), passphrase))
        assert code == 1
        assert said.startswith("error: ")
        assert words in said
        assert "Traceback" not in said

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        await refused(f"port {port} on 127.0.0.1 is in use", port=port)
    evm = {"url": place.local.node.url, "chain_id": 31337, "registry": place.dao.registry}
    await refused("passphrase does not fit", passphrase="wrong")
    await refused("gave no answer", evm=evm | {"url": "http://127.0.0.1:1"})
    await refused("expected chain 5", evm=evm | {"chain_id": 5})
    await refused("needs", stake=9000 * ONE)
    await refused("unknown key", colour="red")
    assert await place.registry.operator_of(OPERATOR.address) is None
