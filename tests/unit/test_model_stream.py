"""A stream has a receipt for every word that is let through, and goes on elsewhere where it breaks."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from quorate.errors import Malformed
from quorate.model import (
    AUTH_HEADER,
    Authorization,
    Declined,
    NoAnswer,
    Receipt,
    SignedReceipt,
    Stream,
    hash_of,
)
from quorate.model.sse import DONE, Event, Tally, data_event, events, receipt_event, receipt_in
from quorate.operator import LimitsConfig
from quorate.units import Hash
from tests.model_world import (
    BLANK_AFTER,
    BLANK_BEFORE,
    CHAIN_ID,
    FORM,
    GOOD,
    HELLO,
    REGISTRY,
    TALKER,
    ScriptedModel,
    World,
    listed,
    tokens_of,
    wallet,
    world,
)

STORY = (
    'Once upon a time, an agent asked a model. \n\nIt answered: "Wörter, 数 and  blanks."   Then it\tslept! The end.  '
)
KILLED = int(os.environ.get("QUORATE_STREAM_KILLS", "8"))
EAGER = LimitsConfig(receipt_tokens=4, receipt_s=60)


@pytest.fixture
async def place() -> AsyncIterator[World]:
    async with world() as one:
        yield one


def teller(tell: Callable[[int], bytes | None] = lambda told: None, **changes: Any) -> ScriptedModel:
    return ScriptedModel(story=STORY, tell=tell, **changes)


async def read(stream: Stream) -> str:
    async with stream:
        return "".join([text async for text in stream])


async def test_a_stream_is_the_models_text_and_its_last_receipt_covers_all_of_it(place: World) -> None:
    operator = await place.honest(teller())
    stream = place.client().stream(HELLO, model="talker")
    assert await read(stream) == STORY == stream.text
    (segment,) = stream.segments
    assert (segment.signed.receipt.operator, segment.signed.signer) == (operator.account, operator.key)
    assert (stream.finish, stream.prompt_tokens, stream.completion_tokens) == ("stop", 12, len(tokens_of(STORY)))
    async with asyncio.timeout(5):
        while not place.kept:
            await asyncio.sleep(0.001)
    assert place.kept == [segment.signed]


async def test_text_comes_while_the_model_is_still_at_work(place: World) -> None:
    model = teller()
    model.tell = lambda told: setattr(model, "gap_s", 30 if told > 1 else 0)
    await place.honest(model)
    async with place.client().stream(HELLO, model="talker") as stream:
        assert await anext(stream) == "Once"


async def test_an_answer_that_is_cut_at_max_tokens_says_so(place: World) -> None:
    await place.honest(teller())
    stream = place.client().stream(HELLO, model="talker", max_tokens=5)
    assert await read(stream) == "".join(tokens_of(STORY)[:5])
    assert (stream.finish, stream.completion_tokens) == ("length", 5)


@pytest.mark.parametrize("seed", range(KILLED))
@pytest.mark.parametrize("pattern", [BLANK_BEFORE, BLANK_AFTER])
async def test_an_answer_is_the_same_however_often_operators_die_in_it(place: World, seed: int, pattern: str) -> None:
    """Each model but one dies at a random token, and again when it has been begun anew; silently, or noisily."""
    draw, count = random.Random(seed), len(tokens_of(STORY, pattern))
    noises = (b"", b"data: {", b'data: {"error": {"message": "engine died"}}\n\n', b"data: [DONE]\n\n", b"\xff\xfe")

    def deadly() -> Callable[[int], bytes | None]:
        deaths = [draw.randint(1, count), draw.randint(1, 6)]
        return lambda told: draw.choice(noises) if deaths and told == deaths[0] and deaths.pop(0) else None

    for _ in range(4):
        limits = LimitsConfig(receipt_tokens=draw.randint(1, 9), receipt_s=60)
        await place.honest(teller(deadly(), pattern=pattern), limits)
    await place.honest(teller(pattern=pattern))
    stream = place.client(passes=3).stream(HELLO, model="talker")
    assert await read(stream) == STORY
    assert stream.finish == "stop"
    async with asyncio.timeout(5):
        while not all(segment.signed in place.kept for segment in stream.segments):
            await asyncio.sleep(0.001)
    if pattern == BLANK_BEFORE:  # else a blank that ends what one delivered is told by the next, too: each is paid
        assert stream.completion_tokens == count
        counted = [segment.signed.receipt.completion_tokens for segment in stream.segments]
        assert counted == [len(tokens_of(segment.text)) for segment in stream.segments]


async def test_an_operator_that_is_killed_is_paid_for_what_it_signed_and_the_next_for_the_rest(place: World) -> None:
    """The whole operator dies here, sidecar and all: what it had not signed for is told anew by the next."""
    first = await place.honest(teller(gap_s=0.001), limits=EAGER)
    second = await place.honest(teller())
    victim = await place.client_that_asks_first(first.account)
    stream = victim.stream(HELLO, model="talker")
    parts = [await anext(stream), await anext(stream)]
    await place.kill(first)
    parts += [text async for text in stream]
    assert "".join(parts) == STORY
    assert [one.signed.receipt.operator for one in stream.segments] == [first.account, second.account]
    assert sum(one.signed.receipt.completion_tokens for one in stream.segments) == len(tokens_of(STORY))
    assert [one.operator for one in stream.attempts] == [first.account]


async def test_a_model_that_falls_silent_is_left_behind(place: World) -> None:
    hung = await place.honest(teller(gap_s=30))
    await place.honest(teller())
    client = await place.client_that_asks_first(hung.account, gap_s=0.1)
    stream = client.stream(HELLO, model="talker")
    assert await read(stream) == STORY
    assert "nothing for 0.1 s" in stream.attempts[0].reason


async def test_a_model_that_is_silent_for_its_sidecar_breaks_the_stream_with_a_receipt(place: World) -> None:
    limits = LimitsConfig(gap_s=0.05, receipt_tokens=50, receipt_s=60)
    model = teller()
    model.tell = lambda told: setattr(model, "gap_s", 30 if told == 6 else 0)
    hung = await place.honest(model, limits)
    await place.honest(teller())
    client = await place.client_that_asks_first(hung.account)
    stream = client.stream(HELLO, model="talker")
    assert await read(stream) == STORY
    assert "silent for 0.05 s" in stream.attempts[0].reason
    assert stream.segments[0].signed.receipt.completion_tokens == 5


async def test_a_reader_that_leaves_stops_the_models_work_and_what_it_got_is_signed_for(place: World) -> None:
    model, told = teller(gap_s=0.002), list[int]()
    model.tell = told.append
    await place.honest(model, LimitsConfig(receipt_tokens=100, receipt_s=60))
    async with place.client().stream(HELLO, model="talker") as stream:
        await anext(stream)
        assert stream.completion_tokens == 1
        async with asyncio.timeout(5):
            while len(told) < 6:
                await asyncio.sleep(0.001)
    async with asyncio.timeout(5):
        while not (model.cut and place.kept):
            await asyncio.sleep(0.001)
    assert 4 <= place.kept[0].receipt.completion_tokens <= len(told) < len(tokens_of(STORY))


@pytest.mark.parametrize("most", [9, 10, 11, 20])
async def test_who_continues_gets_what_is_left_of_max_tokens(place: World, most: int) -> None:
    """The first dies after its tenth token; where that was the last of them, nobody else need be asked."""
    first = await place.honest(teller(lambda told: b"" if told == 11 else None), LimitsConfig(receipt_tokens=1))
    second = teller()
    await place.honest(second)
    client = await place.client_that_asks_first(first.account)
    stream = client.stream(HELLO, model="talker", max_tokens=most)
    assert await read(stream) == "".join(tokens_of(STORY)[:most])
    assert (stream.finish, stream.completion_tokens) == ("length", most)
    assert len(second.asked) == (most > 10)


async def test_json_comes_in_one_piece_and_anew_from_another_operator_where_it_breaks(place: World) -> None:
    broken = await place.honest(ScriptedModel(words=[GOOD[:20]]))
    await place.honest()
    client = await place.client_that_asks_first(broken.account)
    async with client.stream(HELLO, FORM, model="talker") as stream:
        assert [text async for text in stream] == [GOOD]
    assert "no JSON" in stream.attempts[0].reason
    assert stream.finish == "stop"


async def test_who_cannot_be_continued_by_anybody_keeps_what_was_delivered(place: World) -> None:
    await place.honest(teller(lambda told: b"" if told == 9 else None), limits=EAGER)
    stream = place.client(passes=1).stream(HELLO, model="talker")
    with pytest.raises(NoAnswer, match="broke off"):
        await read(stream)
    assert stream.text == "".join(tokens_of(STORY)[:8]).rstrip()


async def test_a_request_that_two_operators_find_fault_with_is_not_taken_to_a_third(place: World) -> None:
    models = [ScriptedModel(status=400) for _ in range(4)]
    for model in models:
        await place.honest(model)
    with pytest.raises(NoAnswer) as caught:
        await read(place.client(refusals=2).stream(HELLO, model="talker"))
    assert sum(len(model.asked) for model in models) == 2
    assert all(isinstance(one.error, Declined) and one.error.blames_request for one in caught.value.attempts)


async def test_a_caller_may_have_its_own_text_continued(place: World) -> None:
    await place.honest(teller(lambda told: b"" if told == 4 else None), limits=EAGER)
    await place.honest(teller())
    asked = {
        "model": "talker",
        "messages": [*HELLO, {"role": "assistant", "content": "Once upon"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    assert await read(place.client().forward_stream(asked, 200)) == STORY.removeprefix("Once upon")


# Operators that lie. Each sends a right stream but for what a test says.


@dataclass
class Told:
    """What a lying operator's stream is made of."""

    honest: Receipt
    tally: Tally
    out: bytearray

    def say(self, text: str, count: int, finish: str | None = None, **changes: Any) -> None:
        usage = {"prompt_tokens": 12, "completion_tokens": count} | changes
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
        data = json.dumps({"choices": [choice], "usage": usage}).encode()
        raw = data_event(data)
        self.tally.chunk(raw, data)
        self.out += raw

    def sign(self, key: int = 20, **changes: Any) -> None:
        counts = {"prompt_tokens": self.tally.prompt_tokens, "completion_tokens": self.tally.completion_tokens}
        receipt = replace(self.honest, answer_hash=self.tally.hash, **counts | changes)
        raw = receipt_event(SignedReceipt(receipt, wallet(key).sign_digest(receipt.digest())))
        self.tally.passed(raw)
        self.out += raw


