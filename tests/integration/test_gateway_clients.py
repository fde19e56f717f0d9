"""Clients that others wrote talk to the gateway unchanged: OpenAI's package and LangChain's over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

from quorate.operator import LimitsConfig
from tests.gateway_world import Front, front
from tests.model_world import GOOD, ScriptedModel

pytestmark = pytest.mark.integration

STORY = "Once upon a time, an agent asked a model. It was told: wait, and see."


class Summary(BaseModel):
    kind: str
    summary: str


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Front]:
    async with front(tmp_path) as one:
        await one.place.honest(ScriptedModel(words=[GOOD], story=STORY))
        yield one


@pytest.fixture
async def client(gate: Front) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=gate.url, api_key=gate.key, max_retries=0) as one:
        yield one


async def test_openai_chats_and_finds_the_receipt(gate: Front, client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model="talker", messages=[{"role": "user", "content": "Hello"}]
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == GOOD
    assert answer._request_id is not None
    assert (await gate.get(f"/receipts/{answer._request_id}")).json["data"][0]["header"] == raw.headers[
        "x-quorate-receipt"
    ]


async def test_openai_streams_over_the_death_of_an_operator(gate: Front, client: openai.AsyncOpenAI) -> None:
    for death in (4, 9, 13):
        dying = ScriptedModel(story=STORY, tell=lambda n, death=death: b"" if n == death else None)  # type: ignore[misc]
        await gate.place.honest(dying, LimitsConfig(receipt_tokens=2))
    for _ in range(5):
        stream = await client.chat.completions.create(
            model="talker",
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == STORY
        assert chunks[-1].usage is not None


async def test_openai_parses_an_answer_that_holds_a_schema(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(
        model="talker", messages=[{"role": "user", "content": "Hello"}], response_format=Summary
    )
    assert answer.choices[0].message.parsed == Summary.model_validate_json(GOOD)


async def test_openai_embeds_and_lists_models(client: openai.AsyncOpenAI) -> None:
    found = await client.embeddings.create(model="embedder", input=["a", "b"])
    assert [row.embedding for row in found.data] == [[0.0, 0.5, -0.25], [1.0, 0.5, -0.25]]
    assert [model.id async for model in client.models.list()] == ["embedder", "talker"]
    assert (await client.models.retrieve("talker")).id == "talker"


async def test_openai_raises_its_own_errors(gate: Front, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "Hello"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(model="talker", messages=[{"role": "user", "content": "Hello"}], n=2)
    assert wrong.value.param == "n"
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="qk-no").models.list()
    key = gate.keys.make("poor", most_tokens=1)
    poor = client.with_options(api_key=key)
    await poor.chat.completions.create(model="talker", messages=[{"role": "user", "content": "Hello"}])
    with pytest.raises(openai.RateLimitError) as spent:
        await poor.chat.completions.create(model="talker", messages=[{"role": "user", "content": "Hello"}])
    assert spent.value.code == "budget_spent"


async def test_a_stream_that_breaks_for_good_is_an_error_of_openais(gate: Front, client: openai.AsyncOpenAI) -> None:
    gate.place.registry.listed.clear()
    await gate.place.honest(
        ScriptedModel(story=STORY, tell=lambda n: b"" if n == 5 else None), LimitsConfig(receipt_tokens=1)
    )
    told = ""
    stream = await client.chat.completions.create(
        model="talker", messages=[{"role": "user", "content": "Hello"}], stream=True, max_tokens=8
    )
    await gate.place.kill(gate.place.registry.listed[0])
    with pytest.raises(openai.APIError):
        async for chunk in stream:
            told += chunk.choices[0].delta.content or ""
    assert STORY.startswith(told)


async def test_the_synchronous_client_does_too(gate: Front) -> None:
    def ask() -> str:
        with openai.OpenAI(base_url=gate.url, api_key=gate.key) as client:
            stream = client.chat.completions.create(
                model="talker", messages=[{"role": "user", "content": "Hello"}], stream=True
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    assert await asyncio.to_thread(ask) == STORY


async def test_langchain_chats_streams_structures_and_embeds(gate: Front) -> None:
    chat = ChatOpenAI(model="talker", base_url=gate.url, api_key=SecretStr(gate.key), max_retries=0)
    assert (await chat.ainvoke("Hello")).content == GOOD
    assert "".join([str(chunk.content) async for chunk in chat.astream("Hello")]) == STORY
    said = await chat.with_structured_output(Summary, method="json_schema").ainvoke("Hello")
    assert said == Summary.model_validate_json(GOOD)
    vectors = OpenAIEmbeddings(
        model="embedder", base_url=gate.url, api_key=SecretStr(gate.key), check_embedding_ctx_length=False
    )
    assert await vectors.aembed_documents(["a", "b"]) == [[0.0, 0.5, -0.25], [1.0, 0.5, -0.25]]
