"""A whole delegate service for integration tests: real anvil, Safe, CometBFT, open-aea; vLLM shared by all tests."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from dao.demo import DelegateNet, delegate_net
from quorate.localnet.operators import local_models
from quorate.localnet.stage import Stage, stage
from quorate.localnet.tools import Tools
from quorate.operator.config import ModelConfig
from quorate.operator.model_server import ModelServer

ROOT = Path(__file__).resolve().parents[1]
_PATIENCE_S = 120


def tools() -> Tools:
    """What `./quorate test` has set up, from the environment."""
    found = SimpleNamespace(
        cometbft=Path(os.environ["QUORATE_COMETBFT"]),
        anvil=Path(os.environ["QUORATE_ANVIL"]),
        model_python=Path(os.environ["QUORATE_MODEL_PYTHON"]),
        models=Path(os.environ["QUORATE_MODELS"]),
    )
    return cast(Tools, found)  # the four paths are all that a localnet asks of it


@dataclass
class Live:
    """A running service, and what one does to it in a test."""

    on: Stage
    net: DelegateNet

    async def until(self, who: str, kind: str, **fields: Any) -> dict[str, Any]:
        """The first event of this kind and with these fields that `who` tells from now on."""
        path = self.on.run.events / f"{who}.jsonl"
        start = path.stat().st_size if path.exists() else 0
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                for line in path.read_bytes()[start:].splitlines():
                    event: dict[str, Any] = json.loads(line)
                    if event["kind"] == kind and all(event.get(k) == v for k, v in fields.items()):
                        return event
                await asyncio.sleep(0.05)

    def keeper_of(self, period: int) -> str:
        """The name of the agent that sends first in this period."""
        order = sorted(self.net.agents.addresses)
        return self.net.agents.names[order[period % len(order)]]

    def period(self) -> int:
        """Which period the service is in."""
        return self.on.story.period


@asynccontextmanager
async def model_server(logs: Path) -> AsyncIterator[ModelServer]:
    """One vLLM for each model, ready."""
    served = [model.served() for model in local_models(tools().models, 1)[0]]
    async with ModelServer(tools().model_python, served, logs) as server:
        await server.ready()
        yield server


def shared(server: ModelServer) -> tuple[tuple[ModelConfig, ...], ...]:
    """Two operators, each with its own sidecar and registration, both before the shared models."""
    return tuple(
        tuple(
            ModelConfig(name=one.name, task=one.task, folder=one.folder, upstream=f"unix://{server.socket(one.name)}")
            for one in served
        )
        for served in local_models(tools().models, 2)
    )


@asynccontextmanager
async def live_service(server: ModelServer) -> AsyncIterator[Live]:
    """The whole service, held by a task of its own: fixtures begin and end in different tasks."""
    ready: asyncio.Future[Live] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def hold() -> None:
        try:
            async with (
                stage(ROOT, "test", to_stderr=True) as on,
                delegate_net(on, tools(), ROOT, models=shared(server), config={"pause_s": 1}) as net,
            ):
                ready.set_result(Live(on, net))
                await done.wait()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
                return
            raise

    holding = asyncio.create_task(hold())
    try:
        yield await ready
    finally:
        done.set()
        await holding
