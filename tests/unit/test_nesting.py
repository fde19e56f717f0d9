from __future__ import annotations

import json
import sys

import pytest

from quorate.errors import Malformed, PeerError
from quorate.fsm import codec
from quorate.model.schema import parse_json
from quorate.nesting import DEEPEST, is_too_deep, load_json


@pytest.mark.parametrize("opening", ["[", '{"a":', '[1,"[",'])
def test_depth_counts_arrays_and_objects_alike_and_no_string(opening: str) -> None:
    assert not is_too_deep(opening * DEEPEST)
    assert is_too_deep(opening * (DEEPEST + 1))


def test_many_shallow_things_and_brackets_in_strings_are_not_deep() -> None:
    assert not is_too_deep(json.dumps([[number] for number in range(1000)]))
    assert not is_too_deep(json.dumps(["[" * 1000, '"' + "{" * 100]))


def test_hostile_depth_is_refused_whatever_the_interpreters_limit() -> None:
    """With this limit Python 3.11's parser would end the process: it recurses in C."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)
    try:
        with pytest.raises(PeerError, match="nested too deeply"):
            codec.decode(int, b"[" * 200_000)
        with pytest.raises(Malformed, match="nested too deeply"):
            parse_json(b"[" * 200_000, "an answer")
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize("rest", ['"' + '\\"' * 2_000_000, '"\\', '"' * 4_000_001], ids=["escapes", "half", "quotes"])
def test_four_megabytes_of_strings_that_never_end_are_looked_at_once(rest: str) -> None:
    """A backtracking search would begin anew at each quote: hours, for one answer of a model."""
    assert not is_too_deep("[]" * DEEPEST + rest)
    assert is_too_deep("[" * (DEEPEST + 1) + rest)


def test_a_text_that_no_utf_8_can_carry_is_no_value() -> None:
    assert load_json(b'["\\ud83d\\ude00"]') == ["\U0001f600"]
    for half in (b'"\\ud83d"', b'{"\\uDC00": 1}', b'["\\ude00\\ud83d"]'):
        with pytest.raises(ValueError, match="no valid Unicode"):
            load_json(half)
    assert load_json(b'"\\\\ud83d"') == "\\ud83d"  # a backslash and six letters
