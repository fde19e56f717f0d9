"""Rounds that most services share."""

from __future__ import annotations

from quorate.rounds.pause import pause
from quorate.rounds.register import register

__all__ = ["pause", "register"]
