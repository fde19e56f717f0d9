"""The sidecar answers only signed, fresh, known requests, and puts a receipt under each answer."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from quorate.chain import Wallet
from quorate.errors import SetupError
from quorate.model import AUTH_HEADER, RECEIPT_HEADER, Authorization, ModelRequest, SignedReceipt, hash_of
from quorate.model.fields import CHAT, EMBEDDINGS
from quorate.operator import LimitsConfig
from quorate.units import Address, Hash
from tests.model_world import (
    CHAIN_ID,
    CLIENT,
    EMBEDDER,
    HELLO,
    REGISTRY,
    TALKER,
    ScriptedModel,
    sidecar_of,
    wallet,
)

ASKED: dict[str, Any] = {"model": "talker", "messages": HELLO}
CONTINUED = {"continue_final_message": True, "add_generation_prompt": False}
OPERATOR = wallet(20)


@dataclass
class Answered:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def message(self) -> str:
        return str(json.loads(self.body)["error"]["message"])


@dataclass
class Front:
    """A sidecar in front of a scripted model, and a client that can sign wrongly."""

    url: str
    model: ScriptedModel
    session: aiohttp.ClientSession

    async def ask(
        self,
        asked: Any = None,
        *,
        path: str = CHAT,
        raw: bytes | None = None,
        header: str | None = None,
        sent: bytes | None = None,
        **signed: Any,
    ) -> Answered:
        """POST; `sent` differs from what is signed where a test wants that, as do the fields in `signed`."""
        body = raw if raw is not None else json.dumps(ASKED if asked is None else asked).encode()
        header = authorization(body, path, **signed) if header is None else header
        headers = {AUTH_HEADER: header} if header else {}
        async with self.session.post(self.url + path, data=sent or body, headers=headers) as response:
            return Answered(response.status, await response.read(), response.headers.copy())


def authorization(
    body: bytes,
    path: str,
    *,
    client: Wallet = CLIENT,
    claimed: Address | None = None,
    at: float | None = None,
    nonce: str | None = None,
    **changes: Any,
) -> str:
    fields: dict[str, Any] = {
        "chain_id": CHAIN_ID,
        "registry": REGISTRY,
        "operator": OPERATOR.address,
        "path": path,
        "body_hash": hash_of(body),
        "time": int(time.time() if at is None else at),
        "nonce": Hash(nonce or "0x" + secrets.token_hex(32)),
    }
    request = ModelRequest(**fields | changes)
    signature = client.sign_digest(request.digest())
    return Authorization(claimed or client.address, request.time, request.nonce, signature).header()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as one:
        yield one


async def front_of(
    stack: AsyncExitStack, model: ScriptedModel | None = None, upstream: str | None = None, **settings: Any
) -> Front:
    model = model or ScriptedModel(words=["Good day."])
    if upstream is None:
        server = await stack.enter_async_context(TestServer(model.application()))
        upstream = str(server.make_url("")).rstrip("/")
    sidecar = sidecar_of(20, upstream, **settings)
    stack.push_async_callback(sidecar.close)
    server = await stack.enter_async_context(TestServer(sidecar.application()))
    session = await stack.enter_async_context(aiohttp.ClientSession())
    return Front(str(server.make_url("")).rstrip("/"), model, session)


@pytest.fixture
async def front(stack: AsyncExitStack) -> Front:
    return await front_of(stack)


async def test_a_signed_request_gets_the_models_answer_and_a_receipt_over_its_exact_bytes(front: Front) -> None:
    asked = json.dumps(ASKED).encode()
    answered = await front.ask()
    assert answered.status == 200
    receipt, signature = SignedReceipt.from_header(answered.headers[RECEIPT_HEADER])
    assert SignedReceipt(receipt, signature).signer == OPERATOR.address
    assert (receipt.request_hash, receipt.answer_hash) == (hash_of(asked), hash_of(answered.body))
    assert (receipt.client, receipt.operator) == (CLIENT.address, OPERATOR.address)
    assert (receipt.model, receipt.manifest_hash) == ("talker", TALKER.manifest_hash)
    assert (receipt.prompt_tokens, receipt.completion_tokens) == (12, 7)


async def test_an_answer_without_max_tokens_is_bounded_all_the_same(front: Front) -> None:
    await front.ask()
    assert front.model.asked[0]["max_tokens"] == LimitsConfig().max_tokens


async def test_max_completion_tokens_is_the_same_bound(front: Front) -> None:
    await front.ask(ASKED | {"max_completion_tokens": 9, "user": "somebody"})
    assert front.model.asked == [ASKED | {"max_tokens": 9}]


async def test_embeddings_are_answered_with_a_receipt(front: Front) -> None:
    answered = await front.ask({"model": "embedder", "input": ["a"]}, path=EMBEDDINGS)
    receipt, _ = SignedReceipt.from_header(answered.headers[RECEIPT_HEADER])
    assert receipt.manifest_hash == EMBEDDER.manifest_hash


@pytest.mark.parametrize(
    ("case", "status", "words"),
    [
        ({"header": ""}, 401, "sign the request"),
        ({"header": "garbage"}, 401, "cannot be read"),
        ({"header": "e30="}, 401, "cannot be read"),
        ({"at": time.time() - 3600}, 401, "dated"),
        ({"at": time.time() + 3600}, 401, "dated"),
        ({"operator": wallet(21).address}, 401, "has not signed"),
        ({"chain_id": 1}, 401, "has not signed"),
        ({"registry": OPERATOR.address}, 401, "has not signed"),
        ({"claimed": wallet(8).address}, 401, "has not signed"),
        ({"sent": json.dumps(ASKED | {"max_tokens": 1}).encode()}, 401, "has not signed"),
    ],
)
async def test_a_request_that_is_not_signed_for_us_now_is_refused_before_the_model_is_asked(
    front: Front, case: dict[str, Any], status: int, words: str
) -> None:
    answered = await front.ask(**case)
    assert answered.status == status
    assert words in answered.message
    assert RECEIPT_HEADER not in answered.headers
    assert front.model.asked == []


async def test_a_request_signed_for_another_path_is_refused(front: Front) -> None:
    body = json.dumps(ASKED).encode()
    answered = await front.ask(raw=body, header=authorization(body, EMBEDDINGS))
    assert answered.status == 401


async def test_a_replayed_request_is_refused(front: Front) -> None:
    body = json.dumps(ASKED).encode()
    header = authorization(body, CHAT)
    assert (await front.ask(raw=body, header=header)).status == 200
    again = await front.ask(raw=body, header=header)
    assert (again.status, len(front.model.asked)) == (401, 1)
    assert "nonce" in again.message


async def test_two_copies_at_once_are_answered_once(stack: AsyncExitStack) -> None:
    front = await front_of(stack, ScriptedModel(delay_s=0.05))
    body = json.dumps(ASKED).encode()
    header = authorization(body, CHAT)
    both = await asyncio.gather(*(front.ask(raw=body, header=header) for _ in range(2)))
    assert sorted(one.status for one in both) == [200, 401]


async def test_one_client_cannot_use_up_another_ones_nonce(front: Front) -> None:
    nonce = "0x" + "ab" * 32
    assert (await front.ask(client=wallet(8), nonce=nonce)).status == 200
    assert (await front.ask(nonce=nonce)).status == 200


async def test_a_forged_request_uses_up_no_nonce(front: Front) -> None:
    nonce = "0x" + "ab" * 32
    assert (await front.ask(nonce=nonce, client=wallet(8), claimed=CLIENT.address)).status == 401
    assert (await front.ask(nonce=nonce)).status == 200


async def test_a_nonce_is_remembered_as_long_as_its_request_could_be_sent_again(stack: AsyncExitStack) -> None:
    now = [1_000_000.0]
    front = await front_of(stack, limits=LimitsConfig(clock_skew_s=60), now=lambda: now[0])
    body = json.dumps(ASKED).encode()
    early = authorization(body, CHAT, at=1_000_060)  # a client whose clock is fast
    assert (await front.ask(raw=body, header=early)).status == 200
    for later in (1_000_061, 1_000_120):
        now[0] = later
        assert "nonce" in (await front.ask(raw=body, header=early)).message
    now[0] = 1_000_122
    assert "dated" in (await front.ask(raw=body, header=early)).message


async def test_nothing_signed_before_a_restart_is_answered_after_it(stack: AsyncExitStack) -> None:
    now = [1_000_000.0]
    front = await front_of(stack, now=lambda: now[0])
    assert "before this operator started" in (await front.ask(at=999_990)).message
    assert (await front.ask(at=1_000_000)).status == 200


async def test_only_chosen_clients_are_answered_where_the_operator_says_so(stack: AsyncExitStack) -> None:
    front = await front_of(stack, clients=[wallet(8).address])
    assert (await front.ask()).status == 403
    assert (await front.ask(client=wallet(8))).status == 200


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (ASKED | {"stream": "yes"}, "'stream'"),
        (ASKED | {"n": 2}, "'n'"),
        (ASKED | {"continue_final_message": True}, "together only"),
        (ASKED | {"add_generation_prompt": False}, "together only"),
        (ASKED | {"add_generation_prompt": True, "continue_final_message": True}, "'add_generation_prompt'"),
        (ASKED | CONTINUED, "no message of the assistant's"),
        (
            ASKED
            | CONTINUED
            | {"messages": [{"role": "assistant", "content": "{"}], "response_format": {"type": "json_object"}},
            "not continued",
        ),
        (ASKED | {"chat_template": "{{ 1 }}"}, "'chat_template' is not taken"),
        (ASKED | {"vllm_xargs": {}}, "'vllm_xargs' is not taken"),
        (ASKED | {"max_tokens": 100_000}, "max_tokens is 100000"),
        (ASKED | {"max_tokens": -1}, "'max_tokens'"),
        (ASKED | {"temperature": 1e9}, "'temperature'"),
        (ASKED | {"seed": True}, "'seed'"),
        ({"model": "talker"}, "no 'messages'"),
        ({"model": "talker", "messages": []}, "'messages'"),
        ({"model": "talker", "messages": [{"role": "tool", "content": "x"}]}, "'messages'"),
        (
            {
                "model": "talker",
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1"}}]}
                ],
            },
            "'messages'",
        ),
        ({"model": "embedder", "messages": HELLO}, "answers /v1/embeddings"),
        ([1], "no JSON object"),
    ],
)
async def test_a_request_for_what_is_not_served_is_a_clear_400(front: Front, asked: Any, words: str) -> None:
    answered = await front.ask(asked)
    assert answered.status == 400
    assert words in answered.message
    assert front.model.asked == []


@pytest.mark.parametrize(
    "raw", [b"", b"{", b'{"model": "talker", "model": "embedder"}', b'{"model": NaN}', b"\xff\xfe"]
)
async def test_a_body_that_is_no_strict_json_is_a_400(front: Front, raw: bytes) -> None:
    assert (await front.ask(raw=raw)).status == 400


async def test_an_unknown_model_is_a_404(front: Front) -> None:
    assert (await front.ask(ASKED | {"model": "other"})).status == 404


async def test_too_many_texts_are_refused(stack: AsyncExitStack) -> None:
    front = await front_of(stack, limits=LimitsConfig(inputs=2))
    asked = {"model": "embedder", "input": ["a"] * 3}
    assert "at most 2" in (await front.ask(asked, path=EMBEDDINGS)).message


async def test_a_large_request_is_refused(stack: AsyncExitStack) -> None:
    front = await front_of(stack, limits=LimitsConfig(request_bytes=1000))
    answered = await front.ask(ASKED | {"user": "x" * 2000})
    assert answered.status == 413
    assert front.model.asked == []


async def test_more_requests_at_once_than_allowed_are_told_to_come_again(stack: AsyncExitStack) -> None:
    front = await front_of(stack, ScriptedModel(delay_s=0.1), limits=LimitsConfig(at_once=2))
    answers = await asyncio.gather(*(front.ask() for _ in range(5)))
    assert sorted(one.status for one in answers) == [200, 200, 503, 503, 503]
    assert (await front.ask()).status == 200


@pytest.mark.parametrize(
    ("path", "method"), [("/", "GET"), ("/metrics", "GET"), ("/v1/completions", "POST"), (CHAT, "GET")]
)
async def test_other_paths_are_not_served(front: Front, path: str, method: str) -> None:
    async with front.session.request(method, front.url + path) as response:
        assert response.status in (404, 405)
        assert "error" in await response.json()


async def test_models_and_health_are_open(front: Front) -> None:
    async with front.session.get(front.url + "/v1/models") as response:
        rows = (await response.json())["data"]
    assert {row["id"]: row["manifest_hash"] for row in rows} == {
        "talker": TALKER.manifest_hash,
        "embedder": EMBEDDER.manifest_hash,
    }
    async with front.session.get(front.url + "/health") as response:
        assert (response.status, (await response.json())["operator"]) == (200, OPERATOR.address)
    front.model.status = 500
    async with front.session.get(front.url + "/health") as response:
        assert (response.status, (await response.json())["models"]["talker"]) == (503, False)


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        (ScriptedModel(status=500), 502, "failed with HTTP 500"),
        (ScriptedModel(status=400), 400, "the model said no"),
        (ScriptedModel(status=400, refusal=b"[" * 5_000), 400, "refused the request: [[["),
        (ScriptedModel(usage=None), 502, "without its usage"),
        (ScriptedModel(delay_s=5), 504, "no answer in 0.2 s"),
        (ScriptedModel(words=["x" * 50_000]), 502, "longer than"),
    ],
)
async def test_a_model_that_fails_gives_an_error_and_no_receipt(
    stack: AsyncExitStack, model: ScriptedModel, status: int, words: str
) -> None:
    patience_s = 0.2 if model.delay_s else 60
    front = await front_of(stack, model, limits=LimitsConfig(timeout_s=patience_s, answer_bytes=20_000))
    answered = await front.ask()
    assert answered.status == status
    assert words in answered.message
    assert RECEIPT_HEADER not in answered.headers


async def test_a_model_server_that_is_gone_is_a_502(stack: AsyncExitStack) -> None:
    sidecar = sidecar_of(20, "http://127.0.0.1:1")
    stack.push_async_callback(sidecar.close)
    server = await stack.enter_async_context(TestServer(sidecar.application()))
    session = await stack.enter_async_context(aiohttp.ClientSession())
    answered = await Front(str(server.make_url("")).rstrip("/"), ScriptedModel(), session).ask()
    assert answered.status == 502


async def test_before_the_models_run_it_says_so(stack: AsyncExitStack) -> None:
    sidecar = sidecar_of(20, "http://127.0.0.1:1")
    await sidecar.close()  # as before `serve`
    server = await stack.enter_async_context(TestServer(sidecar.application()))
    session = await stack.enter_async_context(aiohttp.ClientSession())
    answered = await Front(str(server.make_url("")).rstrip("/"), ScriptedModel(), session).ask()
    assert answered.status == 503
    assert "loading" in answered.message


async def test_a_busy_port_is_one_clear_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with sidecar_of(20, "http://127.0.0.1:1") as sidecar:
            with pytest.raises(SetupError, match=f"port {port} on 127.0.0.1 is in use") as caught:
                await sidecar.bind(port=port)
    assert "another port" in caught.value.fix


async def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    async with sidecar_of(20, "http://127.0.0.1:1") as sidecar:
        port = await sidecar.bind()
        assert sidecar._runner is not None
        assert sidecar._runner.addresses == [("127.0.0.1", port)]


async def test_the_receipt_of_a_nonce_can_be_fetched_again(front: Front) -> None:
    answered = await front.ask(nonce="0x" + "ab" * 32)
    async with front.session.get(f"{front.url}/v1/receipts/0x{'ab' * 32}") as response:
        assert response.headers[RECEIPT_HEADER] == answered.headers[RECEIPT_HEADER]
    async with front.session.get(f"{front.url}/v1/receipts/0x{'ac' * 32}") as response:
        assert response.status == 404


async def test_a_stream_that_fails_before_its_first_word_is_an_error_and_no_stream(stack: AsyncExitStack) -> None:
    for broken in (b"", b"data: [DONE]\n\n", b'data: {"error": {"message": "no"}}\n\n', b"data: {}\n\n"):

        async def answer(_: web.Request, broken: bytes = broken) -> web.Response:
            return web.Response(body=broken, content_type="text/event-stream")

        app = web.Application()
        app.router.add_post(CHAT, answer)
        server = await stack.enter_async_context(TestServer(app))
        front = await front_of(stack, upstream=str(server.make_url("")).rstrip("/"))
        answered = await front.ask(ASKED | {"stream": True})
        assert (answered.status, RECEIPT_HEADER in answered.headers) == (502, False)
        assert "talker failed" in answered.message


class FullDisk:
    """Keeps receipts while there is room."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.kept: list[SignedReceipt] = []

    def keep(self, signed: SignedReceipt) -> None:
        if len(self.kept) >= self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.kept.append(signed)


async def test_on_a_full_disk_no_answer_is_given_away(stack: AsyncExitStack) -> None:
    disk = FullDisk(room=1)
    front = await front_of(stack, keep=disk.keep)
    assert (await front.ask()).status == 200
    refused = await front.ask()
    assert (refused.status, refused.message) == (
        503,
        "receipts cannot be kept (No space left on device); come again later",
    )
    disk.room = 9
    assert (await front.ask()).status == 200
    assert len(disk.kept) == 2


async def test_the_receipt_of_a_stream_that_filled_the_disk_is_kept_as_soon_as_there_is_room(
    stack: AsyncExitStack,
) -> None:
    disk = FullDisk(room=0)
    front = await front_of(stack, ScriptedModel(story="One two."), keep=disk.keep)
    told = await front.ask(ASKED | {"stream": True})
    assert told.body.endswith(b"data: [DONE]\n\n")
    assert (await front.ask(ASKED | {"stream": True})).status == 503
    assert len(front.model.asked) == 1
    disk.room = 9
    assert (await front.ask()).status == 200
    assert [one.receipt.completion_tokens for one in disk.kept] == [3, 7]