async def lying(place: World, lie: Callable[[Told], None]) -> None:
    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        who = Authorization.from_header(request.headers[AUTH_HEADER])
        honest = Receipt(
            chain_id=CHAIN_ID,
            registry=REGISTRY,
            operator=wallet(20).address,
            client=who.client,
            model="talker",
            manifest_hash=TALKER.manifest_hash,
            request_hash=hash_of(body),
            answer_hash=hash_of(b""),
            prompt_tokens=0,
            completion_tokens=0,
            issued_at=who.time,
            nonce=who.nonce,
        )
        told = Told(honest, Tally(), bytearray())
        lie(told)
        return web.Response(body=bytes(told.out), content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    server = await place.stack.enter_async_context(TestServer(app))
    place.add(listed(20, str(server.make_url("")).rstrip("/")))


def _unsigned(told: Told) -> None:
    told.say("Lies", 1)


def _by_another(told: Told) -> None:
    told.say("Lies", 1)
    told.sign(key=21)


def _for_other_text(told: Told) -> None:
    told.say("Lies", 1)
    told.out[:] = told.out.replace(b"Lies", b"Lice")
    told.sign()


def _other_count(told: Told) -> None:
    told.say("Lies", 1)
    told.sign(completion_tokens=2)


def _too_many_tokens(told: Told) -> None:
    told.say("Lies", 100_000)
    told.sign()


def _prompt_without_end(told: Told) -> None:
    told.say("Lies", 1, prompt_tokens=10**9)
    told.sign()


def _other_nonce(told: Told) -> None:
    told.say("Lies", 1)
    told.sign(nonce=Hash("0x" + "11" * 32))


def _other_chain(told: Told) -> None:
    told.say("Lies", 1)
    told.sign(chain_id=1)


def _no_json(told: Told) -> None:
    told.out += b"data: {\n\n"


def _no_utf8(told: Told) -> None:
    told.out += b'data: {"choices": [{"delta": {"content": "\xff"}}], "usage": {"prompt_tokens": 1}}\n\n'


def _endless_comments(told: Told) -> None:
    told.out += b": still here\n\n" * 20_000


def _one_long_line(told: Told) -> None:
    told.out += b"data: " + b"x" * 300_000


def _nothing(told: Told) -> None:
    pass


def _done_at_once(told: Told) -> None:
    told.out += data_event(DONE)


def _two_choices(told: Told) -> None:
    one = {"delta": {"content": "Lies"}}
    told.out += data_event(
        json.dumps({"choices": [one, one], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
    )


def _negative(told: Told) -> None:
    told.out += b'data: {"choices": [], "usage": {"prompt_tokens": -1, "completion_tokens": 1}}\n\n'


@pytest.mark.parametrize(
    "lie",
    [
        _unsigned, _by_another, _for_other_text, _other_count, _too_many_tokens, _prompt_without_end, _other_nonce,
        _other_chain, _no_json, _no_utf8, _endless_comments, _one_long_line, _nothing, _done_at_once, _two_choices,
        _negative,
    ],
)  # fmt: skip
async def test_no_word_of_a_liar_is_let_through(place: World, lie: Callable[[Told], None]) -> None:
    await lying(place, lie)
    stream = place.client(passes=1, most_answer_bytes=200_000).stream(HELLO, model="talker")
    with pytest.raises(NoAnswer):
        await read(stream)
    assert stream.segments == []


async def test_an_honest_stream_of_the_same_making_is_let_through(place: World) -> None:
    """The control of the test above."""

    def honest(told: Told) -> None:
        told.say("Tru", 1)
        told.sign()
        told.say("th", 2, "stop")
        told.sign()

    await lying(place, honest)
    assert await read(place.client(passes=1).stream(HELLO, model="talker")) == "Truth"


async def test_what_a_liar_said_truly_stays_and_another_goes_on_from_there(place: World) -> None:
    def turncoat(told: Told) -> None:
        told.say("Once upon", 2)
        told.sign()
        told.say(" Lies", 3)
        told.sign(key=21)

    await lying(place, turncoat)
    await place.honest(teller())
    client = await place.client_that_asks_first(wallet(20).address)
    assert await read(client.stream(HELLO, model="talker")) == STORY


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _all(chunks: AsyncIterator[bytes], most_bytes: int = 1000) -> list[Event]:
    return [event async for event in events(chunks, most_bytes=most_bytes)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_events_are_the_same_however_they_are_cut(size: int) -> None:
    whole = b"data: a\n\n: c\n\r\ndata:b\r\n\r\nevent: x\ndata: c\ndata: d\n\nrest"
    found = await _all(_chunks(*(whole[i : i + size] for i in range(0, len(whole), size))))
    assert [(one.data, one.comment) for one in found] == [(b"a", b""), (b"", b"c"), (b"b", b""), (b"c\nd", b"")]
    assert b"".join(one.raw for one in found) + b"rest" == whole


async def test_a_comment_that_is_no_receipt_is_passed_over_and_a_broken_receipt_is_not() -> None:
    assert receipt_in(Event(b"", b"", b"ping")) is None
    with pytest.raises(Malformed):
        receipt_in(Event(b"", b"", b"quorate-receipt x"))
