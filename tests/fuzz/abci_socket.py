"""A stream of bytes into the ABCI server, in whatever pieces it arrives."""

from __future__ import annotations

import asyncio
import logging
import random
import zlib
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, cast

from google.protobuf.message import DecodeError

from quorate.abci import Application, Server
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.abci.server import MAX_FRAME_BYTES, encode_frame
from tests.fuzz.engine import Target, mutate_bytes

__all__ = ["AbciSocket"]

_LENGTHS = (0, 1, 2**20, MAX_FRAME_BYTES, MAX_FRAME_BYTES + 1, 2**35, 2**63)
_CALLS = [field.name for field in pb.Request.DESCRIPTOR.oneofs[0].fields]


class AbciSocket(Target):
    """`quorate.abci.server`: answers exactly the frames that come before the first bad one, and then closes."""

    name = "abci_socket"

    def __init__(self) -> None:
        logging.getLogger("quorate.abci.server").setLevel(logging.CRITICAL)
        self._loop = asyncio.new_event_loop()

    def seeds(self) -> Iterable[bytes]:
        yield b"".join(_frame(call) for call in _CALLS)
        yield encode_frame(pb.Request(check_tx=pb.RequestCheckTx(tx=b"x" * 200))) + _frame("flush")
        yield encode_frame(pb.Request(echo=pb.RequestEcho(message="fail"))) + _frame("commit")
        yield b"\xff\xff\xff\xff\x0f" + _frame("info")

    def mutate(self, data: bytes, other: bytes, rng: random.Random) -> bytes:
        """Half of the changes keep the frames whole: other content, another length, another order."""
        if rng.random() < 0.5:
            return mutate_bytes(data, other, rng)
        frames = _split(data)[0]
        at = rng.randint(0, len(frames))
        body = rng.choice(frames) if frames else b""
        match rng.randrange(4):
            case 0:
                body = mutate_bytes(body, other, rng)
            case 1:
                return data + _length(rng.choice(_LENGTHS)) + body
            case 2:
                echo = pb.RequestEcho(message=rng.choice(("fail", "é", "x" * 3_000)))
                body = pb.Request(echo=echo).SerializeToString()
            case _:
                body = _frame(rng.choice(_CALLS))[1:]
        frames.insert(at, body)
        return b"".join(_length(len(frame)) + frame for frame in frames)

    def run(self, data: bytes) -> str:
        rng = random.Random(zlib.crc32(data))
        cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.choice((0, 3, 30))))
        pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        seen, answers, failed = self._loop.run_until_complete(_served(pieces))
        expected, why = _expected(data)
        assert seen == expected, f"{len(seen)} requests reached the application; {len(expected)} were sent"
        said = [answer.WhichOneof("value") for answer in answers]
        calls = [call for call, _ in expected]
        if why == "fail":
            assert said == [*calls[:-1], "exception"], f"{said} answered {calls}"
            assert isinstance(failed, _Failed), f"the host was told {failed!r}"
        else:
            assert said == calls, f"{said} answered {calls}"
            assert failed is None, f"nothing failed, but the host was told {failed!r}"
        return f"{why} after {min(len(seen), 3)}: {'/'.join(said[:1])}"

    def close(self) -> None:
        self._loop.close()


class _Failed(Exception):
    """The application's own fault."""


class _Recorder(Application):
    """Answers as the default application does, and notes what it was asked; an echo of "fail" makes it fail."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []


def _recorded(call: str) -> Callable[..., Awaitable[Any]]:
    async def answer(self: _Recorder, request: Any) -> Any:
        self.seen.append((call, request.SerializeToString(deterministic=True)))
        if call == "echo" and request.message == "fail":
            raise _Failed
        return await getattr(Application, call)(self, request)

    return answer


for _call in _CALLS:
    setattr(_Recorder, _call, _recorded(_call))


class _Sink:
    """The writing side of a connection."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.is_closed = False
        self.transport = self

    def write(self, data: bytes) -> None:
        assert not self.is_closed, "an answer after the connection was closed"
        self.written += data

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.is_closed = True


async def _served(pieces: list[bytes]) -> tuple[list[tuple[str, bytes]], list[pb.Response], Exception | None]:
    """What the application saw, what it answered, and what the host was told, of a connection with these pieces."""
    app, reader, sink = _Recorder(), asyncio.StreamReader(), _Sink()
    server = Server(app, Path("unused"))
    connection = asyncio.create_task(server._connected(reader, cast(asyncio.StreamWriter, sink)))
    for piece in pieces:
        reader.feed_data(piece)
        await asyncio.sleep(0)
    reader.feed_eof()
    await connection
    assert sink.is_closed, "the connection was left open"
    answers, rest = _split(bytes(sink.written))
    assert not rest, "half an answer was written"
    failed = server.failed.result() if server.failed.done() else None
    return app.seen, [pb.Response.FromString(answer) for answer in answers], failed


def _expected(data: bytes) -> tuple[list[tuple[str, bytes]], str]:
    """The requests that are to be answered, and what ends them: read by another, simpler reader."""
    frames, rest = _split(data)
    requests: list[tuple[str, bytes]] = []
    for frame in frames:
        try:
            request = pb.Request.FromString(frame)
        except DecodeError:
            return requests, "no request"
        if (call := request.WhichOneof("value")) is None:
            return requests, "no call"
        asked = getattr(request, call)
        requests.append((call, asked.SerializeToString(deterministic=True)))
        if call == "echo" and asked.message == "fail":
            return requests, "fail"
    return requests, "cut off" if rest else "end"


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole frames at the beginning of `data`, and what follows them."""
    frames: list[bytes] = []
    at = 0
    while True:
        size = shift = 0
        start = at
        while start < len(data) and data[start] >= 0x80 and start - at < 4:
            size |= (data[start] & 0x7F) << shift
            start, shift = start + 1, shift + 7
        if start >= len(data) or data[start] >= 0x80:
            return frames, data[at:]
        size |= data[start] << shift
        if size > min(MAX_FRAME_BYTES, len(data) - start - 1):
            return frames, data[at:]
        frames.append(data[start + 1 : start + 1 + size])
        at = start + 1 + size


def _frame(call: str) -> bytes:
    return encode_frame(pb.Request(**{call: type(getattr(pb.Request(), call))()}))


def _length(size: int) -> bytes:
    head = bytearray()
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*head, size])
