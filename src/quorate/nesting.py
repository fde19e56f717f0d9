"""JSON from strangers, bounded in depth before a parser is asked: its own limit is the interpreter's, thus anything.

Python's parser recurses in C. With a raised recursion limit a hostile text ends the process; with another limit than a
peer's it is refused by one agent and read by the other.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["DEEPEST", "is_too_deep", "load_json"]

DEEPEST = 64
"""No type of ours is nested as deep."""

# Possessive, and a string without an end reaches to the end: a backtracking search would take quadratic time.
_STRINGS_AND_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def load_json(data: str | bytes, **hooks: Any) -> Any:
    """The JSON value that `data` (UTF-8) stands for; `ValueError` where it is none or nested deeper than `DEEPEST`.

    Also where a text in it holds half of a surrogate pair, which only an escape can bring: no UTF-8 could carry it on.
    `hooks` are those of `json.loads`.
    """
    text = data if isinstance(data, str) else data.decode()
    if is_too_deep(text):
        raise ValueError(f"nested too deeply, beyond {DEEPEST} levels")
    value = json.loads(text, **hooks)
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("a text in it is no valid Unicode: half of a surrogate pair") from error
    return value


def is_too_deep(text: str) -> bool:
    """Whether arrays and objects in `text` are nested deeper than `DEEPEST`; brackets in strings do not count."""
    if text.count("[") + text.count("{") <= DEEPEST:
        return False
    depth = 0
    for part in _STRINGS_AND_BRACKETS.finditer(text):
        depth += (part[0] in "[{") - (part[0] in "]}")
        if depth > DEEPEST:
            return True
    return False


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
