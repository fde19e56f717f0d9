"""How agents agree, ready-made: the rules, rounds that most services share, and pairs of rounds that keep a secret."""

from __future__ import annotations

from quorate.rounds.pause import pause
from quorate.rounds.register import register
from quorate.rounds.rules import (
    choice,
    each,
    first_valid,
    from_all,
    median,
    only_keeper,
    rotating_keeper,
    same,
    trimmed_mean,
    until_deadline,
    weighted,
)
from quorate.rounds.sealed import Sealed, SealedContext, Vault, draw, lot_of, sealed

__all__ = [
    "Sealed",
    "SealedContext",
    "Vault",
    "choice",
    "draw",
    "each",
    "first_valid",
    "from_all",
    "lot_of",
    "median",
    "only_keeper",
    "pause",
    "register",
    "rotating_keeper",
    "same",
    "sealed",
    "trimmed_mean",
    "until_deadline",
    "weighted",
]
