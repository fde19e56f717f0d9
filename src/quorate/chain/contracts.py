"""Our contracts as types: reads ask, writes build a `Call` that agents agree on and somebody sends.

Amounts of tokens are in units of 1e-18; times are in seconds of the chain's clock. Each class names its source, which
documents it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from quorate.chain.abi import Abi, load_abi
from quorate.chain.client import At, Chain, Log
from quorate.chain.revert import CallReverted
from quorate.errors import ChainError
from quorate.signatures import keccak, typed_digest
from quorate.units import Address, Call, Hash, Wei

__all__ = [
    "ABSTAIN",
    "AGAINST",
    "FOR",
    "Governor",
    "Model",
    "Offer",
    "Operator",
    "OperatorRegistry",
    "Proposal",
    "ProposalState",
    "Support",
    "Tally",
    "Timelock",
    "Token",
    "VoteCast",
    "compute_proposal_id",
]

_PAGE = 50  # operators a read: well under what nodes return at once
_MOST_OPERATORS = 10_000
_MILLION = 10**6
_PERMIT = "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"

Support = Literal[0, 1, 2]
AGAINST: Support = 0
FOR: Support = 1
ABSTAIN: Support = 2


class ProposalState(IntEnum):
    """Where a proposal stands, as OpenZeppelin's Governor numbers it. Votes count while it is ACTIVE."""

    PENDING = 0
    ACTIVE = 1
    CANCELED = 2
    DEFEATED = 3
    SUCCEEDED = 4
    QUEUED = 5
    EXPIRED = 6
    EXECUTED = 7


@dataclass(frozen=True)
class Token:
    """contracts/src/QuorateToken.sol: ERC-20 whose holders delegate their votes."""

    chain: Chain
    address: Address
    abi = load_abi("QuorateToken")

    async def balance_of(self, account: Address, *, block: At = "latest") -> Wei:
        """Tokens of the account."""
        return Wei(await self.chain.read(self.address, self.abi, "balanceOf", account, block=block))

    async def total_supply(self, *, block: At = "latest") -> Wei:
        """All tokens that there are."""
        return Wei(await self.chain.read(self.address, self.abi, "totalSupply", block=block))

    async def allowance(self, owner: Address, spender: Address) -> Wei:
        """What `spender` may still take from `owner`."""
        return Wei(await self.chain.read(self.address, self.abi, "allowance", owner, spender))

    async def delegate_of(self, account: Address) -> Address:
        """Whom the account has delegated its votes to; the zero address if nobody."""
        return Address(await self.chain.read(self.address, self.abi, "delegates", account))

    async def votes_of(self, account: Address) -> Wei:
        """Votes that are delegated to the account now."""
        return Wei(await self.chain.read(self.address, self.abi, "getVotes", account))

    async def past_votes_of(self, account: Address, at: int) -> Wei:
        """Votes that were delegated to the account at a time that is past."""
        return Wei(await self.chain.read(self.address, self.abi, "getPastVotes", account, at))

    async def permit_digest(self, owner: Address, spender: Address, amount: Wei, deadline: int) -> bytes:
        """What the owner signs (EIP-2612) so that `spender` may take so many, without a transaction of the owner."""
        domain = bytes(await self.chain.read(self.address, self.abi, "DOMAIN_SEPARATOR"))
        nonce = int(await self.chain.read(self.address, self.abi, "nonces", owner))
        parties = (bytes.fromhex(one[2:]).rjust(32, b"\0") for one in (owner, spender))
        numbers = (number.to_bytes(32, "big") for number in (amount, nonce, deadline))
        return typed_digest(domain, _PERMIT, *parties, *numbers)

    def transfer(self, to: Address, amount: Wei) -> Call:
        """Send tokens of whoever makes the call."""
        return _call(self.address, self.abi.encode("transfer", to, amount))

    def approve(self, spender: Address, amount: Wei) -> Call:
        """Let `spender` take so many, in place of what it may take now."""
        return _call(self.address, self.abi.encode("approve", spender, amount))

    def delegate(self, to: Address) -> Call:
        """Give the caller's votes to `to`; its own address keeps them."""
        return _call(self.address, self.abi.encode("delegate", to))


