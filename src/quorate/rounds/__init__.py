"""Rounds that most services share, and the rules and round pairs that go beyond the core's."""

from __future__ import annotations

from quorate.rounds.pause import pause
from quorate.rounds.register import register
from quorate.rounds.rules import first_valid, median, rotating_keeper, trimmed_mean, until_deadline, weighted
from quorate.rounds.sealed import Sealed, SealedContext, Vault, draw, lot_of, sealed

__all__ = [
    "Sealed",
    "SealedContext",
    "Vault",
    "draw",
    "first_valid",
    "lot_of",
    "median",
    "pause",
    "register",
    "rotating_keeper",
    "sealed",
    "trimmed_mean",
    "until_deadline",
    "weighted",
]
