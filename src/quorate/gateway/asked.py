"""A caller's request, as OpenAI's clients send it, made into one that operators take.

What clients send without meaning anything by it (nulls, defaults, texts in parts) is brought into one form; what would
change the answer and is not served is refused by name, never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from quorate.errors import Malformed
from quorate.gateway.errors import ApiError
from quorate.model import parse_json
from quorate.model.fields import Task, fault_in

__all__ = ["Asked"]

_LONGEST_MODEL = 64  # bytes; as in contracts/src/interfaces/IOperatorRegistry.sol
_MEANINGLESS: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "parallel_tool_calls": (True, False),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "metadata": ({},),
}
"""Fields that change nothing where they have these values."""


@dataclass(frozen=True)
class Asked:
    """A request that operators take, and what the caller wants of the answer's form."""

    body: dict[str, Any]
    model: str
    is_stream: bool = False
    wants_usage: bool = False
    """At the end of a stream."""
    encoding: Literal["float", "base64"] = "float"
    """Of embeddings."""

    @classmethod
    def of(cls, raw: bytes, task: Task) -> Asked:
        """Raises ApiError, which names the field."""
        try:
            asked = parse_json(raw, "the request")
        except Malformed as error:
            raise ApiError(400, "invalid_json", error.message) from None
        if not isinstance(asked, dict):
            raise ApiError(400, "invalid_json", "the request is no JSON object")
        body = {name: value for name, value in asked.items() if value is not None and not _is_meaningless(name, value)}
        options = body.pop("stream_options", {})
        if not (isinstance(options, dict) and options.keys() <= {"include_usage", "include_obfuscation"}):
            raise ApiError(400, "invalid_request", "stream_options takes include_usage only", param="stream_options")
        encoding: Literal["float", "base64"] = "float"
        if task == "embedding":
            encoding = "base64" if body.get("encoding_format") == "base64" else "float"
            body |= {"encoding_format": "float"} if body.get("encoding_format") in (None, "base64") else {}
        elif isinstance(body.get("messages"), list):
            body["messages"] = [_message(one) for one in body["messages"]]
        if "model" not in body:
            raise ApiError(400, "invalid_request", "the request has no 'model'", param="model")
        if fault := fault_in(body, task):
            raise ApiError(400, "invalid_request", fault.message, param=fault.field or None)
        model = str(body["model"])
        if not 1 <= len(model.encode()) <= _LONGEST_MODEL:
            raise ApiError(404, "model_not_found", f"no operator serves the model {model[:80]!r}", param="model")
        is_stream = bool(body.pop("stream", False))
        body.pop("user", None)  # whom a caller asks for is no operator's business
        return cls(body, model, is_stream, options.get("include_usage") is True, encoding)

    def max_tokens(self, otherwise: int) -> int:
        """What the request says, or `otherwise`."""
        return int(self.body.get("max_completion_tokens") or self.body.get("max_tokens") or otherwise)


def _is_meaningless(name: str, value: Any) -> bool:
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in _MEANINGLESS.get(name, ()))


def _message(message: Any) -> Any:
    """A message with its text in one piece; anything else is left to be refused."""
    if not isinstance(message, dict):
        return message
    plain = {name: value for name, value in message.items() if value is not None}
    if plain.get("role") == "developer":
        plain["role"] = "system"
    parts = plain.get("content")
    if isinstance(parts, list) and parts and all(_is_text(part) for part in parts):
        plain["content"] = "".join(part["text"] for part in parts)
    return plain


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and part.keys() == {"type", "text"}
        and part["type"] == "text"
        and isinstance(part["text"], str)
    )
