"""langchain's classes over `ModelClient`: the agents' way to call models. The only importer of langchain here.

Both are asynchronous only: an agent's loop is never blocked. The message's `response_metadata` says who signed for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from pydantic import ConfigDict

from quorate.model.client import Answer, ModelClient
from quorate.model.schema import Schema

__all__ = ["ChatQuorate", "QuorateEmbeddings"]

_ASYNC_ONLY = "quorate's models are asked asynchronously only: use ainvoke, abatch, aembed_query or aembed_documents"


class ChatQuorate(BaseChatModel):
    """A chat model that staked operators serve.

    `response_metadata` of its messages: `operator`, `model_name`, `receipt` (its fields), `receipt_digest`,
    `receipt_signature` and `refused`, the operators before, each with its reason. Raises `ModelError`s.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    client: ModelClient
    model: str
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0

    @property
    def _llm_type(self) -> str:
        return "quorate"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"model": self.model, "max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        raise NotImplementedError(_ASYNC_ONLY)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        kwargs.pop("ls_structured_output_format", None)  # a note for tracers
        asked = convert_to_openai_messages(messages)
        settings = dict(self._identifying_params) | {"stop": stop or ()} | kwargs
        answer: Answer[Any] = await self.client.chat(asked, **settings)
        return ChatResult(generations=[ChatGeneration(message=_message(answer))])

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """A runnable whose answers hold `schema` (pydantic model, dataclass or JSON schema) and come parsed.

        With `include_raw`: a dict of `raw` (the message, with its receipt), `parsed` and `parsing_error`, always None,
        for the operator's answer counts only if it parses.
        """
        if kwargs:
            raise TypeError(f"with_structured_output takes no {', '.join(kwargs)} here: it is always by JSON schema")
        form: Schema[Any] = Schema.of(schema)
        asked = self.bind(schema=form)
        parse: Runnable[Any, Any] = RunnableLambda(lambda message: form.parse(str(message.content)))
        if not include_raw:
            return asked | parse
        return RunnableMap(raw=asked) | RunnablePassthrough.assign(
            parsed=itemgetter("raw") | parse, parsing_error=lambda _: None
        )


class QuorateEmbeddings(Embeddings):
    """Embeddings that staked operators serve."""

    def __init__(self, client: ModelClient, model: str) -> None:
        self.client = client
        self.model = model

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector for each text."""
        if not texts:
            return []
        return [list(vector) for vector in (await self.client.embed(texts, self.model)).vectors]

    async def aembed_query(self, text: str) -> list[float]:
        """The vector of one text."""
        return (await self.aembed_documents([text]))[0]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Not without a loop: use `aembed_documents`."""
        raise NotImplementedError(_ASYNC_ONLY)

    def embed_query(self, text: str) -> list[float]:
        """Not without a loop: use `aembed_query`."""
        raise NotImplementedError(_ASYNC_ONLY)


def _message(answer: Answer[Any]) -> AIMessage:
    receipt = answer.receipt
    usage = UsageMetadata(
        input_tokens=receipt.prompt_tokens,
        output_tokens=receipt.completion_tokens,
        total_tokens=receipt.prompt_tokens + receipt.completion_tokens,
    )
    about = {
        "model_name": answer.model,
        "operator": answer.operator,
        "receipt": receipt.as_json(),
        "receipt_digest": "0x" + receipt.digest().hex(),
        "receipt_signature": "0x" + answer.signature.hex(),
        "refused": [{"operator": one.operator, "reason": one.reason} for one in answer.attempts],
    }
    return AIMessage(content=answer.text, response_metadata=about, usage_metadata=usage)
