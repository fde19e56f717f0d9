"""The codec is strict: one value, one encoding, and no way for a peer to send anything else."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any, Literal, Optional, Union

import pytest

from quorate import Address, Bps, PeerError, ServiceError
from quorate.fsm import codec


@dataclass(frozen=True)
class Leaf:
    price: Bps
    to: Address | None = None


@dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf, ...]
    pair: tuple[int, str]
    by_name: dict[str, int]
    side: Literal["FOR", "AGAINST", 2]
    sure: bool
    old_style: Optional[str] = None  # noqa: UP045  # users may write it so
    nothing: None = None


TREE = Tree((Leaf(Bps(5)), Leaf(Bps(-7), Address("0xA"))), (1 << 256, "ü€😀\n"), {"b": 1, "a": 2}, "FOR", True)


@dataclass(frozen=True)
class Positive:
    amount: int

    def __post_init__(self) -> None:
        if self.amount <= 0:
            raise ValueError(f"{self.amount} is not positive")


@dataclass(frozen=True)
class Lower:
    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name.lower())


@dataclass(frozen=True)
class Sorted:
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(sorted(self.names)))


@dataclass
class Mutable:
    x: int = 0


@dataclass(frozen=True)
class Derived:
    x: int = dataclasses.field(default=0, init=False)


@dataclass(frozen=True)
class Recursive:
    inner: Recursive | None = None


@dataclass(frozen=True)
class Dangling:
    x: NoSuchName  # type: ignore[name-defined]  # noqa: F821


@dataclass(frozen=True)
class DeepFloat:
    inner: tuple[dict[str, tuple[int, float]], ...] = ()


def test_a_value_comes_back_as_it_was() -> None:
    assert codec.decode(Tree, codec.encode(TREE)) == TREE


def test_the_encoding_is_sorted_compact_utf8_json() -> None:
    assert codec.encode({"b": (1, None), "a": "ü", "c": True}) == '{"a":"ü","b":[1,null],"c":true}'.encode()


def test_a_decoded_dict_iterates_in_key_order_whoever_built_it() -> None:
    assert list(codec.conform(dict[str, int], {"b": 1, "a": 2})) == ["a", "b"]


@pytest.mark.parametrize(
    ("hint", "data", "why"),
    [
        (int, b"1.0", "float"),
        (int, b"1e3", "float"),
        (int, b"NaN", "float"),
        (int, b"-Infinity", "float"),
        (int, b"true", "expected int"),
        (bool, b"1", "expected bool"),
        (int, b'"1"', "expected int"),
        (str, b"1", "expected str"),
        (None, b"0", "expected NoneType"),
        (int, b"-0", "not canonical"),
        (int, b" 1", "not canonical"),
        (str, b'"\\u0061"', "not canonical"),
        (str, b'"\\ud800"', "no valid Unicode"),
        (dict[str, int], b'{"\\ud800":1}', "no valid Unicode"),
        (str, b'"\xff"', "not JSON"),
        (str, b"", "not JSON"),
        (int, b"[1", "not JSON"),
        (int, b"[" * 8000, "nested too deeply"),
        (tuple[int, ...], b"[" * 60 + b"]" * 60, "expected int"),
        (int, b"9" * 311, "at most 1024"),
        (int, str(1 << 1024).encode(), "at most 1024"),
        (dict[str, int], b'{"a":1,"a":1}', "not canonical"),
        (dict[str, int], b'{"b":1,"a":1}', "not canonical"),
        (dict[str, int], b"[]", "expected an object"),
        (tuple[int, ...], b"{}", "expected a list"),
        (tuple[int, str], b"[1]", "list of 2"),
        (tuple[int, str], b"1", "list of 2"),
        (Leaf, b'{"price":1}', r"lacks the fields \['to'\]"),
        (Leaf, b'{"price":1,"to":null,"x":1}', r"unknown fields \['x'\]"),
        (Leaf, b"[1,null]", "expected an object"),
        (Literal[1, "a"], b"true", "one of"),
        (Literal[True], b"1", "one of"),
        (Positive, b'{"amount":0}', "refused by Positive: 0 is not positive"),
        (Lower, b'{"name":"A"}', "Lower changes value.name when it is made"),
    ],
)
def test_whatever_is_not_the_encoding_of_such_a_value_is_refused(hint: Any, data: bytes, why: str) -> None:
    with pytest.raises(PeerError, match=why) as refused:
        codec.decode(hint, data)
    assert refused.value.evidence == data


def test_a_huge_payload_is_shown_shortened() -> None:
    with pytest.raises(PeerError) as refused:
        codec.decode(int, b'"' + b"x" * 8000 + b'"')
    assert len(str(refused.value)) < 500


@pytest.mark.skipif(not hasattr(sys, "set_int_max_str_digits"), reason="this Python has no limit on digits")
def test_the_interpreters_limit_on_digits_changes_nothing() -> None:
    before = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(0)
        with pytest.raises(PeerError, match="at most 1024"):
            codec.decode(int, b"9" * 5000)
    finally:
        sys.set_int_max_str_digits(before)


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        b"x",
        {1, 2},
        {1: 2},
        float("nan"),
        pytest.param(object(), id="an object"),
        Leaf,
        1 << 1024,
        -(1 << 1024),
        "\ud800",
        (1, [0.5]),
        {"a": {"b": 1.0}},
    ],
    ids=repr,
)
def test_what_has_no_canonical_encoding_is_not_encoded(value: object) -> None:
    with pytest.raises(ServiceError, match="value"):
        codec.encode(value)


def test_the_largest_integers_survive() -> None:
    for value in ((1 << 1024) - 1, -(1 << 1024) + 1):
        assert codec.decode(int, codec.encode(value)) == value


@pytest.mark.parametrize(
    ("hint", "why"),
    [
        (float, "floats differ"),
        (tuple[float, ...], "floats differ"),
        (tuple[int, float], "floats differ"),
        (dict[str, float], "floats differ"),
        (float | None, "floats differ"),
        (DeepFloat, r"DeepFloat\.inner: floats differ"),
        (list[int], "list"),
        (set[int], "set"),
        (bytes, "bytes"),
        (tuple, "tuple"),
        (tuple[()], "tuple"),
        (dict, "dict"),
        (dict[int, str], "dict"),
        (int | str, "two meanings"),
        (Union[int, str, None], "two meanings"),  # noqa: UP007  # as users of older Python write it
        (Any, "Any"),
        (object, "object"),
        (Literal[b"x"], "option"),
        (Mutable, "can be changed"),
        (Derived, "init=False"),
        (Recursive, "contains itself"),
        (Dangling, "cannot be resolved"),
    ],
)
def test_a_type_that_cannot_be_agreed_on_is_refused_with_the_place(hint: Any, why: str) -> None:
    with pytest.raises(ServiceError, match=why) as refused:
        codec.require_codable(hint, "estimate (service.py:7): its payload")
    assert str(refused.value).startswith("estimate (service.py:7): its payload: ")


def test_keys_may_carry_a_unit() -> None:
    assert codec.decode(dict[Address, Bps], b'{"0xA":1}') == {"0xA": 1}


def test_a_value_of_another_type_does_not_conform() -> None:
    with pytest.raises(ServiceError, match=r"value\.price is \"5\", expected int"):
        codec.conform(Leaf, Leaf("5"))  # type: ignore[arg-type]
    with pytest.raises(ServiceError, match="is no Bps"):
        codec.conform(Bps, "x")


def test_what_can_be_changed_is_never_shared() -> None:
    """Decoding is remembered, but a rule that writes to its dict must not change what another agent reads."""
    one = codec.decode(dict[str, int], b'{"a":1}')
    one["a"] = 2
    assert codec.decode(dict[str, int], b'{"a":1}') == {"a": 1}
    assert codec.decode(Leaf, b'{"price":1,"to":null}') is codec.decode(Leaf, b'{"price":1,"to":null}')


def test_a_type_that_puts_itself_in_order_is_read_in_that_order_only() -> None:
    assert codec.decode(Sorted, b'{"names":["a","b"]}') == Sorted(("b", "a"))
    with pytest.raises(PeerError, match=r"changes value\.names"):
        codec.decode(Sorted, b'{"names":["b","a"]}')


def test_lists_become_tuples() -> None:
    assert codec.conform(tuple[int, ...], [1, 2]) == (1, 2)  # type: ignore[comparison-overlap]


def test_a_description_changes_with_the_type_and_the_unit() -> None:
    described = [
        codec.describe(hint)
        for hint in (
            int,
            Bps,
            str,
            int | None,
            Optional[Bps],  # noqa: UP045
            tuple[int, ...],
            tuple[int],
            dict[str, int],
            Leaf,
            Tree,
            Literal[1],
            Literal["1"],
        )
    ]
    assert len(set(described)) == len(described)
    assert codec.describe(Leaf) == "Leaf(price: Bps:int, to: Union[Address:str, NoneType])"
