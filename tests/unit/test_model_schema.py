"""A schema is held to the letter, by code that refuses what it does not understand."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from quorate.errors import ConfigError, Malformed
from quorate.model import Schema, parse_json

LEAF: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 10}


class Estimate(BaseModel):
    probability: int = Field(ge=0, le=10_000)
    kind: Literal["yes", "no"]


@dataclass(frozen=True)
class Item:
    name: str


@dataclass(frozen=True)
class Box:
    items: list[Item]
    note: str | None = None


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (LEAF, ["0", "10"], ["-1", "11", "1.0", "true", '"1"', "null", "1e999", "NaN", "Infinity", "", "1 2", "01"]),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, ["0.5"], ["0", "1", '"0.5"']),
        ({"type": "string", "minLength": 1, "maxLength": 2, "pattern": "^a"}, ['"a"'], ['""', '"abc"', '"b"', "1"]),
        ({"enum": ["a", 1]}, ['"a"', "1"], ["true", '"b"', "2"]),
        ({"const": 1}, ["1"], ["true", "2"]),
        ({"type": ["string", "null"]}, ['"x"', "null"], ["1"]),
        ({"anyOf": [LEAF, {"type": "null"}]}, ["3", "null"], ["11", '"x"']),
        ({"type": "array", "items": LEAF, "minItems": 1, "maxItems": 2}, ["[1]", "[1,2]"], ["[]", "[1,2,3]", "[11]"]),
        ({"type": "object", "properties": {"a": LEAF}, "required": ["a"]}, ['{"a":1,"b":2}'], ["{}", '{"a":11}', "[]"]),
        ({"type": "object", "additionalProperties": LEAF}, ["{}", '{"x":1}'], ['{"x":11}', '{"x":1,"x":1}']),
        ({"$ref": "#/$defs/n", "$defs": {"n": LEAF}}, ["1"], ["11"]),
    ],
)
def test_a_json_schema_takes_what_fits_and_nothing_else(schema: Any, good: list[str], bad: list[str]) -> None:
    form: Schema[Any] = Schema.of(schema)
    for text in good:
        assert form.parse(text) == json.loads(text)
    for text in bad:
        with pytest.raises(Malformed):
            form.parse(text)


def test_a_pydantic_model_and_a_dataclass_come_as_themselves() -> None:
    assert Schema.of(Estimate).parse('{"probability": 5, "kind": "no"}') == Estimate(probability=5, kind="no")
    assert Schema.of(Box).parse('{"items": [{"name": "a"}]}') == Box([Item("a")])
    for text in ('{"probability": 10001, "kind": "no"}', '{"probability": 5, "kind": "maybe"}', '{"probability": 5}'):
        with pytest.raises(Malformed):
            Schema.of(Estimate).parse(text)


@pytest.mark.parametrize(
    "schema", [{"type": "integer", "multipleOf": 2}, {"oneOf": []}, {"type": "date"}, {"$ref": "#/$defs/none"}]
)
def test_a_schema_that_we_would_not_check_is_refused_when_it_is_made(schema: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Schema.of(schema)


def test_the_form_asked_of_the_model_is_the_schema_itself() -> None:
    form: Schema[Any] = Schema.of(LEAF | {"title": "A number!"})
    asked = form.response_format()["json_schema"]
    assert (asked["name"], asked["schema"], asked["strict"]) == ("A_number_", LEAF | {"title": "A number!"}, True)


@given(st.text(max_size=60))
def test_no_text_makes_the_parser_fail_otherwise_than_by_malformed(text: str) -> None:
    with contextlib.suppress(Malformed):
        parse_json(text, "the answer")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_whatever_json_holds_a_schema_survives_it(value: Any) -> None:
    form: Schema[Any] = Schema.of(
        {"anyOf": [{"type": t} for t in ("null", "boolean", "integer", "string", "array", "object")]}
    )
    assert form.parse(json.dumps(value)) == value
