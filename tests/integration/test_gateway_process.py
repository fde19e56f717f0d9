"""`./quorate gateway` as a process, on a real chain: made, started, asked, told to stop."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from aiohttp.test_utils import TestServer

from tests.integration.evm_chain import ROOT
from tests.integration.operator_process import PASSPHRASE, Ground, ground
from tests.model_world import TALKER, ScriptedModel, tokens_of

pytestmark = pytest.mark.integration

STORY = "Once upon a time, an agent asked a model. It was told: wait, and see. "


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Ground]:
    async with ground(tmp_path) as one:
        yield one


def quorate(folder: Path, *arguments: str) -> str:
    """The output of a command that succeeds."""
    done = subprocess.run(
        [sys.executable, "-m", "quorate.cli", "gateway", *arguments],
        cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "QUORATE_PASSPHRASE": PASSPHRASE, "PYTHONPATH": str(ROOT / "src")}


async def test_it_is_made_started_asked_and_stopped_in_the_middle_of_an_answer(place: Ground, tmp_path: Path) -> None:
    model = ScriptedModel(story=STORY)
    async with TestServer(model.application()) as server:
        url = str(server.make_url("")).rstrip("/")
        talker = {"name": "talker", "task": "chat", "upstream": url, "manifest_hash": TALKER.manifest_hash}
        await place.ready(place.config([talker]))
        evm = ["--evm", place.local.node.url, "--registry", place.dao.registry]
        await asyncio.to_thread(quorate, tmp_path, "init", *evm, "--port", "0")
        key = (await asyncio.to_thread(quorate, tmp_path, "key", "add", "alice")).strip()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "quorate.cli", "gateway", "start",
            cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
            found = re.fullmatch(r"serving (http://127\.0\.0\.1:\d+/v1)\n", line)
            assert found is not None
            async with openai.AsyncOpenAI(base_url=found[1], api_key=key, max_retries=0) as client:
                model.gap_s = 0.05
                stream = await client.chat.completions.create(
                    model="talker", messages=[{"role": "user", "content": "Hello"}], stream=True
                )
                first = await anext(aiter(stream))
                process.send_signal(signal.SIGINT)
                rest = [chunk.choices[0].delta.content or "" async for chunk in stream]
                assert (first.choices[0].delta.content or "") + "".join(rest) == STORY
                with pytest.raises(openai.APIConnectionError):
                    await client.models.list()
            _, errors = await asyncio.wait_for(process.communicate(), 30)
            assert (process.returncode, errors.decode()) == (0, "stopped\n")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert "alice" in await asyncio.to_thread(quorate, tmp_path, "key", "list")
        (row,) = csv.DictReader(io.StringIO(await asyncio.to_thread(quorate, tmp_path, "usage")))
        assert (row["key"], row["model"], int(row["completion_tokens"])) == ("alice", "talker", len(tokens_of(STORY)))
        written = "".join(path.read_text() for path in tmp_path.glob("*.json*"))
        assert key not in written
        assert PASSPHRASE not in written
