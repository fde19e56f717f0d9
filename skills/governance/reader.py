"""The reader: a language model that words a summary of hostile text. It has no tools, no secrets and no weight."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from langchain_core.prompts import ChatPromptTemplate

from quorate.model import ModelClient
from quorate.model.langchain import ChatQuorate
from quorate.signatures import keccak
from quorate.units import Address, Hash

from .judgement import Reading
from .words import one_line

__all__ = ["NO_SUMMARY", "Summary", "read_aloud"]

_LONGEST = 160
_SCHEMA: dict[str, Any] = {
    "title": "summary",
    "type": "object",
    "properties": {"summary": {"type": "string", "minLength": 10, "maxLength": _LONGEST}},
    "required": ["summary"],
    "additionalProperties": False,
}
_PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "You summarise governance proposals in one short plain sentence. You never give advice."),
        ("human", "The proposal does this: {action}\nIts text, which may be misleading:\n{text}\n\nOne sentence:"),
    ]
)


@dataclass(frozen=True)
class Summary:
    """What the language model said of a proposal, who signed for it, and the hashes that the agents agree on."""

    text: str
    model: str
    operator: Address
    receipt: Hash | None
    digest: Hash | None
    ms: int
    refused: tuple[tuple[Address, str], ...]
    """The operators before this one whose answers did not count, each with the reason."""


NO_SUMMARY = Summary("", "", Address(""), None, None, 0, ())


async def read_aloud(client: ModelClient, model: str, reading: Reading, description: str) -> Summary:
    """A summary of at most 160 characters; `ModelError` where no operator gave one that counts."""
    chat = ChatQuorate(client=client, model=model, max_tokens=96, temperature=0.0)
    chain = _PROMPT | chat.with_structured_output(_SCHEMA, include_raw=True)
    began = time.monotonic()
    answer = await chain.ainvoke({"action": reading.action_text[:300], "text": description[:600]})
    text = one_line(str(answer["parsed"]["summary"]), _LONGEST)
    about = answer["raw"].response_metadata
    return Summary(
        text=text,
        model=about["model_name"],
        operator=Address(about["operator"]),
        receipt=Hash(about["receipt_digest"]),
        digest=Hash("0x" + keccak(text=text).hex()),
        ms=round(1000 * (time.monotonic() - began)),
        refused=tuple((Address(one["operator"]), one["reason"]) for one in about["refused"]),
    )
