"""The two real models behind a real operator, asked by the real client: answers, receipts, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from langchain_core.prompts import ChatPromptTemplate

from quorate.localnet.processes import Child
from quorate.model import Limits, ModelClient, NoAnswer
from quorate.model.langchain import ChatQuorate
from quorate.operator import ModelServer, ServedModel, ServerEnded, hash_folder
from tests.integration.operator_process import OPERATOR, Ground, ground
from tests.model_world import CLIENT

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

MODELS = Path(os.environ.get("QUORATE_MODELS", "/nowhere"))
PYTHON = Path(os.environ.get("QUORATE_MODEL_PYTHON", "/nowhere"))
TALKER, EMBEDDER = "smollm2-135m-instruct", "minilm"
PROPOSAL = (
    "Pay 10 QRT from the treasury to 0x70997970C51812dc3A010C7d01b50e0d17dc79C8 for the audit of the Governor contract."
)
SUMMARY = {
    "title": "summary",
    "type": "object",
    "properties": {
        "kind": {"enum": ["payment", "rights", "settings", "other"]},
        "summary": {"type": "string", "minLength": 10, "maxLength": 200},
    },
    "required": ["kind", "summary"],
    "additionalProperties": False,
}

if not (MODELS.is_dir() and PYTHON.exists()):
    pytest.skip(
        "QUORATE_MODELS and QUORATE_MODEL_PYTHON name no models; ./quorate test sets them", allow_module_level=True
    )


@dataclass
class Running:
    place: Ground
    child: Child
    client: ModelClient


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with ground(tmp_path_factory.mktemp("vllm")) as place:
        models = [
            {"name": TALKER, "task": "chat", "folder": str(MODELS / TALKER)},
            {"name": EMBEDDER, "task": "embedding", "folder": str(MODELS / EMBEDDER)},
        ]
        child, _ = await place.ready(place.config(models, model_python=str(PYTHON)))
        async with ModelClient(place.registry, CLIENT, limits=Limits(timeout_s=120)) as client:
            yield Running(place, child, client)


async def test_the_language_model_words_a_summary_that_holds_its_schema(running: Running) -> None:
    prompt = ChatPromptTemplate.from_messages(
        [("system", "You summarise governance proposals in one plain sentence."), ("human", "{proposal}")]
    )
    chat = ChatQuorate(client=running.client, model=TALKER, max_tokens=160, seed=1)
    said = await (prompt | chat.with_structured_output(SUMMARY, include_raw=True)).ainvoke({"proposal": PROPOSAL})
    assert 10 <= len(said["parsed"]["summary"]) <= 200
    about = said["raw"].response_metadata
    assert about["operator"] == OPERATOR.address
    assert about["receipt"]["manifest_hash"] == hash_folder(MODELS / TALKER)
    assert about["receipt"]["completion_tokens"] > 0


async def test_the_same_question_has_the_same_answer(running: Running) -> None:
    asked = [{"role": "user", "content": "Name a colour."}]
    words = {(await running.client.chat(asked, model=TALKER, max_tokens=8, seed=4)).text for _ in range(2)}
    assert len(words) == 1


async def test_a_stream_is_the_whole_answer_and_what_is_continued_fits_on(running: Running) -> None:
    """vLLM's own counts, finish and continuing: the second half is asked for as another operator would be asked."""
    asked = [{"role": "user", "content": "Tell me in two sentences what a quorum is."}]
    whole = await running.client.chat(asked, model=TALKER, max_tokens=40)
    async with running.client.stream(asked, model=TALKER, max_tokens=40) as stream:
        parts = [text async for text in stream]
    assert "".join(parts) == whole.text
    assert len(parts) > 1
    assert (stream.prompt_tokens, stream.completion_tokens) == (
        whole.receipt.prompt_tokens,
        whole.receipt.completion_tokens,
    )
    half = "".join(parts[: len(parts) // 2])
    body = {
        "model": TALKER,
        "messages": [*asked, {"role": "assistant", "content": half}],
        "temperature": 0.0,
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    async with running.client.forward_stream(body, 60) as rest:
        assert (half + "".join([text async for text in rest])).startswith(whole.text)


async def test_a_summary_that_is_cut_short_is_never_counted(running: Running) -> None:
    asked = [{"role": "user", "content": PROPOSAL}]
    with pytest.raises(NoAnswer, match="cut short") as caught:
        await running.client.chat(asked, SUMMARY, model=TALKER, max_tokens=8)
    assert len(caught.value.attempts) == 2


async def test_the_embeddings_find_what_is_near(running: Running) -> None:
    """Right weights, tokenizer and pooling; how well the policy is told apart is an evaluation's matter."""
    texts = ["A cat sits on the mat.", "A kitten lies on a rug.", "Interest rates rose in June."]
    found = await running.client.embed(texts, EMBEDDER)
    cat, kitten, rates = found.vectors
    assert len(cat) == 384
    assert _cosine(cat, kitten) > _cosine(cat, rates) + 0.3
    assert found.receipt.prompt_tokens > 10


async def test_what_does_not_fit_the_model_is_refused_in_words(running: Running) -> None:
    with pytest.raises(NoAnswer, match="HTTP 400"):
        await running.client.embed(["word " * 2000], EMBEDDER)


async def test_the_models_die_with_an_operator_that_is_killed(running: Running) -> None:
    """The last test of this operator. Its servers and their engines are not its children, but die all the same."""
    assert len(running.child.usage()) >= 6
    os.kill(running.child.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while running.child.usage():
            await asyncio.sleep(0.05)


async def test_a_model_that_cannot_be_loaded_is_told_from_its_log(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "nothing"}')
    broken = ServedModel(name="broken", folder=folder, task="chat", max_length=256)
    async with ModelServer(PYTHON, [broken], tmp_path / "logs") as server:
        with pytest.raises(ServerEnded, match=r"ended by itself: .*rror") as caught:
            await server.ready(120)
    assert str(tmp_path / "logs") in caught.value.fix


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
