"""Values that carry their unit. Nothing here computes; the names are what a reader and mypy see.

Addresses are EIP-55 checksummed, hashes are lower-case hex; both start with ``0x``. Whoever lets a value in from
outside (an RPC answer, a file, a peer) brings it into this form there, so that equal things are equal strings
everywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

__all__ = ["Address", "Blocks", "Bps", "Call", "Hash", "Height", "PeriodNumber", "RoundNumber", "Rounds", "Wei"]

Address = NewType("Address", str)
"""An account or contract on an EVM chain: ``0x`` and 40 hex digits, checksummed (EIP-55)."""

Hash = NewType("Hash", str)
"""32 bytes as ``0x`` and 64 lower-case hex digits: a transaction, a block, a digest."""

Wei = NewType("Wei", int)
"""An amount in the smallest unit of a coin or token (10**18 make one ether)."""

Bps = NewType("Bps", int)
"""Basis points: 10_000 are the whole."""

Height = NewType("Height", int)
"""Which block of the service's own chain: 1 is the first."""

RoundNumber = NewType("RoundNumber", int)
"""Which round: they are counted since genesis, from 1, and never anew."""

PeriodNumber = NewType("PeriodNumber", int)
"""Which period: laps of the service that were over when it began."""

Blocks = NewType("Blocks", int)
"""A number of blocks."""

Rounds = NewType("Rounds", int)
"""A number of rounds."""


@dataclass(frozen=True)
class Call:
    """A call that somebody may send to a contract: what agents agree on before anything is signed."""

    to: Address
    value: Wei
    data: str
    """The call's input as ``0x`` and hex digits; ``0x`` alone is a plain payment."""
