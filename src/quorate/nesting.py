"""How deep JSON is nested, before a parser is asked: its own limit is the interpreter's, and may be anything.

Python's parser recurses in C. With a raised recursion limit a hostile text ends the process; with another limit than a
peer's it is refused by one agent and read by the other.
"""

from __future__ import annotations

import re

__all__ = ["DEEPEST", "is_too_deep"]

DEEPEST = 64
"""No type of ours is nested as deep."""

_STRINGS_AND_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def is_too_deep(text: str) -> bool:
    """Whether arrays and objects in `text` are nested deeper than `DEEPEST`; brackets in strings do not count."""
    if text.count("[") + text.count("{") <= DEEPEST:
        return False
    depth = 0
    for part in _STRINGS_AND_BRACKETS.findall(text):
        depth += (part in "[{") - (part in "]}")
        if depth > DEEPEST:
            return True
    return False