@dataclass(frozen=True)
class Proposal:
    """What a proposal would do, in its order, and when it is voted on: after `start`, until `end`, by the votes held at
    `start`.

    `description` is its author's text. Bytes in it that are no UTF-8 read as U+FFFD; such a proposal can be voted on by
    its id, but not queued or executed from here.
    """

    id: int
    proposer: Address
    targets: tuple[Address, ...]
    values: tuple[Wei, ...]
    calldatas: tuple[str, ...]
    description: str
    start: int
    end: int
    block: int

    @property
    def calls(self) -> tuple[Call, ...]:
        """The actions in their order."""
        return tuple(Call(*parts) for parts in zip(self.targets, self.values, self.calldatas, strict=True))


@dataclass(frozen=True)
class Tally:
    """Votes so far."""

    against: Wei
    for_: Wei
    abstain: Wei


@dataclass(frozen=True)
class VoteCast:
    """One vote as the Governor recorded it."""

    voter: Address
    proposal_id: int
    support: Support
    weight: Wei
    reason: str
    block: int
    transaction: Hash


@dataclass(frozen=True)
class Governor:
    """contracts/src/QuorateGovernor.sol, or any OpenZeppelin Governor with these functions."""

    chain: Chain
    address: Address
    abi = load_abi("QuorateGovernor")

    async def proposals(self, from_block: int = 0, to_block: int | None = None) -> tuple[Proposal, ...]:
        """Every proposal made in these blocks, oldest first. Name the block of the deployment on a long chain."""
        logs = await self.chain.logs(
            self.address, self.abi, "ProposalCreated", from_block=from_block, to_block=to_block
        )
        return tuple(_proposal(log) for log in logs)

    async def proposal(self, proposal_id: int, from_block: int = 0) -> Proposal:
        """The proposal of this id; raises ChainError if none was made from `from_block` on."""
        for proposal in await self.proposals(from_block):
            if proposal.id == proposal_id:
                return proposal
        raise ChainError(f"the governor {self.address} has no proposal {proposal_id} from block {from_block} on")

    async def state(self, proposal_id: int, *, block: At = "latest") -> ProposalState:
        """Raises CallReverted (GovernorNonexistentProposal) if there is no such proposal."""
        found = await self.chain.read(self.address, self.abi, "state", proposal_id, block=block)
        try:
            return ProposalState(found)
        except ValueError as error:
            raise ChainError(f"the governor {self.address} gives proposal {proposal_id} the state {found}") from error

    async def has_voted(self, proposal_id: int, account: Address, *, block: At = "latest") -> bool:
        """Whether the account's vote on this proposal is counted already."""
        return bool(await self.chain.read(self.address, self.abi, "hasVoted", proposal_id, account, block=block))

    async def votes(self, proposal_id: int) -> Tally:
        """The votes so far."""
        return Tally(*await self.chain.read(self.address, self.abi, "proposalVotes", proposal_id))

    async def votes_cast(
        self, from_block: int = 0, to_block: int | None = None, *, voter: Address | None = None
    ) -> tuple[VoteCast, ...]:
        """Every vote in these blocks, oldest first; of one voter, if told."""
        topics = () if voter is None else (bytes.fromhex(voter[2:]).rjust(32, b"\0"),)
        logs = await self.chain.logs(
            self.address, self.abi, "VoteCast", from_block=from_block, to_block=to_block, topics=topics
        )
        return tuple(_vote(log) for log in logs)

    async def weight_of(self, account: Address, at: int) -> Wei:
        """Votes that the account had at a past time (a proposal's `start`)."""
        return Wei(await self.chain.read(self.address, self.abi, "getVotes", account, at))

    async def vote_quorum(self, at: int) -> Wei:
        """Votes for or abstaining that a proposal with this `start` needs."""
        return Wei(await self.chain.read(self.address, self.abi, "quorum", at))

    async def clock(self) -> int:
        """Seconds since 1970 by the chain."""
        return int(await self.chain.read(self.address, self.abi, "clock"))

    async def eta(self, proposal_id: int) -> int:
        """When a queued proposal can be executed; 0 if it is not queued."""
        return int(await self.chain.read(self.address, self.abi, "proposalEta", proposal_id))

    async def voting_delay(self) -> int:
        """Seconds from a proposal to the beginning of its vote."""
        return int(await self.chain.read(self.address, self.abi, "votingDelay"))

    async def voting_period(self) -> int:
        """Seconds that a vote takes."""
        return int(await self.chain.read(self.address, self.abi, "votingPeriod"))

    async def proposal_threshold(self) -> Wei:
        """Votes that a proposer needs."""
        return Wei(await self.chain.read(self.address, self.abi, "proposalThreshold"))

    async def token(self) -> Address:
        """The token whose holders vote."""
        return Address(await self.chain.read(self.address, self.abi, "token"))

    async def timelock(self) -> Address:
        """Where an accepted proposal waits; it holds the treasury."""
        return Address(await self.chain.read(self.address, self.abi, "timelock"))

    def propose(self, calls: Sequence[Call], description: str) -> Call:
        """Put these calls to the vote; the caller needs `proposal_threshold` votes."""
        return _call(self.address, self.abi.encode("propose", *_columns(calls), description))

    def cast_vote(self, proposal_id: int, support: Support) -> Call:
        """Vote; once for each voter and proposal."""
        return _call(self.address, self.abi.encode("castVote", proposal_id, support))

    def cast_vote_with_reason(self, proposal_id: int, support: Support, reason: str) -> Call:
        """Vote, and say why in a text that everybody can read."""
        return _call(self.address, self.abi.encode("castVoteWithReason", proposal_id, support, reason))

    def queue(self, calls: Sequence[Call], description: str) -> Call:
        """Let an accepted proposal begin to wait in the timelock."""
        return _call(self.address, self.abi.encode("queue", *_columns(calls), keccak(text=description)))

    def execute(self, calls: Sequence[Call], description: str) -> Call:
        """Make the calls of a proposal that has waited long enough."""
        return _call(self.address, self.abi.encode("execute", *_columns(calls), keccak(text=description)))


