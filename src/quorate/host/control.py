"""What this machine's user can tell a running agent: one JSON object in, one out, by a unix socket.

The rules that hold here:
- Only the user who runs the agent gets an answer (mode 0600, and the kernel's word for who is at the other end).
- A request is one line, bounded in bytes, depth and time; whatever is wrong with it is said in the answer.
- A verb gets what its declared fields hold, each of its type, and nothing else. Nothing here holds or uses a key: what
  a verb leads to passes the signing boundary like everything else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from quorate.abci.server import check_socket_path
from quorate.errors import ConfigError, QuorateError
from quorate.nesting import load_json

__all__ = ["MAX_LINE_BYTES", "Control", "NoAgent", "Verb", "tell"]

MAX_LINE_BYTES = 64 * 1024
"""Of a request or an answer."""
_PATIENCE_S = 5.0
_PEER = struct.Struct("3i")  # pid, uid, gid
_log = logging.getLogger(__name__)


class NoAgent(QuorateError):
    """No running agent answers at a control socket."""


@dataclass(frozen=True)
class Verb:
    """Something that can be said: which fields the request must have, and what answers it.

    `answer` gets the request without `do` and gives what JSON can say; a `QuorateError` is told to the one who asked.
    """

    answer: Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
    fields: Mapping[str, type] = field(default_factory=dict)


class Control:
    """Answers at the socket `path` while its block lasts: `async with Control(path, verbs):`.

    A socket of an earlier life is replaced; anything else there is a `ConfigError`, as is a path that is too long.
    """

    def __init__(self, path: Path, verbs: Mapping[str, Verb]) -> None:
        self._path = path
        self._verbs = verbs
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Control:
        check_socket_path(self._path)
        if self._path.is_symlink() or self._path.exists():
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                raise ConfigError(f"{self._path} exists and is no socket", fix="Move it away.")
            self._path.unlink()
        self._server = await asyncio.start_unix_server(self._connected, str(self._path), limit=MAX_LINE_BYTES)
        self._path.chmod(0o600)  # until here the folder, and the peer's user id, keep others out
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._open.add(task)
            task.add_done_callback(self._open.discard)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                if _uid_of(writer) == os.getuid():
                    writer.write(_line(await self._answer(reader)))
                    await writer.drain()
        except (TimeoutError, ConnectionError):
            _log.info("whoever opened the control socket went away, or said nothing for %d s", _PATIENCE_S)
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> Mapping[str, Any]:
        try:
            request = _read(await _one_line(reader))
            return await self._verb_of(request).answer({name: request[name] for name in request if name != "do"})
        except QuorateError as error:
            return {"error": error.message, "fix": error.fix}
        except Exception as error:
            _log.exception("a verb of the control socket failed")
            return {"error": f"the agent failed to answer: {error!r}", "fix": "Its log says where."}

    def _verb_of(self, request: Mapping[str, Any]) -> Verb:
        name = request.get("do")
        verb = self._verbs.get(name) if isinstance(name, str) else None
        if verb is None:
            raise ConfigError(f"do is {name!r}; expected one of {', '.join(sorted(self._verbs))}")
        if request.keys() != {"do", *verb.fields}:
            raise ConfigError(
                f"{name} has the fields {sorted(request.keys() - {'do'})}; expected {sorted(verb.fields)}"
            )
        for one, kind in verb.fields.items():
            if type(request[one]) is not kind:
                raise ConfigError(f"{one} is {request[one]!r}; expected {kind.__name__}")
        return verb


async def tell(path: Path, **request: Any) -> dict[str, Any]:
    """What the agent whose control socket is `path` answers: ``await tell(path, do="asked", event="HALT")``.

    `NoAgent` where nobody answers, `ConfigError` with the agent's own words where it refuses.
    """
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_unix_connection(str(path), limit=MAX_LINE_BYTES)
            try:
                writer.write(_line(request))
                await writer.drain()
                answer = _read(await _one_line(reader))
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        raise NoAgent(
            f"no agent answers at {path}: {error!r}", fix="./quorate status shows which agents run."
        ) from error
    if "error" in answer:
        raise ConfigError(str(answer["error"]), fix=str(answer.get("fix", "")))
    return answer


async def _one_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError as error:
        raise ConfigError(f"a line of more than {MAX_LINE_BYTES} bytes") from error
    except asyncio.IncompleteReadError as error:
        raise ConfigError(f"{len(error.partial)} bytes without the end of a line") from error


def _read(line: bytes) -> dict[str, Any]:
    try:
        value = load_json(line)
    except ValueError as error:
        raise ConfigError(f"a line that is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("a line that is no JSON object")
    return value


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _uid_of(writer: asyncio.StreamWriter) -> int:
    peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return int(_PEER.unpack(peer)[1])
