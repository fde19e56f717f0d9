"""The pure core: rounds, agreement rules, services, the replicated machine. No I/O, clock, randomness or log here."""

from __future__ import annotations

from quorate.fsm.period import Period, Settled
from quorate.fsm.round import (
    NO_MAJORITY,
    ROUND_TIMEOUT,
    Act,
    AnyRound,
    Context,
    Ready,
    Round,
    Rule,
    agree,
    with_deadline,
)
from quorate.fsm.service import BACK, Interrupt, Service
from quorate.fsm.state import State, keep
from quorate.fsm.votes import Outcome, Votes, quorum_of

__all__ = [
    "BACK", "NO_MAJORITY", "ROUND_TIMEOUT", "Act", "AnyRound", "Context", "Interrupt", "Outcome", "Period", "Ready",
    "Round", "Rule", "Service", "Settled", "State", "Votes", "agree", "keep", "quorum_of", "with_deadline",
]  # fmt: skip