@dataclass(frozen=True)
class Timelock:
    """OpenZeppelin's TimelockController: it holds the treasury and waits before it acts."""

    chain: Chain
    address: Address
    abi = load_abi("TimelockController")

    ADMIN = bytes(32)
    PROPOSER = keccak(text="PROPOSER_ROLE")
    CANCELLER = keccak(text="CANCELLER_ROLE")
    EXECUTOR = keccak(text="EXECUTOR_ROLE")

    async def min_delay(self) -> int:
        """Seconds between queueing and executing."""
        return int(await self.chain.read(self.address, self.abi, "getMinDelay"))

    async def has_role(self, role: bytes, account: Address) -> bool:
        """Whether the account may do what the role stands for."""
        return bool(await self.chain.read(self.address, self.abi, "hasRole", role, account))

    def grant_role(self, role: bytes, account: Address) -> Call:
        """Give the account the role; for the role's admin."""
        return _call(self.address, self.abi.encode("grantRole", role, account))

    def revoke_role(self, role: bytes, account: Address) -> Call:
        """Take it away; for the role's admin."""
        return _call(self.address, self.abi.encode("revokeRole", role, account))

    def renounce_role(self, role: bytes, account: Address) -> Call:
        """Only `account` itself can send this."""
        return _call(self.address, self.abi.encode("renounceRole", role, account))


