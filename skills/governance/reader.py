"""The reader: a language model that words a summary of hostile text. It has no tools, no secrets and no weight."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from quorate.model import ModelClient
from quorate.model.langchain import ChatQuorate
from quorate.signatures import keccak
from quorate.units import Address, Hash

from .words import one_line

__all__ = ["NO_SUMMARY", "Summary", "read_aloud", "receipt_file"]

_LONGEST = 160
_SCHEMA: dict[str, Any] = {
    "title": "summary",
    "type": "object",
    "properties": {"summary": {"type": "string", "minLength": 10, "maxLength": _LONGEST}},
    "required": ["summary"],
    "additionalProperties": False,
}
_EXAMPLES = (
    (
        "# Pay the auditors\n\nAn independent team reviewed the bridge in March. The treasury pays them 500 QRT.",
        "The treasury pays 500 QRT to auditors for reviewing the bridge in March.",
    ),
    (
        "# Raise the quorum\n\nToo few members decide today. The quorum is raised from 4 to 6 percent.",
        "The quorum is raised from 4 to 6 percent because too few members decide.",
    ),
)
"""A small model follows examples; an instruction alone it repeats."""


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
    receipt_file: bytes
    """The receipt and its signature, to be kept as evidence."""


NO_SUMMARY = Summary("", "", Address(""), None, None, 0, (), b"")


async def read_aloud(client: ModelClient, model: str, description: str) -> Summary:
    """A summary of at most 160 characters; `ModelError` where no operator gave one that counts."""
    chat = ChatQuorate(client=client, model=model, max_tokens=96, temperature=0.0)
    began = time.monotonic()
    answer = await chat.with_structured_output(_SCHEMA, include_raw=True).ainvoke(_messages(description[:600]))
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
        receipt_file=receipt_file(about["receipt"], bytes.fromhex(about["receipt_signature"][2:])),
    )


def receipt_file(receipt: Mapping[str, Any], signature: bytes) -> bytes:
    """What proves later who gave an answer: the receipt's fields and the operator's signature, as canonical JSON."""
    signed = {"receipt": dict(receipt), "signature": "0x" + signature.hex()}
    return (json.dumps(signed, sort_keys=True, indent=1) + "\n").encode()


def _messages(text: str) -> list[BaseMessage]:
    messages: list[BaseMessage] = [SystemMessage("You summarise proposals in one plain sentence, as JSON.")]
    for example, summary in _EXAMPLES:
        messages += [HumanMessage(example), AIMessage(json.dumps({"summary": summary}))]
    return [*messages, HumanMessage(text)]
