"""Somebody else's words, fit to be shown, stored and agreed on."""

from __future__ import annotations

import re

__all__ = ["one_line"]

_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Controls (a terminal obeys them), what is invisible or turns the reading direction (a person reads another text than
a model), and surrogates (no UTF-8). Listed, not asked of `str.isprintable`: that follows the Unicode version of the
Python it runs on, and agents of two versions would read two titles."""


def one_line(text: str, limit: int) -> str:
    """`text` on one line, without hidden characters, at most `limit` characters long; an ellipsis tells of a cut."""
    line = " ".join(_HIDDEN.sub(" ", text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
