"""What a model's operator answers: the body of a response, and the words in it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from quorate.errors import Malformed
from quorate.fsm import codec
from quorate.model import parse_json
from quorate.model.call import _usage_of, _words_of
from quorate.model.client import _text_of, _vectors_of
from quorate.model.schema import Schema
from tests.fuzz.engine import Target, label_of, mutate_bytes, mutate_json

__all__ = ["Answers"]


@dataclass(frozen=True)
class Opinion:
    support: Literal["FOR", "AGAINST"]
    weight: int
    notes: tuple[str, ...] = ()


_LOOSE: dict[str, Any] = {
    "type": "object",
    "required": ["word"],
    "properties": {"word": {"type": "string", "maxLength": 40, "pattern": "^[a-z]"}, "n": {"minimum": 0, "maximum": 9}},
    "additionalProperties": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"enum": [1, "x", None]}}]},
}


class Answers(Target):
    """`parse_json`, `Schema.parse` and what reads a response: a value that holds its form, or `Malformed`."""

    name = "answers"

    def __init__(self) -> None:
        self._forms: list[Schema[Any]] = [Schema.of(Opinion), Schema.of(_LOOSE)]

    def seeds(self) -> Iterable[bytes]:
        words = json.dumps({"support": "FOR", "weight": 3, "notes": ["a"]})
        for text in (words, '{"word": "yes", "n": 1, "x": [1]}'):
            choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            yield json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}).encode()
        rows = [{"index": index, "embedding": [0.5, -1, 2e-3]} for index in range(2)]
        yield json.dumps({"data": rows, "usage": {"prompt_tokens": 3}}).encode()
        yield b'{"error": {"message": "busy"}}'

    def mutate(self, data: bytes, other: bytes, rng: random.Random) -> bytes:
        """Mostly the JSON: the response's, or that in its words."""
        try:
            value = json.loads(data)
            if rng.random() < 0.4:
                message = value["choices"][0]["message"]
                message["content"] = json.dumps(mutate_json(json.loads(message["content"]), rng))
                return json.dumps(value).encode()
            if rng.random() < 0.7:
                text = json.dumps(mutate_json(value, rng), ensure_ascii=rng.random() < 0.8)
                return text.encode(errors="surrogatepass")
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            pass
        return mutate_bytes(data, other, rng)

    def run(self, data: bytes) -> str:
        assert len(_words_of(data)) < 2_000, "an operator's words are not cut short"
        try:
            value = parse_json(data, "the response")
        except Malformed as error:
            return label_of(error)
        labels = []
        for read in (_text_of_all, _usage_of, lambda raw: _vectors_of(raw, 2), self._parsed):
            try:
                found = read(value)
                labels.append(type(found).__name__)
            except Malformed as error:
                labels.append(label_of(error))
        return " / ".join(labels)

    def _parsed(self, value: Any) -> Any:
        text = _text_of(value, complete=True)
        opinion = _or_none(self._forms[0], text)
        if opinion is not None:
            assert codec.decode(Opinion, codec.encode(opinion)) == opinion, "an answer that cannot be agreed on"
        loose = _or_none(self._forms[1], text)
        assert loose is None or ("word" in loose and len(loose["word"]) <= 40), "a schema that was not held"
        return opinion or loose


def _text_of_all(value: Any) -> str:
    text = _text_of(value, complete=False)
    text.encode()  # whoever carries it on, does so as UTF-8
    return text


def _or_none(form: Schema[Any], text: str) -> Any:
    try:
        return form.parse(text)
    except Malformed:
        return None
