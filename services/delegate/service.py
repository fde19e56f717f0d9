"""An accountable delegate: it votes on every proposal by a written policy, and says on-chain what decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from eth_utils.address import is_checksum_address

from quorate import Address, Service
from quorate.chain import AddressBook, TokenUnit
from quorate.errors import ConfigError
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
    pause_s: int = 10
    """Rest between a vote and the look for the next proposal."""
    poll_ms: int = 500
    """How often the chain is asked for a proposal while there is none."""

    policy: Policy = field(init=False)
    """What `policy_file` says (a path from the project's root). Its hash is part of the settings that all agents must
    have alike: two policies would draft two votes, and cast none."""

    def __post_init__(self) -> None:
        for name in ("safe", "governor", "token", "treasury"):
            if not is_checksum_address(getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected an address with its checksum (EIP-55)")
        object.__setattr__(self, "policy", load_policy(_ROOT / self.policy_file))

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
