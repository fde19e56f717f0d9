"""The agent's control socket: who may speak, what is refused and how that is said."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import ConfigError
from quorate.host import control
from quorate.host.control import MAX_LINE_BYTES, Control, NoAgent, Verb, tell


async def greet(request: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"said": f"hello {request['name']}"}


async def refuse(request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise ConfigError("not today", fix="Come tomorrow.")


async def fail(request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise RuntimeError("a bug")


VERBS = {"greet": Verb(greet, {"name": str}), "refuse": Verb(refuse), "fail": Verb(fail)}


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "c.sock"
    async with Control(path, VERBS):
        yield path
    assert not path.exists()


async def said(path: Path, line: bytes, ends: bool = False) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(line)
    if ends:
        writer.write_eof()
    try:
        answer = await reader.read()
    except ConnectionResetError:  # closed without having read the request
        answer = b""
    writer.close()
    return dict(json.loads(answer)) if answer else {}


async def test_a_verb_answers_one_object_with_one_object(path: Path) -> None:
    assert await tell(path, do="greet", name="Ada") == {"said": "hello Ada"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (b"{}", "do is None; expected one of fail, greet, refuse"),
        (b'{"do": "open"}', "do is 'open'; expected one of"),
        (b'{"do": ["greet"]}', "do is"),
        (b'{"do": "greet"}', "greet has the fields []; expected ['name']"),
        (b'{"do": "greet", "name": "x", "more": 1}', "expected ['name']"),
        (b'{"do": "greet", "name": 7}', "name is 7; expected str"),
        (b"[1]", "no JSON object"),
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 3000, "nested too deeply"),
        (b"x" * (MAX_LINE_BYTES + 1), f"more than {MAX_LINE_BYTES} bytes"),
        (b'{"do": "fail"}', "the agent failed to answer: RuntimeError('a bug')"),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_a_request_is_said_in_the_answer(path: Path, line: bytes, wrong: str) -> None:
    answer = await said(path, line + b"\n")
    assert wrong in answer["error"]
    assert await tell(path, do="greet", name="still") == {"said": "hello still"}


async def test_a_line_without_an_end_is_refused(path: Path) -> None:
    assert "without the end of a line" in (await said(path, b'{"do": "refuse"}', ends=True))["error"]


async def test_a_refusal_comes_with_what_to_do(path: Path) -> None:
    with pytest.raises(ConfigError, match="not today") as refused:
        await tell(path, do="refuse")
    assert refused.value.fix == "Come tomorrow."


async def test_another_user_gets_no_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_uid_of", lambda writer: os.getuid() + 1)
    assert await said(path, b'{"do": "refuse"}\n') == {}


async def test_who_says_nothing_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_PATIENCE_S", 0.05)
    assert await said(path, b"") == {}


async def test_where_no_agent_runs_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoAgent, match="no agent answers at") as missing:
        await tell(tmp_path / "c.sock", do="greet", name="Ada")
    assert "./quorate status" in missing.value.fix


async def test_a_socket_of_an_earlier_life_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    left = await asyncio.start_unix_server(lambda reader, writer: None, str(path))
    async with Control(path, VERBS):
        assert await tell(path, do="greet", name="Ada")
    left.close()
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is no socket"):
        async with Control(path, VERBS):
            pass
    assert path.read_text() == "mine"


async def test_a_path_that_the_system_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bytes"):
        async with Control(tmp_path / ("x" * 110), VERBS):
            pass
