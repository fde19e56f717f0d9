"""Who broke what.

QuorateError
├── ConfigError            a file, option or folder of the user's is wrong          (ours, at start)
├── ServiceError           a service's definition is wrong                          (ours, at import)
├── SetupError             a tool, cache or download is missing or damaged          (this machine)
├── PeerError              a peer broke the protocol; carries the evidence          (a peer)
├── ChainError             the EVM chain refused or cannot be asked
│   ├── Reverted           the contract refused the call
│   ├── Underpriced        the fee is too low to be mined or to replace
│   └── Unreachable        no answer from the node
└── ModelError             no usable answer from a model
    ├── Refused            the operator declined to answer
    ├── Malformed          the answer breaks its schema, or its receipt does not hold
    ├── TimedOut           no answer in time
    └── NoOperator         every operator was asked, or there is none

A message holds the value, what was expected and where; ``fix`` says in one sentence what the reader can do. Subsystems
subclass these with attributes of their own, so that a caller acts on attributes and never parses a message.
"""

from __future__ import annotations

__all__ = [
    "ChainError",
    "ConfigError",
    "Malformed",
    "ModelError",
    "NoOperator",
    "PeerError",
    "QuorateError",
    "Refused",
    "Reverted",
    "ServiceError",
    "SetupError",
    "TimedOut",
    "Underpriced",
    "Unreachable",
]


class QuorateError(Exception):
    """Anything that we raise on purpose; the command line prints ``error: message`` and, below it, ``fix``."""

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class ConfigError(QuorateError):
    """A file, option or folder of the user's is wrong; raised at start."""


class ServiceError(QuorateError):
    """A service's definition is wrong; raised at import, or at once when an act or a rule breaks its own types."""


class SetupError(QuorateError):
    """A tool, cache or download that this machine should have is missing or damaged."""


class PeerError(QuorateError):
    """A peer broke the protocol. ``evidence`` is what it sent, so that somebody else can judge it."""

    def __init__(self, message: str, *, evidence: bytes = b"", fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.evidence = evidence


class ChainError(QuorateError):
    """The EVM chain refused, or cannot be asked."""


class Reverted(ChainError):
    """The contract refused the call."""


class Underpriced(ChainError):
    """The offered fee is too low to be mined, or to replace an earlier transaction."""


class Unreachable(ChainError):
    """No answer from the node."""


class ModelError(QuorateError):
    """No usable answer from a model."""


class Refused(ModelError):
    """The operator declined to answer."""


class Malformed(ModelError):
    """The answer breaks its schema, or its receipt does not hold."""


class TimedOut(ModelError):
    """No answer in time."""


class NoOperator(ModelError):
    """Every operator was asked without success, or there is none."""
