from __future__ import annotations

import json
import sys

import pytest

from quorate.errors import Malformed, PeerError
from quorate.fsm import codec
from quorate.model.schema import parse_json
from quorate.nesting import DEEPEST, is_too_deep


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