@dataclass(frozen=True)
class Model:
    """A model that an operator says it serves; the hash is of the manifest of its files."""

    name: str
    manifest_hash: Hash
    price_in: Wei = Wei(0)
    """For a million tokens of prompt."""
    price_out: Wei = Wei(0)
    """For a million tokens of answer."""

    def cost(self, prompt_tokens: int, completion_tokens: int) -> Wei:
        """What an answer of so many tokens costs, rounded up once: what the operator asks and the client expects."""
        return Wei(-(-(prompt_tokens * self.price_in + completion_tokens * self.price_out) // _MILLION))


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What an operator says of itself: all that it can change by one `update`."""

    key: Address
    """Signs its receipts."""
    endpoint: str
    """Where its API answers, 1 to 256 bytes."""
    models: tuple[Model, ...]
    """1 to 16, each name once."""
    region: str = ""
    """Where its machines are, at most 31 bytes; empty: not said."""
    device_class: str = "cpu"
    """Which machines: answers of one class are compared with one another. 1 to 31 bytes."""
    capacity: int = 1
    """How many requests it serves at once."""


@dataclass(frozen=True)
class Operator:
    """What the registry holds of an operator. Endpoint and model names are the operator's own text."""

    account: Address
    key: Address
    endpoint: str
    models: tuple[Model, ...]
    stake: Wei
    unbonding: Wei
    withdrawable_at: int
    paused: bool
    region: str = ""
    device_class: str = "cpu"
    capacity: int = 1
    held_until: int = 0
    """Until then a dispute keeps what is unbonding, within 30 days of `withdrawable_at`."""

    @property
    def offer(self) -> Offer:
        """What it says of itself."""
        return Offer(
            key=self.key,
            endpoint=self.endpoint,
            models=self.models,
            region=self.region,
            device_class=self.device_class,
            capacity=self.capacity,
        )

    def model(self, name: str) -> Model | None:
        """The model of this name, if it serves one."""
        return next((model for model in self.models if model.name == name), None)


@dataclass(frozen=True)
class OperatorRegistry:
    """contracts/src/OperatorRegistry.sol: who serves models, and what they have at stake."""

    chain: Chain
    address: Address
    abi = load_abi("OperatorRegistry")

    async def operators(self, *, block: int | None = None) -> tuple[Operator, ...]:
        """Every listed operator (registered, with the minimum stake), paused ones too, all read at one block."""
        at = await self.chain.block_number() if block is None else block
        found: list[Operator] = []
        while True:
            page = await self.chain.read(self.address, self.abi, "operators", len(found), _PAGE, block=at)
            found += [_operator(raw) for raw in page]
            if len(page) < _PAGE:
                return tuple(found)
            if len(found) > _MOST_OPERATORS:
                raise ChainError(f"{self.chain.where} lists more than {_MOST_OPERATORS} operators; that is no end")

    async def operator_of(self, account: Address, *, block: At = "latest") -> Operator | None:
        """What is known of an operator, listed or not; None if it never registered."""
        try:
            return _operator(await self.chain.read(self.address, self.abi, "operatorOf", account, block=block))
        except CallReverted as error:
            if error.error == "NotRegistered":
                return None
            raise

    async def operator_count(self) -> int:
        """How many are listed."""
        return int(await self.chain.read(self.address, self.abi, "operatorCount"))

    async def is_active(self, account: Address, *, block: At = "latest") -> bool:
        """True while the operator is registered, staked and not paused."""
        return bool(await self.chain.read(self.address, self.abi, "isActive", account, block=block))

    async def account_of(self, key: Address) -> Address:
        """The operator that the key signs or has signed for; the zero address if none."""
        return Address(await self.chain.read(self.address, self.abi, "accountOf", key))

    async def minimum_stake(self) -> Wei:
        """What an operator must have at stake to be listed."""
        return Wei(await self.chain.read(self.address, self.abi, "minimumStake"))

    async def unbonding_delay(self) -> int:
        """Seconds from `start_unbonding` to `withdraw`, in which a stake can still be slashed."""
        return int(await self.chain.read(self.address, self.abi, "unbondingDelay"))

    async def token(self) -> Address:
        """The token that is staked."""
        return Address(await self.chain.read(self.address, self.abi, "token"))

    async def governance(self) -> Address:
        """Who says who the slasher is."""
        return Address(await self.chain.read(self.address, self.abi, "governance"))

    async def slasher(self) -> Address:
        """Who may slash and hold stakes; the zero address while nobody may."""
        return Address(await self.chain.read(self.address, self.abi, "slasher"))

    async def released_at(self, account: Address) -> int:
        """From when on `withdraw` pays out what is unbonding: the delay's end, or a hold's."""
        return int(await self.chain.read(self.address, self.abi, "releasedAt", account))

    def register(self, offer: Offer) -> Call:
        """Make the caller an operator that says this of itself."""
        return _call(self.address, self.abi.encode("register", _struct(offer)))

    def update(self, offer: Offer) -> Call:
        """Replace all that the caller says of itself."""
        return _call(self.address, self.abi.encode("update", _struct(offer)))

    def set_price(self, model: str, price_in: Wei, price_out: Wei) -> Call:
        """Change the caller's prices of one model, for a million tokens each."""
        return _call(self.address, self.abi.encode("setPrice", model, price_in, price_out))

    def stake(self, amount: Wei) -> Call:
        """The token must have been approved for the registry."""
        return _call(self.address, self.abi.encode("stake", amount))

    def start_unbonding(self, amount: Wei) -> Call:
        """Begin to take so much of the caller's stake out."""
        return _call(self.address, self.abi.encode("startUnbonding", amount))

    def withdraw(self) -> Call:
        """Pay out what has waited for the unbonding delay."""
        return _call(self.address, self.abi.encode("withdraw"))

    def pause(self) -> Call:
        """Serve nobody for a while; the stake stays."""
        return _call(self.address, self.abi.encode("pause"))

    def unpause(self) -> Call:
        """Serve again."""
        return _call(self.address, self.abi.encode("unpause"))

    def set_slasher(self, slasher: Address) -> Call:
        """Say who may slash and hold; for governance only."""
        return _call(self.address, self.abi.encode("setSlasher", slasher))

    def hold(self, operator: Address, until: int) -> Call:
        """Keep what is unbonding of an operator until then, at most 30 days from now; for the slasher only."""
        return _call(self.address, self.abi.encode("hold", operator, until))

    def slash(self, operator: Address, amount: Wei, to: Address, evidence: Hash) -> Call:
        """Send up to so much of an operator's stake to `to`; for the slasher only."""
        return _call(self.address, self.abi.encode("slash", operator, amount, to, evidence))


def compute_proposal_id(calls: Sequence[Call], description: str) -> int:
    """The id that the Governor gives to a proposal of these calls with this description."""
    abi = Abi([_HASH_PROPOSAL])
    encoded = abi.encode("hashProposal", *_columns(calls), keccak(text=description))
    return int.from_bytes(keccak(bytes.fromhex(encoded[10:])), "big")


_HASH_PROPOSAL = {
    "type": "function",
    "name": "hashProposal",
    "inputs": [{"type": kind} for kind in ("address[]", "uint256[]", "bytes[]", "bytes32")],
}


def _call(to: Address, data: str) -> Call:
    return Call(to, Wei(0), data)


def _columns(calls: Sequence[Call]) -> tuple[list[Address], list[Wei], list[str]]:
    return [call.to for call in calls], [call.value for call in calls], [call.data for call in calls]


def _struct(offer: Offer) -> tuple[Any, ...]:
    models = [(one.name, one.manifest_hash, one.price_in, one.price_out) for one in offer.models]
    return offer.key, offer.endpoint, offer.region, offer.device_class, offer.capacity, models


def _proposal(log: Log) -> Proposal:
    a = log.arguments
    if not len(a["targets"]) == len(a["values"]) == len(a["calldatas"]):
        raise ChainError(f"proposal {a['proposalId']} of {log.address} has actions that are not complete")
    return Proposal(
        id=a["proposalId"],
        proposer=a["proposer"],
        targets=a["targets"],
        values=a["values"],
        calldatas=tuple("0x" + data.hex() for data in a["calldatas"]),
        description=a["description"],
        start=a["voteStart"],
        end=a["voteEnd"],
        block=log.block,
    )


def _vote(log: Log) -> VoteCast:
    a = log.arguments
    return VoteCast(a["voter"], a["proposalId"], a["support"], a["weight"], a["reason"], log.block, log.transaction)


def _operator(raw: tuple[Any, ...]) -> Operator:
    account, key, endpoint, region, device_class, capacity, models, *standing = raw
    stake, unbonding, withdrawable_at, held_until, paused = standing
    served = tuple(
        Model(name, Hash("0x" + manifest.hex()), Wei(price_in), Wei(price_out))
        for name, manifest, price_in, price_out in models
    )
    return Operator(
        account=account,
        key=key,
        endpoint=endpoint,
        models=served,
        stake=Wei(stake),
        unbonding=Wei(unbonding),
        withdrawable_at=withdrawable_at,
        paused=paused,
        region=region,
        device_class=device_class,
        capacity=capacity,
        held_until=held_until,
    )
