"""langchain's classes over the client: the same answers, and who signed for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate

from quorate.model import NoAnswer
from quorate.model.langchain import ChatQuorate, QuorateEmbeddings
from tests.model_world import FORM, GOOD, ScriptedModel, World, world


@pytest.fixture
async def place() -> AsyncIterator[World]:
    async with world() as one:
        yield one


@dataclass(frozen=True)
class Summary:
    kind: str
    summary: str


async def test_a_message_says_which_operator_signed_for_it(place: World) -> None:
    model = ScriptedModel(words=["Good day."])
    operator = await place.honest(model)
    chat = ChatQuorate(client=place.client(), model="talker", max_tokens=20, temperature=0.5, seed=9)
    message = await chat.ainvoke([SystemMessage("Be kind."), HumanMessage("Hello")])
    assert message.content == "Good day."
    about = message.response_metadata
    assert (about["operator"], about["model_name"], about["refused"]) == (operator.account, "talker", [])
    assert about["receipt"]["operator"] == operator.account
    assert len(about["receipt_digest"]) == 66
    assert message.usage_metadata == {"input_tokens": 12, "output_tokens": 7, "total_tokens": 19}
    (asked,) = model.asked
    assert asked["messages"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    assert (asked["max_tokens"], asked["temperature"], asked["seed"]) == (20, 0.5, 9)


async def test_structured_output_comes_parsed_in_a_chain(place: World) -> None:
    model = ScriptedModel()
    operator = await place.honest(model)
    prompt = ChatPromptTemplate.from_messages([("human", "Say {what}")])
    chat = ChatQuorate(client=place.client(), model="talker")
    assert await (prompt | chat.with_structured_output(Summary)).ainvoke({"what": "it"}) == Summary(
        "payment", "Pays 10 tokens."
    )
    both = await (prompt | chat.with_structured_output(FORM, include_raw=True)).ainvoke({"what": "it"})
    assert both["parsed"] == {"kind": "payment", "summary": "Pays 10 tokens."}
    assert (both["raw"].content, both["parsing_error"]) == (GOOD, None)
    assert both["raw"].response_metadata["operator"] == operator.account
    assert model.asked[0]["response_format"]["type"] == "json_schema"


async def test_structured_output_that_nobody_gives_is_an_error(place: World) -> None:
    await place.honest(ScriptedModel(words=["no"]))
    chat = ChatQuorate(client=place.client(), model="talker").with_structured_output(FORM, include_raw=True)
    with pytest.raises(NoAnswer, match="no JSON"):
        await chat.ainvoke("Hello")


async def test_embeddings_are_langchains(place: World) -> None:
    await place.honest()
    embeddings = QuorateEmbeddings(place.client(), "embedder")
    assert await embeddings.aembed_documents(["a", "b"]) == [[0.0, 0.5, -0.25], [1.0, 0.5, -0.25]]
    assert await embeddings.aembed_query("a") == [0.0, 0.5, -0.25]
    assert await embeddings.aembed_documents([]) == []


def test_a_synchronous_call_says_what_to_use() -> None:
    place = World.__new__(World)  # no operator is reached
    chat = ChatQuorate.model_construct(client=place, model="talker")
    with pytest.raises(NotImplementedError, match="ainvoke"):
        chat.invoke("Hello")
