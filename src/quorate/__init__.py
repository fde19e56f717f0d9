"""Quorate: autonomous agent services that act only when a quorum of agents agrees.

What a service is written with. Rounds that most services share are in `quorate.rounds`, the in-memory network for
tests is `quorate.testing`.
"""

from __future__ import annotations

from quorate.errors import ChainError, ConfigError, ModelError, PeerError, QuorateError, ServiceError
from quorate.fsm import (
    BACK,
    NO_MAJORITY,
    ROUND_TIMEOUT,
    Context,
    Interrupt,
    Outcome,
    Period,
    Service,
    State,
    Votes,
    agree,
    keep,
    with_deadline,
)
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
from quorate.units import Address, Bps, Call, Hash, Wei

__version__ = "0.1.0"

__all__ = [
    "BACK",
    "NO_MAJORITY",
    "ROUND_TIMEOUT",
    "Address",
    "Bps",
    "Call",
    "ChainError",
    "ConfigError",
    "Context",
    "Hash",
    "Interrupt",
    "ModelError",
    "Outcome",
    "PeerError",
    "Period",
    "QuorateError",
    "Service",
    "ServiceError",
    "State",
    "Votes",
    "Wei",
    "agree",
    "choice",
    "each",
    "first_valid",
    "from_all",
    "keep",
    "median",
    "only_keeper",
    "rotating_keeper",
    "same",
    "trimmed_mean",
    "until_deadline",
    "weighted",
    "with_deadline",
]
