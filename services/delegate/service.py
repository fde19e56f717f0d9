"""An accountable delegate: it votes on every proposal by a written policy, and says on-chain what decided."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from quorate import Address, Service
from quorate.chain import AddressBook, TokenUnit
from quorate.rounds import pause, register, settle
from skills.governance import Delegation, Policy, load_policy, transitions, watch

__all__ = ["DelegateConfig", "service"]

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class DelegateConfig:
    """What the service's owner sets (service.yaml); the addresses come from its deployment."""

    safe: Address
    governor: Address
    token: Address
    treasury: Address
    from_block: int = 0
    """The first block in which a proposal may be: the Governor's own."""
    symbol: str = "QRT"
    """What the DAO's token is called."""
    policy_file: str
    embedding_model: str
    language_model: str

    def __post_init__(self) -> None:
        _ = self.policy  # a policy that cannot be read is an error at start, not at the first vote

    @cached_property
    def policy(self) -> Policy:
        """The policy in `policy_file`, a path from the project's root."""
        return load_policy(_ROOT / self.policy_file)

    @cached_property
    def book(self) -> AddressBook:
        """What the delegate calls the DAO's own accounts; a proposal cannot name anything."""
        names = {self.treasury: "the treasury", self.governor: "the governor", self.safe: "this delegate"}
        return AddressBook(names, {self.token: TokenUnit(self.symbol, 18)})


service = Service(
    "delegate",
    state=Delegation,
    config=DelegateConfig,
    start=register,
    transitions={
        (register, "DONE"): watch,
        (register, "ROUND_TIMEOUT"): register,
        **transitions,
        (settle.confirm, "DONE"): pause,
        (settle.confirm, "FAILED"): pause,
        (pause, "DONE"): watch,
    },
    otherwise=pause,
)
