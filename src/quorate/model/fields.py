"""What may be asked of a model: the fields of OpenAI's requests that reach a model server, and the values they take.

Everything else is refused by name, never dropped: no chat template, no image to fetch, no engine option from outside.
Operators hold requests to this, and so does the gateway, which can then tell a caller's mistake from an operator's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

__all__ = ["CHAT", "EMBEDDINGS", "TASKS", "Fault", "Task", "fault_in", "is_structured"]

Task = Literal["chat", "embedding"]
CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
EMBEDDINGS: Literal["/v1/embeddings"] = "/v1/embeddings"
TASKS: Mapping[str, Task] = {CHAT: "chat", EMBEDDINGS: "embedding"}
"""Which kind of model answers a path."""

_Check = Callable[[Any], bool]


class Fault(NamedTuple):
    """What is wrong with a request, and in which of its fields (empty: in none that we know)."""

    message: str
    field: str


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_message(value: object) -> bool:
    """Plain text only: a content part could name an image, which the model server would fetch."""
    return (
        isinstance(value, dict)
        and value.keys() <= {"role", "content", "name"}
        and value.get("role") in ("system", "user", "assistant")
        and isinstance(value.get("content"), str)
        and isinstance(value.get("name", ""), str)
    )


_CHAT_FIELDS: Mapping[str, _Check] = {
    "model": lambda v: isinstance(v, str),
    "messages": lambda v: isinstance(v, list) and 0 < len(v) <= 256 and all(_is_message(one) for one in v),
    "max_tokens": lambda v: type(v) is int and v > 0,
    "max_completion_tokens": lambda v: type(v) is int and v > 0,
    "temperature": lambda v: _is_number(v) and 0 <= v <= 2,
    "top_p": lambda v: _is_number(v) and 0 < v <= 1,
    "seed": lambda v: type(v) is int and 0 <= v < 2**63,
    "stop": lambda v: (
        isinstance(v, str) or (isinstance(v, list) and len(v) <= 8 and all(isinstance(s, str) for s in v))
    ),
    "n": lambda v: v == 1 and type(v) is int,
    "stream": lambda v: isinstance(v, bool),
    "response_format": lambda v: isinstance(v, dict) and v.get("type") in ("text", "json_object", "json_schema"),
    "user": lambda v: isinstance(v, str),
    "continue_final_message": lambda v: v is True,
    "add_generation_prompt": lambda v: v is False,
}
_EMBEDDING_FIELDS: Mapping[str, _Check] = {
    "model": lambda v: isinstance(v, str),
    "input": lambda v: (
        isinstance(v, str) or (isinstance(v, list) and all(isinstance(one, str) for one in v) and v != [])
    ),
    "encoding_format": lambda v: v == "float",
    "user": lambda v: isinstance(v, str),
}


def is_structured(asked: Mapping[str, Any]) -> bool:
    """Whether the answer has to be JSON: such a one is never continued, for a grammar begins anew with each request."""
    return bool(asked.get("response_format", {}).get("type", "text") != "text")


def fault_in(asked: Mapping[str, Any], task: Task) -> Fault | None:
    """The first thing in a request that is unknown, wrong or missing; None where it may go to a model server."""
    known = _CHAT_FIELDS if task == "chat" else _EMBEDDING_FIELDS
    for name, value in asked.items():
        if name not in known:
            return Fault(f"the field {name[:80]!r} is not taken here; these are: {', '.join(known)}", name[:80])
        if not known[name](value):
            return Fault(f"the field {name!r} has a value that is not taken here", name)
    needed = "messages" if task == "chat" else "input"
    if needed not in asked:
        return Fault(f"the request has no {needed!r}", needed)
    continues = "continue_final_message" in asked
    if continues != ("add_generation_prompt" in asked):
        return Fault(
            "continue_final_message and add_generation_prompt are taken together only", "continue_final_message"
        )
    if continues and asked["messages"][-1]["role"] != "assistant":
        return Fault("there is no message of the assistant's to continue: the last is another's", "messages")
    if continues and is_structured(asked):
        return Fault("an answer with a response_format is not continued: ask for it anew", "continue_final_message")
    return None
