"""The form that an answer must have: a type, or a JSON schema of the part of the language that a model can be held to.

A model's answer is hostile text. It counts only if it is JSON without duplicate keys, NaN or trailing words, and holds
the schema to the letter; nothing is guessed or repaired. A schema that uses a keyword we do not check is refused when
it is made, never ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from quorate.errors import ConfigError, Malformed
from quorate.nesting import load_json

__all__ = ["Schema", "parse_json"]

T = TypeVar("T")
_SHOWN = 120  # characters of a faulty answer in a message
_DIGITS = 308  # of an integer: they fit into 1024 bits, which agents can agree on

_NOTES = frozenset({"title", "description", "default", "examples", "$defs", "$ref"})
_TYPES: Mapping[str, Callable[[object], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def parse_json(text: str | bytes, what: str) -> Any:
    """The JSON value in `text`, without duplicate keys or NaN; raises Malformed."""
    try:
        return load_json(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_bounded
        )
    except ValueError as error:
        shown = text if isinstance(text, str) else text.decode(errors="replace")
        raise Malformed(f"{what} is no JSON ({error}): {shown[:_SHOWN]!r}") from None


class Schema(Generic[T]):
    """A form with a name; `json_schema` is what the operator is asked to hold."""

    def __init__(self, name: str, json_schema: Mapping[str, Any], convert: Callable[[Any], T]) -> None:
        self.name = name
        self.json_schema = dict(json_schema)
        self._convert = convert
        _refuse_unknown(self.json_schema, self.json_schema)

    @classmethod
    def of(cls, form: type[T] | Mapping[str, Any] | Schema[T]) -> Schema[T]:
        """The schema of a dataclass or pydantic model, of a JSON schema, or the schema itself."""
        if isinstance(form, Schema):
            return form
        if isinstance(form, Mapping):
            return cls(_name(str(form.get("title", "answer"))), form, lambda value: value)
        adapter = TypeAdapter(form)
        return cls(_name(form.__name__), adapter.json_schema(), lambda value: _validated(adapter, value))

    def parse(self, text: str) -> T:
        """The value that a model's answer stands for; raises Malformed where it breaks the schema."""
        value = parse_json(text, "the answer")
        if problem := _problem(value, self.json_schema, self.json_schema, "the answer"):
            raise Malformed(f"the answer breaks its schema: {problem}")
        return self._convert(value)

    def response_format(self) -> dict[str, Any]:
        """`response_format` of the OpenAI API."""
        return {"type": "json_schema", "json_schema": {"name": self.name, "schema": self.json_schema, "strict": True}}


def _validated(adapter: TypeAdapter[T], value: Any) -> T:
    try:
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:  # its own rules, beyond the JSON schema
        raise Malformed(f"the answer breaks its schema: {error.errors()[0]['msg']}") from None


def _name(title: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", title)[:64] or "answer"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _bounded(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"{text[:20]}... has {len(text)} digits; nobody can agree on more than {_DIGITS}")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large")
    return value


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a `$ref` into the root's `$defs` means, or the schema itself."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    target = root.get("$defs", {}).get(str(reference).removeprefix("#/$defs/"))
    if target is None:
        raise ConfigError(f"the schema refers to {reference!r}, which its $defs do not hold")
    found: Mapping[str, Any] = target
    return found


Check = Callable[[Any, Any], str | None]
"""(value, the keyword's argument) -> what is wrong, or None."""


def _string(holds: Callable[[str, Any], bool], words: str) -> Check:
    return lambda value, limit: words.format(limit) if isinstance(value, str) and not holds(value, limit) else None


def _number(holds: Callable[[float, Any], bool], words: str) -> Check:
    return lambda value, limit: words.format(limit) if type(value) in (int, float) and not holds(value, limit) else None


def _items(holds: Callable[[int, int], bool], words: str) -> Check:
    return lambda value, limit: (
        words.format(limit) if isinstance(value, list) and not holds(len(value), limit) else None
    )


_CHECKS: Mapping[str, Check] = {
    "enum": lambda value, options: None if any(_same(value, one) for one in options) else f"is none of {options}",
    "const": lambda value, constant: None if _same(value, constant) else f"is not {constant!r}",
    "minLength": _string(lambda text, limit: len(text) >= limit, "is shorter than {} characters"),
    "maxLength": _string(lambda text, limit: len(text) <= limit, "is longer than {} characters"),
    "pattern": _string(lambda text, pattern: re.search(pattern, text) is not None, "does not match {!r}"),
    "minimum": _number(lambda number, limit: number >= limit, "is below {}"),
    "maximum": _number(lambda number, limit: number <= limit, "is above {}"),
    "exclusiveMinimum": _number(lambda number, limit: number > limit, "is not above {}"),
    "exclusiveMaximum": _number(lambda number, limit: number < limit, "is not below {}"),
    "minItems": _items(lambda length, limit: length >= limit, "has fewer than {} items"),
    "maxItems": _items(lambda length, limit: length <= limit, "has more than {} items"),
}
_NESTED = frozenset({"type", "properties", "required", "additionalProperties", "items", "anyOf"})


def _same(value: object, other: object) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)  # JSON's true is not 1


def _refuse_unknown(schema: Mapping[str, Any], root: Mapping[str, Any]) -> None:
    for keyword in schema:
        if keyword not in _NOTES and keyword not in _NESTED and keyword not in _CHECKS:
            known = ", ".join(sorted({*_NESTED, *_CHECKS}))
            raise ConfigError(f"the schema's keyword {keyword!r} is not checked here", fix=f"use only: {known}")
    kinds = schema.get("type", ())
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind not in _TYPES:
            raise ConfigError(f"the schema's type {kind!r} is none of {', '.join(_TYPES)}")
    _resolved(schema, root)
    inner = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values(), *schema.get("anyOf", ())]
    inner += [schema[name] for name in ("items", "additionalProperties") if isinstance(schema.get(name), Mapping)]
    for one in inner:
        _refuse_unknown(one, root)


def _problem(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> str | None:
    """What is wrong with `value`, in words that begin with its place; None if it holds the schema."""
    if "$ref" in schema:
        return _problem(value, _resolved(schema, root), root, where)
    kinds = schema.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if kinds and not any(_TYPES[kind](value) for kind in kinds):
        return f"{where} is no {' or '.join(kinds)}"
    for keyword, argument in schema.items():
        if keyword in _CHECKS and (problem := _CHECKS[keyword](value, argument)):
            return f"{where} {problem}"
    options = schema.get("anyOf")
    if options and all(_problem(value, option, root, where) for option in options):
        return f"{where} fits none of its {len(options)} forms"
    if isinstance(value, dict):
        return _object_problem(value, schema, root, where)
    if isinstance(value, list) and "items" in schema:
        found = (_problem(item, schema["items"], root, f"{where}[{i}]") for i, item in enumerate(value))
        return next((problem for problem in found if problem), None)
    return None


def _object_problem(
    value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], where: str
) -> str | None:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            return f"{where} has no {name!r}"
    others = schema.get("additionalProperties", True)
    for name, item in value.items():
        inner = properties.get(name, others)
        if inner is False:
            return f"{where} has the unknown field {name[:_SHOWN]!r}"
        if isinstance(inner, Mapping) and (problem := _problem(item, inner, root, f"{where}.{name}")):
            return problem
    return None
