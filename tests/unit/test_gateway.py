"""The gateway: keys, clear refusals, answers passed on with their receipts, streams that survive their operators."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
import random
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from quorate.chain import Operator
from quorate.errors import ChainError, ConfigError, Malformed, ModelError, Refused, TimedOut, Unreachable
from quorate.gateway import KeyFile, KnownRegistry, Ledger
from quorate.model import RECEIPT_HEADER, Declined, Measured, ModelClient, Receipt, SignedReceipt, hash_of
from quorate.operator import LimitsConfig
from quorate.units import Address
from tests.gateway_world import ASKED, Front, front
from tests.model_world import (
    CLIENT,
    EMBEDDER,
    FORM,
    GOOD,
    HELLO,
    TALKER,
    ScriptedModel,
    ScriptedRegistry,
    listed,
    tokens_of,
    world,
)

STORY = 'Once upon a time, an agent asked.\n\nIt was told: "Wörter, 数  and blanks."  Then it slept! '
STREAM = ASKED | {"stream": True}


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Front]:
    async with front(tmp_path) as one:
        yield one


def told(body: bytes) -> tuple[str, list[Any], list[SignedReceipt]]:
    """The text of a stream, its chunks, and its receipts."""
    events = body.decode().split("\n\n")
    assert events.pop() == ""
    receipts = [SignedReceipt.from_header(one.split(" ")[2]) for one in events if one.startswith(": quorate-receipt ")]
    chunks = [json.loads(one[6:]) for one in events if one.startswith("data: {")]
    text = "".join(choice["delta"].get("content", "") for one in chunks for choice in one.get("choices", ()))
    return text, chunks, receipts


async def test_an_answer_is_the_operators_byte_for_byte_with_its_receipt(gate: Front) -> None:
    operator = await gate.place.honest(ScriptedModel(words=["Good day."]))
    answered = await gate.ask()
    assert answered.status == 200
    assert answered.json["choices"][0]["message"]["content"] == "Good day."
    signed = SignedReceipt.from_header(answered.headers[RECEIPT_HEADER])
    assert (signed.receipt.answer_hash, signed.signer) == (hash_of(answered.body), operator.key)
    assert answered.headers["X-Quorate-Operator"] == operator.account
    shown = await gate.get(f"/receipts/{answered.headers['X-Request-Id']}")
    assert shown.json["data"][0]["header"] == answered.headers[RECEIPT_HEADER]


async def test_only_the_key_that_asked_sees_an_answers_receipts(gate: Front) -> None:
    await gate.place.honest()
    answered = await gate.ask()
    path = f"/receipts/{answered.headers['X-Request-Id']}"
    assert (await gate.get(path, gate.keys.make("mallory"))).status == 404
    assert (await gate.get(path)).status == 200


async def test_a_stream_survives_the_death_of_its_operators_and_names_all_of_them(gate: Front) -> None:
    count = len(tokens_of(STORY))
    for death in (5, 12):
        dying = ScriptedModel(story=STORY, tell=lambda n, death=death: b"" if n == death else None)  # type: ignore[misc]
        await gate.place.honest(dying, LimitsConfig(receipt_tokens=2))
    await gate.place.honest(ScriptedModel(story=STORY))
    answered = await gate.ask(STREAM | {"stream_options": {"include_usage": True}, "max_tokens": 100})
    text, chunks, receipts = told(answered.body)
    assert text == STORY
    assert answered.body.endswith(b"data: [DONE]\n\n")
    assert chunks[-1]["usage"] == {"prompt_tokens": 12, "completion_tokens": count, "total_tokens": 12 + count}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert sum(one.receipt.completion_tokens for one in receipts) == count
    assert {one["id"] for one in chunks} == {answered.headers["X-Request-Id"]}
    shown = await gate.get(f"/receipts/{answered.headers['X-Request-Id']}")
    assert [row["header"] for row in shown.json["data"]] == [one.header() for one in receipts]
    assert gate.ledger.usage("alice").completion_tokens == count


KILLS = int(os.environ.get("QUORATE_STREAM_KILLS", "3"))


@pytest.mark.parametrize("seed", range(KILLS))
async def test_callers_notice_nothing_of_operators_that_die_at_random(gate: Front, seed: int) -> None:
    draw = random.Random(seed)
    chosen = [draw.randint(1, len(tokens_of(STORY)) + 1) for _ in range(4)]
    for death in chosen:
        dying = ScriptedModel(story=STORY, tell=lambda n, death=death: b"" if n == death else None)  # type: ignore[misc]
        await gate.place.honest(dying, LimitsConfig(receipt_tokens=draw.randint(1, 6), receipt_s=60))
    await gate.place.honest(ScriptedModel(story=STORY))
    answers = await asyncio.gather(*(gate.ask(STREAM) for _ in range(4)))
    assert [told(one.body)[0] for one in answers] == [STORY] * 4
    assert all(one.body.endswith(b"data: [DONE]\n\n") for one in answers)


async def test_a_stream_that_nobody_can_go_on_with_ends_in_an_error_and_no_end(tmp_path: Path) -> None:
    async with front(tmp_path, {"passes": 1}) as gate:
        dying = ScriptedModel(story=STORY, tell=lambda n: b"" if n == 5 else None)
        await gate.place.honest(dying, LimitsConfig(receipt_tokens=1))
        answered = await gate.ask(STREAM)
        text, chunks, _ = told(answered.body)
        assert STORY.startswith(text)
        assert chunks[-1]["error"]["code"] == "no_valid_answer"
        assert b"[DONE]" not in answered.body
        assert gate.ledger.usage("alice").completion_tokens == 4  # what was delivered is owed


async def test_a_caller_that_leaves_stops_the_models_work(gate: Front) -> None:
    model = ScriptedModel(story=STORY, gap_s=0.005)
    await gate.place.honest(model)
    headers = {"Authorization": f"Bearer {gate.key}"}
    async with gate.session.post(f"{gate.url}/chat/completions", json=STREAM, headers=headers) as response:
        await response.content.readany()
    async with asyncio.timeout(5):
        while not (model.cut and gate.ledger.usage("alice").parts):
            await asyncio.sleep(0.002)
    assert gate.ledger.usage("alice").completion_tokens < len(tokens_of(STORY))


async def test_json_is_streamed_in_one_piece_that_holds_its_schema(gate: Front) -> None:
    await gate.place.honest(ScriptedModel(words=[GOOD[:9], GOOD]))
    await gate.place.honest(ScriptedModel(words=[GOOD[:9], GOOD]))
    form = {"type": "json_schema", "json_schema": {"name": "summary", "schema": FORM, "strict": True}}
    text, _, _ = told((await gate.ask(STREAM | {"response_format": form})).body)
    assert text == GOOD


async def test_embeddings_are_floats_or_what_openais_client_asks_for(gate: Front) -> None:
    await gate.place.honest()
    asked = {"model": "embedder", "input": ["a", "b"]}
    plain = await gate.ask(asked, "/embeddings")
    assert [row["embedding"] for row in plain.json["data"]] == [[0.0, 0.5, -0.25], [1.0, 0.5, -0.25]]
    packed = await gate.ask(asked | {"encoding_format": "base64"}, "/embeddings")
    numbers = [struct.unpack("<3f", base64.b64decode(row["embedding"])) for row in packed.json["data"]]
    assert numbers == [(0.0, 0.5, -0.25), (1.0, 0.5, -0.25)]
    assert RECEIPT_HEADER in packed.headers


async def test_models_are_those_of_operators_that_can_be_asked(gate: Front) -> None:
    await gate.place.honest()
    await gate.place.honest(models=(TALKER,))
    gate.place.add(listed(50, "http://127.0.0.1:1", models=(EMBEDDER,), paused=True))
    rows = (await gate.get("/models")).json["data"]
    assert [(row["id"], row["operators"]) for row in rows] == [("embedder", 1), ("talker", 2)]
    assert (await gate.get("/models/talker")).json["id"] == "talker"
    assert (await gate.get("/models/nobody")).json["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({}, "no_api_key"),
        ({"Authorization": "Basic x"}, "no_api_key"),
        ({"Authorization": "Bearer qk-x"}, "invalid_api_key"),
    ],
)
async def test_nobody_is_answered_without_a_key(gate: Front, header: dict[str, str], code: str) -> None:
    model = ScriptedModel()
    await gate.place.honest(model)
    answered = await gate.ask(headers=header)
    assert (answered.status, answered.json["error"]["code"]) == (401, code)
    assert model.asked == []


async def test_a_revoked_key_is_refused_at_once_and_no_key_is_written_down(gate: Front) -> None:
    await gate.place.honest()
    key = gate.keys.make("bob")
    assert (await gate.ask(headers={"Authorization": f"Bearer {key}"})).status == 200
    assert key not in gate.keys.path.read_text()
    assert gate.keys.path.stat().st_mode & 0o077 == 0
    KeyFile(gate.keys.path).revoke("bob")  # another process
    assert (await gate.ask(headers={"Authorization": f"Bearer {key}"})).status == 401


async def test_a_key_whose_budget_is_spent_is_refused_also_after_a_restart(gate: Front) -> None:
    await gate.place.honest()
    headers = {"Authorization": f"Bearer {gate.keys.make('carol', most_tokens=30)}"}
    statuses = [(await gate.ask(headers=headers)).status for _ in range(3)]  # 19 tokens an answer
    assert statuses == [200, 200, 429]
    carol = next(key for key in gate.keys.all() if key.name == "carol")
    gate.ledger.close()
    again = Ledger(gate.folder / "ledger.jsonl")
    assert again.is_spent(carol)
    gate.ledger._file = os.dup(again._file)
    again.close()


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (ASKED | {"n": 2}, "n"),
        (ASKED | {"temperature": 9}, "temperature"),
        (ASKED | {"chat_template": "x"}, "chat_template"),
        (ASKED | {"tools": [{"type": "function"}]}, "tools"),
        (ASKED | {"logprobs": True}, "logprobs"),
        (ASKED | {"frequency_penalty": 0.5}, "frequency_penalty"),
        (ASKED | {"stream_options": {"x": 1}}, "stream_options"),
        (ASKED | {"stream_options": 1}, "stream_options"),
        ({"messages": HELLO}, "model"),
        ({"model": "talker"}, "messages"),
        (ASKED | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        (ASKED | {"response_format": 3}, "response_format"),
        (ASKED | {"messages": 3}, "messages"),
        (ASKED | {"add_generation_prompt": False}, "continue_final_message"),
    ],
)
async def test_a_wrong_request_is_told_by_field_and_no_operator_is_asked(gate: Front, asked: Any, param: str) -> None:
    model = ScriptedModel()
    await gate.place.honest(model)
    answered = await gate.ask(asked)
    assert (answered.status, answered.json["error"]["param"]) == (400, param)
    assert answered.json["error"]["type"] == "invalid_request_error"
    assert model.asked == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"[1]", 400, "invalid_json"),
        (b'{"model": "talker"', 400, "invalid_json"),
        (b'{"model": "talker", "model": "x"}', 400, "invalid_json"),
        (b'{"model": "\xff"}', 400, "invalid_json"),
        ('{"model": "talker"}'.encode("utf-16"), 400, "invalid_json"),
        (b'{"model": "\\ud800", "messages": []}', 400, "invalid_json"),
        (b'{"model": NaN}', 400, "invalid_json"),
        (b"[" * 90_000, 400, "invalid_json"),
        (b'{"model": "talker", "messages": "' + b"x" * 10_000_000 + b'"}', 413, "request_too_large"),
        (json.dumps(ASKED | {"model": "x\x1b[31m\n" * 5}).encode(), 404, "model_not_found"),
        (json.dumps(ASKED | {"model": "x" * 90_000}).encode(), 404, "model_not_found"),
        (json.dumps(ASKED | {"model": ""}).encode(), 404, "model_not_found"),
    ],
)  # fmt: skip
async def test_hostile_bodies_are_refused_in_openais_form(gate: Front, body: bytes, status: int, code: str) -> None:
    model = ScriptedModel()
    await gate.place.honest(model)
    answered = await gate.ask(data=body)
    assert (answered.status, answered.json["error"]["code"]) == (status, code)
    assert len(answered.body) < 1000
    assert b"\x1b" not in answered.body
    assert model.asked == []


async def test_a_prompt_of_control_characters_reaches_the_model_as_it_is(gate: Front) -> None:
    model = ScriptedModel()
    await gate.place.honest(model)
    prompt = "\x00\x1b[31m\u2028\u202e\ufeff\u007f \U0001f600"
    assert (await gate.ask(ASKED | {"messages": [{"role": "user", "content": prompt}]})).status == 200
    assert model.asked[0]["messages"][0]["content"] == prompt


async def test_what_clients_send_without_meaning_it_changes_nothing(gate: Front) -> None:
    model = ScriptedModel()
    await gate.place.honest(model)
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    asked = ASKED | {
        "messages": [{"role": "developer", "content": "Be brief.", "name": None}, {"role": "user", "content": parts}],
        "frequency_penalty": 0,
        "logprobs": False,
        "tools": [],
        "stop": None,
        "user": "somebody",
        "n": 1,
        "stream": False,
    }
    assert (await gate.ask(asked)).status == 200
    sent = model.asked[0]
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert sent.keys() == {"model", "messages", "max_tokens", "n"}


async def refused(gate: Front, **asked: Any) -> tuple[int, str]:
    answered = await gate.ask(ASKED | asked)
    error = answered.json["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    return answered.status, error["code"]


async def test_why_there_is_no_route_is_told_to_programs(gate: Front) -> None:
    assert await refused(gate) == (404, "model_not_found")
    gate.place.add(listed(50, "http://127.0.0.1:1", paused=True))
    assert await refused(gate) == (503, "operators_paused")
    await gate.place.honest(ScriptedModel(), LimitsConfig(max_tokens=4))
    assert await refused(gate, max_tokens=5) == (400, "refused_by_operators")
    gate.place.registry.listed.clear()
    gate.place.add(listed(51, "http://127.0.0.1:1"))
    assert await refused(gate) == (502, "no_valid_answer")
    answered = await gate.ask()
    assert answered.json["error"]["attempts"][0]["operator"] == listed(51, "").account


async def test_operators_without_room_and_slow_ones_are_told_apart(tmp_path: Path) -> None:
    async with front(tmp_path, {"timeout_s": 0.2}) as gate:
        await gate.place.honest(ScriptedModel(delay_s=5), LimitsConfig(at_once=1))
        slow, busy = await asyncio.gather(gate.ask(), gate.ask())
        codes = sorted((one.status, one.json["error"]["code"]) for one in (slow, busy))
        assert codes == [(503, "operators_busy"), (504, "operators_timed_out")]
        assert {one.headers.get("Retry-After") for one in (slow, busy)} == {None, "1"}


async def test_a_full_gateway_says_come_again(tmp_path: Path) -> None:
    async with front(tmp_path, at_once=1) as gate:
        await gate.place.honest(ScriptedModel(delay_s=0.2))
        answers = await asyncio.gather(gate.ask(), gate.ask())
        assert sorted(one.status for one in answers) == [200, 503]


async def test_callers_mistakes_never_open_a_breaker(gate: Front) -> None:
    """SGLang's gateway once took its whole fleet away for one client's broken requests (25811)."""
    operators = [await gate.place.honest(ScriptedModel(), LimitsConfig(max_tokens=4)) for _ in range(3)]
    for _ in range(8):
        assert (await gate.ask(ASKED | {"max_tokens": 5})).status == 400
    assert not any(gate.router.is_open(one.account) for one in operators)
    assert (await gate.ask(ASKED | {"max_tokens": 4})).status == 200


async def test_an_operator_that_fails_is_left_alone_by_and_by(gate: Front) -> None:
    broken = ScriptedModel(status=500)
    dead = await gate.place.honest(broken)
    await gate.place.honest()
    answers = [await gate.ask() for _ in range(14)]
    assert {one.status for one in answers} == {200}
    assert gate.router.is_open(dead.account) or gate.router.seen(dead.account).failures < 3
    assert len(broken.asked) <= 4


async def test_on_a_full_disk_no_new_answer_is_given(gate: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    await gate.place.honest()
    write = os.write

    def full(file: int, data: bytes) -> int:
        if file == gate.ledger._file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    monkeypatch.setattr(os, "write", full)
    assert (await gate.ask()).status == 200  # its operator is owed already
    assert await refused(gate) == (503, "ledger_full")
    monkeypatch.setattr(os, "write", write)
    assert (await gate.ask()).status == 200
    assert Ledger.read(gate.folder / "ledger.jsonl")["alice"].parts == 2


def test_a_torn_last_line_of_a_ledger_is_cut_off_and_any_other_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    line = json.dumps({"key": "alice", "prompt_tokens": 1, "completion_tokens": 2}).encode() + b"\n"
    path.write_bytes(line + line[:-9])
    ledger = Ledger(path)
    assert ledger.usage("alice").tokens == 3
    with pytest.raises(ConfigError, match="another gateway"):
        Ledger(path)
    ledger.close()
    assert path.read_bytes() == line
    path.write_bytes(b"{}\n" + line)
    with pytest.raises(ConfigError, match="line 1"):
        Ledger(path)


def test_names_of_keys_are_unique_and_plain(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    assert keys.find("qk-x") is None
    keys.make("alice")
    for name in ("alice", "", "a b", "../x", "x" * 65):
        with pytest.raises(ConfigError):
            keys.make(name)
    with pytest.raises(ConfigError):
        keys.revoke("bob")
    (tmp_path / "keys.json").write_text("[]")
    with pytest.raises(ConfigError, match="no file of keys"):
        keys.find("qk-x")


class Flaky(ScriptedRegistry):
    def __init__(self) -> None:
        super().__init__([listed(20, "http://127.0.0.1:1")])
        self.reads = 0
        self.is_down = False

    async def operators(self) -> Any:
        self.reads += 1
        await asyncio.sleep(0)
        if self.is_down:
            raise Unreachable("no answer from the node")
        return await super().operators()


async def test_the_registry_is_read_now_and_then_and_outlives_its_chain_for_a_while() -> None:
    now, source = [0.0], Flaky()
    known = KnownRegistry(source, fresh_s=5, stale_s=60, clock=lambda: now[0])
    assert len(await known.operators()) == 1
    for _ in range(9):
        await known.operators()
    assert source.reads == 1
    source.is_down, now[0] = True, 30.0
    assert len(await known.operators()) == 1
    await asyncio.sleep(0.01)
    assert len(await known.operators()) == 1
    assert source.reads == 2
    now[0] = 61.0
    with pytest.raises(ChainError):
        await known.operators()
    source.is_down = False
    now[0] = 70.0
    assert len(await known.operators()) == 1
    await known.close()


# The router.


def _operators(count: int) -> list[Operator]:
    return [listed(number, "http://x") for number in range(20, 20 + count)]


def _end(router: Measured, operator: Operator, error: ModelError | None = None, seconds: float = 1.0) -> None:
    router.began(operator)
    router.ended(operator, error, seconds, 0 if error else 84)


def test_the_faster_of_two_is_asked_and_a_queue_makes_it_slow() -> None:
    router = Measured(draw=random.Random(1))
    fast, slow = _operators(2)
    _end(router, fast, seconds=1)
    _end(router, slow, seconds=3)
    assert all(router.order([slow, fast])[0] == fast for _ in range(20))
    for _ in range(3):
        router.began(fast)
    assert all(router.order([slow, fast])[0] == slow for _ in range(20))


def test_load_spreads_over_equal_operators() -> None:
    router, operators = Measured(draw=random.Random(2)), _operators(10)
    for operator in operators:
        _end(router, operator)
    asked = []
    for _ in range(1000):
        (first, *_) = router.order(operators)
        router.began(first)
        asked.append(first)
        if len(asked) > 20:
            router.ended(asked[-20], None, 1.0, 84)
    counts = [asked.count(one) for one in operators]
    assert max(counts) < 1.5 * min(counts)


def test_a_breaker_opens_after_failures_in_a_row_rests_and_lets_one_through() -> None:
    now = [0.0]
    router = Measured(trips=3, rest_s=2, clock=lambda: now[0], draw=random.Random(3))
    bad, good = _operators(2)
    _end(router, good)
    for error in (TimedOut("x"), Refused("x"), Malformed("x")):
        assert not router.is_open(bad.account)
        _end(router, bad, error)
    assert router.is_open(bad.account)
    assert router.order([bad, good]) == [good, bad]
    assert router.order([bad]) == [bad]  # better than nobody
    now[0] = 2.6
    assert not router.is_open(bad.account)
    router.began(bad)
    assert router.is_open(bad.account)  # to all but the one that tries it
    router.ended(bad, None, 1.0, 84)
    assert not router.is_open(bad.account)


@pytest.mark.parametrize("status", [400, 413, 422, 429, 503])
def test_a_refusal_that_blames_the_request_or_the_hour_opens_no_breaker(status: int) -> None:
    router = Measured()
    (one,) = _operators(1)
    for _ in range(50):
        _end(router, one, Declined("no", status))
    assert not router.is_open(one.account)


@pytest.mark.parametrize("status", [401, 403, 404, 500, 502, 504])
def test_a_refusal_that_is_the_operators_own_counts(status: int) -> None:
    router = Measured()
    (one,) = _operators(1)
    for _ in range(3):
        _end(router, one, Declined("no", status))
    assert router.is_open(one.account)


def test_who_declines_fast_draws_no_questions_by_it() -> None:
    router = Measured(draw=random.Random(4))
    lazy, honest = _operators(2)
    for _ in range(3):
        _end(router, lazy, Declined("no", 400), seconds=0.001)
        _end(router, honest, seconds=5)
    assert all(router.order([lazy, honest])[0] == honest for _ in range(20))


def test_a_question_that_its_asker_gave_up_says_nothing() -> None:
    router = Measured()
    (one,) = _operators(1)
    router.began(one)
    router.ended(one, None, 0.0, 0)
    assert (router.seen(one.account).pace_s, router.seen(one.account).in_flight) == (None, 0)


async def test_a_payer_is_told_what_is_owed_and_its_word_goes_with_the_question() -> None:
    class Owing:
        def __init__(self) -> None:
            self.owed: list[Receipt] = []

            self.asked: list[Address] = []

        def headers(self, operator: Address) -> dict[str, str]:
            self.asked.append(operator)
            return {"X-Quorate-Voucher": f"for {operator}"}

        def owe(self, signed: SignedReceipt) -> None:
            self.owed.append(signed.receipt)

    async with world() as place:
        operator = await place.honest(ScriptedModel(story=STORY))
        payer = Owing()
        async with ModelClient(place.registry, CLIENT, payer=payer) as client:
            await client.chat(HELLO, model="talker")
            assert [one.completion_tokens for one in payer.owed] == [7]
            async with client.stream(HELLO, model="talker") as stream:
                assert [text async for text in stream]
        assert payer.owed[-1].completion_tokens == len(tokens_of(STORY))
        assert len({one.nonce for one in payer.owed}) == 2
        assert payer.asked == [operator.account] * 2
