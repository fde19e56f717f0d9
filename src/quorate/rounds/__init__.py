"""Rounds that most services share, and the rules and round pairs that go beyond the core's."""

from __future__ import annotations

from quorate.rounds.pause import pause
from quorate.rounds.register import register
from quorate.rounds.rules import first_valid, median, rotating_keeper, trimmed_mean, until_deadline, weighted

__all__ = [
    "first_valid",
    "median",
    "pause",
    "register",
    "rotating_keeper",
    "trimmed_mean",
    "until_deadline",
    "weighted",
]
