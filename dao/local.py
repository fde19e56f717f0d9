"""This DAO on a local chain: deployed, with holders who delegate to a service's Safe, and a clock that can be moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from quorate.chain import Chain, Governor, Proposal, ProposalState, Receipt, Safe, Token, VoteCast, Wallet
from quorate.errors import ChainError
from quorate.fsm import quorum_of
from quorate.host.agent_file import EvmSettings
from quorate.localnet.anvil import Anvil
from quorate.units import Address, Call, Wei

from .deploy import ONE, Dao, deploy, load_settings

__all__ = ["LocalDao", "local_dao"]

_SETTINGS = Path(__file__).with_name("settings.yaml")
_GAS_MONEY = Wei(100 * ONE)
_HOLDING = Wei(1_000_000 * ONE)
_TREASURY = Wei(100_000 * ONE)
_POLL_S = 0.1


@dataclass(frozen=True)
class LocalDao:
    """A DAO that began a moment ago, and what one can do to it on a local chain only: move the clock."""

    node: Anvil
    chain: Chain
    contracts: Dao
    safe: Safe
    deployer: Wallet
    proposer: Wallet
    """Holds what proposing takes, and votes for itself."""
    holders: tuple[Wallet, ...]
    """Gave their votes to the Safe."""
    operators: tuple[Wallet, ...]
    """Funded with the minimum stake and gas; they register themselves."""

    @property
    def governor(self) -> Governor:
        return Governor(self.chain, self.contracts.governor)

    @property
    def token(self) -> Token:
        return Token(self.chain, self.contracts.token)

    @property
    def evm(self) -> EvmSettings:
        """What the agents are told."""
        return EvmSettings(
            url=self.node.url,
            chain_id=self.chain.chain_id,
            safe=self.safe.address,
            governor=self.contracts.governor,
            token=self.contracts.token,
            timelock=self.contracts.timelock,
            registry=self.contracts.registry,
            confirmations=0,  # anvil makes a block for a transaction only, and takes none back
        )

    @property
    def delegate_config(self) -> dict[str, str]:
        """The addresses that services/delegate is configured with."""
        return {
            "safe": self.safe.address,
            "governor": self.contracts.governor,
            "token": self.contracts.token,
            "treasury": self.contracts.treasury,
        }

    def payment(self, to: Address, tokens: int) -> Call:
        """The treasury's payment of so many whole tokens."""
        return self.token.transfer(to, Wei(tokens * ONE))

    async def propose(self, calls: Sequence[Call], description: str) -> Proposal:
        """Have the proposer propose; votes are open one voting delay later."""
        receipt = await self.send(self.proposer, self.governor.propose(calls, description))
        found = await self.governor.proposals(from_block=receipt.block)
        return next(one for one in found if one.description == description)

    async def open_votes(self, proposal: Proposal) -> int:
        """Move the clock to where the proposal's votes are open; returns the seconds that were skipped."""
        return await self._move_past(proposal.start)

    async def close_votes(self, proposal: Proposal) -> int:
        """Move the clock past the end of voting; returns the seconds that were skipped."""
        return await self._move_past(proposal.end)

    async def wait_for_vote(self, proposal: Proposal, timeout_s: float) -> VoteCast:
        """The Safe's vote, as the Governor's event tells it; `ChainError` where none came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not (votes := await self.votes_of_safe(proposal)):  # noqa: ASYNC110  (a chain is polled)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise ChainError(
                f"the Safe has not voted on proposal {proposal.id} after {timeout_s:.0f} s",
                fix="the agents' logs say what they wait for",
            ) from None
        return votes[0]

    async def votes_of_safe(self, proposal: Proposal) -> tuple[VoteCast, ...]:
        """Every vote of the Safe on the proposal: at most one, or something is very wrong."""
        cast = await self.governor.votes_cast(from_block=proposal.block, voter=self.safe.address)
        return tuple(vote for vote in cast if vote.proposal_id == proposal.id)

    async def enact(self, proposal: Proposal) -> int:
        """Queue and execute a proposal that has passed; returns the seconds of the Timelock that were skipped."""
        await self.send(self.proposer, self.governor.queue(proposal.calls, proposal.description))
        skipped = await self._move_past(await self.governor.eta(proposal.id))
        await self.send(self.proposer, self.governor.execute(proposal.calls, proposal.description))
        return skipped

    async def is_executed(self, proposal: Proposal) -> bool:
        """What the Governor says."""
        return await self.governor.state(proposal.id) == ProposalState.EXECUTED

    async def send(self, wallet: Wallet, call: Call) -> Receipt:
        """Send and wait until it is mined."""
        return await self.chain.wait(await self.chain.send(wallet, call))

    async def _move_past(self, moment: int) -> int:
        now = await self.chain.timestamp()
        return (await self.node.move_time(moment - now + 1)) - now if moment >= now else 0


@asynccontextmanager
async def local_dao(
    node: Anvil, agents: Sequence[Wallet], *, operators: int = 2, holders: int = 3
) -> AsyncIterator[LocalDao]:
    """Deploy the DAO and the agents' Safe (threshold = their quorum), and have every holder delegate to the Safe."""
    settings = load_settings(_SETTINGS)
    deployer, proposer = Wallet.create(), Wallet.create()
    people = tuple(Wallet.create() for _ in range(holders))
    providers = tuple(Wallet.create() for _ in range(operators))
    for wallet in (deployer, proposer, *people, *providers, *agents):
        await node.set_balance(wallet.address, _GAS_MONEY)
    allocations = {wallet.address: _HOLDING for wallet in people}
    allocations[proposer.address] = Wei(settings.proposal_threshold * ONE)
    allocations |= {wallet.address: Wei(settings.minimum_stake * ONE) for wallet in providers}
    async with await Chain.connect(node.url, chain_id=node.chain_id) as chain:
        contracts = await deploy(chain, deployer, allocations, _TREASURY, settings)
        owners = [wallet.address for wallet in agents]
        safe = await Safe.deploy(chain, deployer, owners, quorum_of(len(owners)))
        dao = LocalDao(node, chain, contracts, safe, deployer, proposer, people, providers)
        for holder in people:
            await dao.send(holder, dao.token.delegate(safe.address))
        await dao.send(proposer, dao.token.delegate(proposer.address))
        await node.move_time(1)  # votes count from the second after they were given
        yield dao
