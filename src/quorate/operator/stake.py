"""The operator's place in the registry: what it offers, and its stake. Safe to repeat."""

from __future__ import annotations

from dataclasses import dataclass

from quorate.chain import Chain, Offer, OperatorRegistry, Token, Wallet
from quorate.errors import ConfigError
from quorate.units import Address, Call, Wei

__all__ = ["Place", "ensure_staked"]


@dataclass(frozen=True)
class Place:
    """Where the operator stands, and what was sent to get there (empty: nothing had to be)."""

    account: Address
    stake: Wei
    sent: tuple[str, ...]


async def ensure_staked(
    registry: OperatorRegistry,
    wallet: Wallet,
    offer: Offer,
    stake: Wei = Wei(0),
) -> Place:
    """Register or update, approve and stake, unpause: whatever is missing, one confirmed transaction after another.

    `stake` is the least to have staked, the registry's minimum if that is more. Raises ConfigError where the account
    has too few tokens, and CallReverted where the registry refuses (a key that signs for another operator, say).
    """
    chain, sent = registry.chain, list[str]()

    async def send(what: str, call: Call) -> None:
        await chain.wait(await chain.send(wallet, call))
        sent.append(what)

    found = await registry.operator_of(wallet.address)
    wanted = Wei(max(stake, await registry.minimum_stake()))
    missing = Wei(max(0, wanted - (found.stake if found else 0)))
    if missing:
        await _check_funds(chain, registry, wallet.address, missing)
    if found is None:
        await send("register", registry.register(offer))
    elif found.offer != offer:
        await send("update", registry.update(offer))
    if missing:
        token = Token(chain, await registry.token())
        if await token.allowance(wallet.address, registry.address) < missing:
            await send("approve", token.approve(registry.address, missing))
        await send("stake", registry.stake(missing))
    if found is not None and found.paused:
        await send("unpause", registry.unpause())
    return Place(wallet.address, Wei((found.stake if found else 0) + missing), tuple(sent))


async def _check_funds(chain: Chain, registry: OperatorRegistry, account: Address, missing: Wei) -> None:
    held = await Token(chain, await registry.token()).balance_of(account)
    if held < missing:
        raise ConfigError(
            f"the account {account} has {held} units of the token; its stake needs {missing} more",
            fix=f"send it tokens on chain {chain.chain_id}, or lower stake in the configuration",
        )
