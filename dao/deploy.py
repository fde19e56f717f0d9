"""The DAO on a chain: its contracts, deployed in the one order that leaves nobody with power over them.

Afterwards the Timelock holds the treasury and is its own admin, the Governor is its only proposer and canceller,
anybody may execute what has waited long enough, and the deployer has no role left. `deploy` checks this before it
returns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import yaml

from quorate.chain import (
    AddressBook,
    Chain,
    Governor,
    InferencePayments,
    OperatorRegistry,
    Timelock,
    Token,
    TokenUnit,
    Wallet,
    load_abi,
)
from quorate.errors import ChainError, ConfigError
from quorate.units import Address, Wei

__all__ = ["TOKEN", "Dao", "DaoSettings", "deploy", "load_settings"]

TOKEN = TokenUnit("QRT", 18)
ONE = 10**18
ANYBODY = Address("0x" + "00" * 20)


@dataclass(frozen=True, kw_only=True)
class DaoSettings:
    """What a DAO is set up with (dao/settings.yaml); later only a proposal can change it, the stake's terms not even
    that.
    """

    voting_delay_s: int
    """From a proposal to the moment whose balances vote."""
    voting_period_s: int
    proposal_threshold: int
    """Votes that a proposer must have, in whole tokens."""
    quorum_percent: int
    """Share of the supply that must vote for or abstain."""
    timelock_delay_s: int
    """From queueing a passed proposal to executing it; never 0, or nobody could react."""
    minimum_stake: int
    """Of an operator, in whole tokens."""
    unbonding_delay_s: int
    close_delay_s: int
    """From a client's wish to take back its deposit until it can: the time an operator has to redeem its vouchers."""

    def __post_init__(self) -> None:
        for name in ("voting_period_s", "timelock_delay_s", "minimum_stake", "unbonding_delay_s", "close_delay_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("voting_delay_s", "proposal_threshold"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 0")
        if not 1 <= self.quorum_percent <= 100:
            raise ConfigError(f"quorum_percent is {self.quorum_percent}; expected 1 to 100")


@dataclass(frozen=True)
class Dao:
    """Where a DAO's contracts are, and the block from which on their events are to be read."""

    chain_id: int
    block: int
    token: Address
    timelock: Address
    governor: Address
    registry: Address
    payments: Address

    @property
    def treasury(self) -> Address:
        """The account that pays what proposals decide."""
        return self.timelock

    def book(self, names: Mapping[Address, str] | None = None) -> AddressBook:
        """The names under which actions of this DAO are shown; `names` adds to them."""
        own = {self.token: "QRT", self.timelock: "the timelock", self.governor: "the governor"}
        own |= {self.registry: "the operator registry", self.payments: "the inference payments"}
        return AddressBook(own | dict(names or {}), {self.token: TOKEN})

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


async def deploy(
    chain: Chain, deployer: Wallet, allocations: Mapping[Address, Wei], treasury: Wei, settings: DaoSettings
) -> Dao:
    """Deploys token, Timelock, Governor, registry and payments. The supply is `allocations` plus the treasury's.

    The deployer pays the gas (about 10 million) and keeps nothing but its allocation, if it has one.
    """
    block = await chain.block_number()
    timelock = Timelock(
        chain,
        await chain.deploy(
            deployer, load_abi("TimelockController"), settings.timelock_delay_s, [], [], deployer.address
        ),
    )
    supply = [*allocations.items(), *([(timelock.address, treasury)] if treasury else [])]
    token = Token(chain, await chain.deploy(deployer, load_abi("QuorateToken"), supply))
    governor = await chain.deploy(
        deployer,
        load_abi("QuorateGovernor"),
        token.address,
        timelock.address,
        settings.voting_delay_s,
        settings.voting_period_s,
        settings.proposal_threshold * ONE,
        settings.quorum_percent,
    )
    registry = await chain.deploy(
        deployer,
        load_abi("OperatorRegistry"),
        token.address,
        settings.minimum_stake * ONE,
        settings.unbonding_delay_s,
        timelock.address,
    )
    payments = await chain.deploy(deployer, load_abi("InferencePayments"), token.address, settings.close_delay_s)
    dao = Dao(chain.chain_id, block, token.address, timelock.address, governor, registry, payments)
    await _hand_over(timelock, dao, deployer)
    await check(chain, dao, deployer.address)
    return dao


async def check(chain: Chain, dao: Dao, deployer: Address) -> None:
    """Raises ChainError unless the roles are as this module's first lines say and the contracts point to each other."""
    timelock, governor = Timelock(chain, dao.timelock), Governor(chain, dao.governor)
    registry = OperatorRegistry(chain, dao.registry)
    claims = {
        "the governor may propose": await timelock.has_role(Timelock.PROPOSER, dao.governor),
        "the governor may cancel": await timelock.has_role(Timelock.CANCELLER, dao.governor),
        "anybody may execute": await timelock.has_role(Timelock.EXECUTOR, ANYBODY),
        "the timelock is its own admin": await timelock.has_role(Timelock.ADMIN, dao.timelock),
        "the timelock waits": await timelock.min_delay() > 0,
        "the governor obeys the timelock": await governor.timelock() == dao.timelock,
        "the governor counts the token": await governor.token() == dao.token,
        "the registry takes the token": await registry.token() == dao.token,
        "only the timelock can name a slasher": await registry.governance() == dao.timelock,
        "nobody can slash": await registry.slasher() == ANYBODY,
        "operators are paid in the token": await InferencePayments(chain, dao.payments).token() == dao.token,
    }
    for name in ("ADMIN", "PROPOSER", "CANCELLER", "EXECUTOR"):
        claims[f"the deployer is no {name.lower()}"] = not await timelock.has_role(getattr(Timelock, name), deployer)
    broken = [claim for claim, holds in claims.items() if not holds]
    if broken:
        raise ChainError(f"the DAO at {dao.governor} is not as it should be; this does not hold: {'; '.join(broken)}")


def load_settings(path: Path, **overrides: int) -> DaoSettings:
    """The settings in a yaml file, some of them replaced (a local chain's shorter times); raises ConfigError."""
    try:
        raw: Any = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as yaml: {error}") from error
    known = {field.name for field in fields(DaoSettings)}
    if not isinstance(raw, dict) or set(raw) != known:
        raise ConfigError(f"{path} must hold exactly these values: {', '.join(sorted(known))}")
    values = {**raw, **overrides}
    wrong = [name for name, value in values.items() if name not in known or type(value) is not int]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)} in {path}: expected whole numbers of the names {', '.join(sorted(known))}"
        )
    return DaoSettings(**values)


async def _hand_over(timelock: Timelock, dao: Dao, deployer: Wallet) -> None:
    chain = timelock.chain
    calls = (
        timelock.grant_role(Timelock.PROPOSER, dao.governor),
        timelock.grant_role(Timelock.CANCELLER, dao.governor),
        timelock.grant_role(Timelock.EXECUTOR, ANYBODY),
        timelock.renounce_role(Timelock.ADMIN, deployer.address),
    )
    for call in calls:
        await chain.wait(await chain.send(deployer, call))
