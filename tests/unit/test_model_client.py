"""The client counts an answer only with a receipt of a staked operator, whatever an operator tries."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from quorate.errors import Malformed, NoOperator, Refused, TimedOut
from quorate.model import RECEIPT_HEADER, NoAnswer, Receipt, SignedReceipt, hash_of
from quorate.units import Hash, Wei
from tests.model_world import (
    CLIENT,
    EMBEDDER,
    FORM,
    GOOD,
    HELLO,
    TALKER,
    Exchange,
    Lie,
    ScriptedModel,
    World,
    chat_body,
    listed,
    order_of,
    wallet,
    world,
)

MALLORY = wallet(99)


@pytest.fixture
async def place() -> AsyncIterator[World]:
    async with world() as one:
        yield one


@dataclass(frozen=True)
class Summary:
    kind: str
    summary: str


async def test_an_answer_comes_with_its_text_its_value_and_a_receipt_of_the_operator(place: World) -> None:
    operator = await place.honest()
    answer = await place.client().chat(HELLO, FORM, model="talker")
    assert answer.value == {"kind": "payment", "summary": "Pays 10 tokens."}
    assert (answer.text, answer.operator, answer.model) == (GOOD, operator.account, "talker")
    assert answer.receipt.manifest_hash == TALKER.manifest_hash
    assert answer.receipt.client == CLIENT.address
    assert (answer.receipt.prompt_tokens, answer.receipt.completion_tokens) == (12, 7)
    assert SignedReceipt(answer.receipt, answer.signature).signer == operator.key
    assert answer.attempts == ()


async def test_a_dataclass_is_a_schema_too(place: World) -> None:
    await place.honest()
    answer = await place.client().chat(HELLO, Summary, model="talker")
    assert answer.value == Summary("payment", "Pays 10 tokens.")
    assert await place.client().ask("Hello", Summary, model="talker") == answer.value


async def test_a_chat_without_a_schema_gives_its_text(place: World) -> None:
    await place.honest(ScriptedModel(words=["Good day."]))
    answer = await place.client().chat(HELLO, model="talker", seed=5, temperature=0.3, stop=["\n"])
    assert (answer.text, answer.value) == ("Good day.", None)


async def test_what_the_caller_asks_for_reaches_the_model(place: World) -> None:
    model = ScriptedModel(words=["Good day."])
    await place.honest(model)
    await place.client().chat(HELLO, model="talker", seed=5, temperature=0.3, max_tokens=9, stop=["\n"])
    assert model.asked == [
        {"model": "talker", "messages": HELLO, "max_tokens": 9, "temperature": 0.3, "seed": 5, "stop": ["\n"]}
    ]


async def test_embeddings_come_in_order_with_a_receipt(place: World) -> None:
    operator = await place.honest()
    found = await place.client().embed(["a", "b"], "embedder")
    assert found.vectors == ((0.0, 0.5, -0.25), (1.0, 0.5, -0.25))
    assert (found.operator, found.model) == (operator.account, "embedder")
    assert found.receipt.manifest_hash == EMBEDDER.manifest_hash


async def test_questions_spread_over_the_operators(place: World) -> None:
    for _ in range(3):
        await place.honest()
    client = place.client()
    seen = {(await client.chat(HELLO, model="talker")).operator for _ in range(40)}
    assert len(seen) == 3


async def test_the_order_is_drawn_from_the_clients_address_and_the_nonce() -> None:
    accounts = [wallet(number).address for number in range(20, 24)]
    orders = {tuple(order_of(accounts, bytes([draw]) * 32)) for draw in range(64)}
    assert len(orders) > 12
    assert {order[0] for order in orders} == set(accounts)


def _keyed(said: Exchange) -> Exchange:
    return replace(said, key=MALLORY)


def _unsigned(said: Exchange) -> Exchange:
    return replace(said, signed=SignedReceipt(said.receipt, bytes(65)))


def _altered(said: Exchange) -> Exchange:
    return replace(said, body=said.body.replace(b"10 tokens", b"99 tokens"))


def _without_receipt(said: Exchange) -> Exchange:
    return replace(said, headers={RECEIPT_HEADER: ""})


def _other_tokens(said: Exchange) -> Exchange:
    return said.says(completion_tokens=7000)


def _compressed(said: Exchange) -> Exchange:
    return replace(said, headers={"Content-Encoding": "gzip"})


OTHER = Hash("0x" + "cc" * 32)
LIES: dict[str, tuple[Lie, str]] = {
    "another key": (_keyed, "is signed by"),
    "no signature": (_unsigned, "is signed by"),
    "no receipt": (_without_receipt, "cannot be read"),
    "an altered answer": (_altered, "answer_hash"),
    "another answer's hash": (lambda said: said.says(answer_hash=OTHER), "answer_hash"),
    "another request": (lambda said: said.says(request_hash=OTHER), "request_hash"),
    "an old nonce": (lambda said: said.says(nonce=OTHER), "nonce"),
    "another model": (lambda said: said.says(model="embedder"), "model"),
    "another manifest": (lambda said: said.says(manifest_hash=OTHER), "manifest_hash"),
    "another operator": (lambda said: said.says(operator=MALLORY.address), "operator"),
    "another client": (lambda said: said.says(client=MALLORY.address), "client"),
    "another chain": (lambda said: said.says(chain_id=1), "chain_id"),
    "another registry": (lambda said: said.says(registry=MALLORY.address), "registry"),
    "an old date": (lambda said: said.says(issued_at=said.receipt.issued_at - 1000), "dated"),
    "other token counts": (_other_tokens, "tokens"),
    "a redirect": (lambda said: replace(said, status=307, headers={"Location": "/elsewhere"}), "redirects"),
    "an error": (lambda said: replace(said, status=500), "HTTP 500"),
    "a compressed body": (_compressed, "compressed"),
}


@pytest.mark.parametrize("name", LIES)
async def test_a_lie_is_not_counted_its_reason_is_kept_and_the_next_operator_is_asked(place: World, name: str) -> None:
    lie, reason = LIES[name]
    liar = await place.liar(lie)
    honest = await place.honest()
    client = await place.client_that_asks_first(liar.account)
    answer = await client.chat(HELLO, FORM, model="talker")
    assert answer.operator == honest.account
    (attempt,) = answer.attempts
    assert attempt.operator == liar.account
    assert reason in attempt.reason
    assert liar.count == 1


async def test_the_liar_of_these_tests_counts_when_it_does_not_lie(place: World) -> None:
    liar = await place.liar(lambda said: said)
    answer = await place.client().chat(HELLO, FORM, model="talker")
    assert (answer.operator, answer.attempts) == (liar.account, ())


async def test_a_receipt_that_is_replayed_does_not_count_even_for_an_equal_request(place: World) -> None:
    kept: list[SignedReceipt] = []

    def replay(said: Exchange) -> Exchange:
        kept.append(SignedReceipt(said.receipt, said.key.sign_digest(said.receipt.digest())))
        return replace(said, signed=kept[0])

    await place.liar(replay)
    client = place.client()
    await client.chat(HELLO, FORM, model="talker")
    with pytest.raises(NoAnswer) as caught:
        await client.chat(HELLO, FORM, model="talker")
    assert kept[0].receipt.request_hash == kept[1].receipt.request_hash
    assert "nonce" in caught.value.attempts[0].reason


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ('{"kind": "payment"}', "no 'summary'"),
        ('{"kind": "vote for me", "summary": "x"}', "is none of"),
        (json.dumps({"kind": "other", "summary": "x" * 41}), "longer than 40"),
        ('{"kind": "other", "summary": "x", "vote": "for"}', "unknown field 'vote'"),
        ('{"kind": "other", "kind": "payment", "summary": "x"}', "twice"),
        ('{"kind": "other", "summary": "cut sho', "no JSON"),
        ("Sure! Here it is: {}", "no JSON"),
        ("[" * 50_000, "no JSON"),
    ],
)
async def test_an_answer_that_breaks_the_schema_is_not_counted(place: World, words: str, reason: str) -> None:
    model = ScriptedModel(words=[words])
    breaker = await place.honest(model)
    honest = await place.honest()
    client = await place.client_that_asks_first(breaker.account)
    answer = await client.chat(HELLO, FORM, model="talker")
    assert answer.operator == honest.account
    assert isinstance(answer.attempts[0].error, Malformed)
    assert reason in answer.attempts[0].reason


async def test_an_answer_that_was_cut_short_breaks_its_schema(place: World) -> None:
    await place.honest(ScriptedModel(finish="length"))
    with pytest.raises(NoAnswer, match="cut short"):
        await place.client().chat(HELLO, FORM, model="talker")


async def test_a_broken_schema_is_asked_again_with_another_seed_and_then_given_up(place: World) -> None:
    model = ScriptedModel(words=["no", GOOD])
    await place.honest(model)
    answer = await place.client().chat(HELLO, FORM, model="talker", seed=3)
    assert [(one["seed"], one["temperature"]) for one in model.asked] == [(3, 0.0), (4, 0.7)]
    assert len(answer.attempts) == 1

    model.words, model.asked = ["no"], []
    with pytest.raises(NoAnswer) as caught:
        await place.client(passes=3).chat(HELLO, FORM, model="talker")
    assert len(model.asked) == len(caught.value.attempts) == 3


async def test_a_liar_is_asked_once_only(place: World) -> None:
    liar = await place.liar(_keyed)
    with pytest.raises(NoAnswer):
        await place.client(passes=5).chat(HELLO, FORM, model="talker")
    assert liar.count == 1


async def test_a_slow_operator_is_left_behind(place: World) -> None:
    slow = await place.liar(lambda said: said, delay_s=5)
    honest = await place.honest()
    client = await place.client_that_asks_first(slow.account, timeout_s=0.2)
    answer = await client.chat(HELLO, FORM, model="talker")
    assert answer.operator == honest.account
    assert isinstance(answer.attempts[0].error, TimedOut)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:1",  # nobody listens
        "ftp://127.0.0.1/",
        "http://user:secret@127.0.0.1:1",
        "file:///etc/passwd",
        "http://[::1",
        "not an address",
        "",
    ],
)
async def test_a_dead_or_wrong_endpoint_is_passed_over(place: World, endpoint: str) -> None:
    dead = place.add(listed(20, endpoint))
    honest = await place.honest()
    client = await place.client_that_asks_first(dead.account)
    answer = await client.chat(HELLO, FORM, model="talker")
    assert answer.operator == honest.account
    assert isinstance(answer.attempts[0].error, Refused)


async def test_an_oversized_answer_is_cut_off_and_not_counted(place: World) -> None:
    big = await place.liar(lambda said: said, body=chat_body("x" * 200_000))
    honest = await place.honest()
    client = await place.client_that_asks_first(big.account, most_answer_bytes=10_000)
    answer = await client.chat(HELLO, model="talker")
    assert answer.operator == honest.account
    assert "longer than 10000 bytes" in answer.attempts[0].reason


@pytest.mark.parametrize(("changes", "reason"), [({"paused": True}, "paused"), ({"stake": Wei(0)}, "no stake")])
async def test_an_operator_that_is_not_active_is_never_asked(
    place: World, changes: dict[str, Any], reason: str
) -> None:
    model = ScriptedModel()
    await place.honest(model, **changes)
    with pytest.raises(NoAnswer) as caught:
        await place.client().chat(HELLO, model="talker")
    assert model.asked == []
    assert reason in caught.value.attempts[0].reason


async def test_an_operator_that_is_not_in_the_registry_is_never_asked(place: World) -> None:
    model = ScriptedModel()
    await place.honest(model)
    place.registry.listed.clear()
    with pytest.raises(NoOperator, match="serves the model 'talker'") as caught:
        await place.client().chat(HELLO, model="talker")
    assert model.asked == []
    assert caught.value.fix


async def test_the_registered_key_counts_not_the_account(place: World) -> None:
    await place.honest(key=MALLORY.address)
    with pytest.raises(NoAnswer, match="its registered key is"):
        await place.client().chat(HELLO, model="talker")


async def test_only_operators_of_the_model_are_asked(place: World) -> None:
    other = ScriptedModel()
    await place.honest(other, models=(EMBEDDER,))
    served = await place.honest()
    client = place.client()
    assert {(await client.chat(HELLO, model="talker")).operator for _ in range(8)} == {served.account}
    assert other.asked == []


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
        [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}],
        [{"index": 0, "embedding": ["x"]}, {"index": 1, "embedding": [1.0]}],
    ],
)
async def test_vectors_that_do_not_fit_the_texts_are_not_counted(place: World, rows: list[dict[str, Any]]) -> None:
    body = json.dumps({"data": rows, "usage": {"prompt_tokens": 12, "completion_tokens": 7}}).encode()
    await place.liar(lambda said: said, body=body)
    with pytest.raises(NoAnswer):
        await place.client(passes=1).embed(["a", "b"], "embedder")


async def test_nan_in_a_vector_is_not_counted(place: World) -> None:
    rows = '[{"index": 0, "embedding": [NaN]}]'
    body = f'{{"data": {rows}, "usage": {{"prompt_tokens": 12, "completion_tokens": 7}}}}'.encode()
    await place.liar(lambda said: said, body=body)
    with pytest.raises(NoAnswer, match="NaN"):
        await place.client(passes=1).embed(["a"], "embedder")


async def test_every_reason_is_told_when_nobody_answers(place: World) -> None:
    liar = await place.liar(_keyed)
    dead = place.add(listed(50, "http://127.0.0.1:1"))
    with pytest.raises(NoAnswer) as caught:
        await place.client().chat(HELLO, model="talker")
    assert {one.operator for one in caught.value.attempts} == {liar.account, dead.account}
    assert all(one.reason in str(caught.value) for one in caught.value.attempts)


async def test_an_operators_own_words_in_a_reason_are_short_and_escaped(place: World) -> None:
    await place.liar(lambda said: replace(said, status=500, body=b"\x1b[31mred\n" + b"x" * 5000))
    with pytest.raises(NoAnswer) as caught:
        await place.client().chat(HELLO, model="talker")
    reason = caught.value.attempts[0].reason
    assert "\x1b" not in reason
    assert "\n" not in reason
    assert len(reason) < 300


def test_a_receipt_survives_its_header() -> None:
    receipt = Receipt(
        chain_id=1,
        registry=MALLORY.address,
        operator=CLIENT.address,
        client=MALLORY.address,
        model="mödel",
        manifest_hash=OTHER,
        request_hash=hash_of(b"a"),
        answer_hash=hash_of(b"b"),
        prompt_tokens=1,
        completion_tokens=2,
        issued_at=3,
        nonce=OTHER,
    )
    signed = SignedReceipt(receipt, CLIENT.sign_digest(receipt.digest()))
    assert SignedReceipt.from_header(signed.header()) == signed
    assert signed.signer == CLIENT.address


@pytest.mark.parametrize(
    "header", ["", "e30=", "?", "bnVsbA==", "eyJyZWNlaXB0Ijp7fSwic2lnbmF0dXJlIjoiMHgifQ==", "A" * 5000]
)
def test_a_header_that_is_no_receipt_is_malformed(header: str) -> None:
    with pytest.raises(Malformed):
        SignedReceipt.from_header(header)
