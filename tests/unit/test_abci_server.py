"""The ABCI server over a real unix socket, with a client that may misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from quorate.abci import Application, Server, serve
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.abci.server import MAX_FRAME_BYTES, encode_frame
from quorate.errors import ConfigError


class Counter(Application):
    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def check_tx(self, request: pb.RequestCheckTx) -> pb.ResponseCheckTx:
        if request.tx == b"raise":
            raise ValueError("a fault of the application")
        await asyncio.sleep(0.01 if request.tx == b"slow" else 0)
        self.seen.append(request.tx)
        return pb.ResponseCheckTx(data=request.tx)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = await serve(Counter(), tmp_path / "abci.sock")
    yield server
    await server.close()


async def _ask(server: Server, *data: bytes) -> list[pb.Response]:
    """Everything the server answers before it, or we, have nothing more to say."""
    reader, writer = await asyncio.open_unix_connection(str(server.path))
    writer.write(b"".join(data))
    writer.write_eof()
    try:
        answer = await reader.read()
    except ConnectionResetError:  # closed before it had read all that we sent
        answer = b""
    writer.close()
    responses = []
    while answer:
        size = shift = 0
        while True:
            byte, answer = answer[0], answer[1:]
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        responses.append(pb.Response.FromString(answer[:size]))
        answer = answer[size:]
    return responses


def _check(tx: bytes) -> bytes:
    return encode_frame(pb.Request(check_tx=pb.RequestCheckTx(tx=tx)))


async def test_it_answers_in_the_order_of_the_requests(server: Server) -> None:
    flush = encode_frame(pb.Request(flush=pb.RequestFlush()))
    answers = await _ask(server, _check(b"slow"), _check(b"fast" * 100), flush)
    assert [a.WhichOneof("value") for a in answers] == ["check_tx", "check_tx", "flush"]
    assert [a.check_tx.data for a in answers[:2]] == [b"slow", b"fast" * 100]


async def test_a_default_application_takes_part_in_every_call(tmp_path: Path) -> None:
    server = await serve(Application(), tmp_path / "s")
    calls = [field.name for field in pb.Request.DESCRIPTOR.oneofs[0].fields]
    assert len(calls) == 16
    requests = [pb.Request(**{call: type(getattr(pb.Request(), call))()}) for call in calls]
    answers = await _ask(server, *map(encode_frame, requests))
    assert [a.WhichOneof("value") for a in answers] == calls
    await server.close()
    assert not server.path.exists()


@pytest.mark.parametrize(
    "data",
    [
        bytes([3, 255, 255, 255]),
        b"\0",
        b"\xff" * 10,
        _check(b"whole")[:-2],
    ],
    ids=["no message", "no call", "endless length", "cut off"],
)
async def test_a_malformed_frame_closes_its_connection_and_no_other(server: Server, data: bytes) -> None:
    assert await _ask(server, data) == []
    assert not server.failed.done()
    assert (await _ask(server, _check(b"next")))[0].check_tx.data == b"next"


async def test_a_handler_that_raises_is_told_to_the_node_and_the_host_and_ends_the_service(server: Server) -> None:
    answers = await _ask(server, _check(b"raise"), _check(b"after"))
    assert [a.exception.error for a in answers] == ["ValueError: a fault of the application"]
    assert isinstance(await server.failed, ValueError)
    assert await _ask(server, _check(b"later")) == []


async def test_a_frame_that_is_too_large_is_not_waited_for(server: Server) -> None:
    reader, writer = await asyncio.open_unix_connection(str(server.path))
    size = MAX_FRAME_BYTES + 1
    writer.write(bytes([0x80 | size & 0x7F, 0x80 | size >> 7 & 0x7F, 0x80 | size >> 14 & 0x7F, size >> 21]))
    assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()


async def test_after_a_failure_no_connection_gets_another_answer(server: Server) -> None:
    reader, writer = await asyncio.open_unix_connection(str(server.path))
    writer.write(_check(b"first"))
    assert await reader.readexactly(1)
    await _ask(server, _check(b"raise"))
    await asyncio.sleep(0.01)
    writer.write(_check(b"second"))
    assert b"second" not in await asyncio.wait_for(reader.read(), 2)
    writer.close()


async def test_a_socket_of_an_earlier_life_is_replaced_but_nothing_else(tmp_path: Path) -> None:
    first = await serve(Counter(), tmp_path / "s")
    second = await serve(Counter(), tmp_path / "s")
    assert (await _ask(second, _check(b"x")))[0].check_tx.data == b"x"
    await second.close()
    await first.close()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no socket"):
        await serve(Counter(), tmp_path / "file")


async def test_a_path_that_the_system_cannot_take_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 100 fit"):
        await serve(Counter(), tmp_path / ("x" * 120))


async def test_only_its_user_may_open_the_socket(server: Server) -> None:
    assert server.path.stat().st_mode & 0o777 == 0o600
