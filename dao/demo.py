"""The demo: a proposal is made, four agents judge it with staked operators, their Safe votes, it is enacted."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quorate.chain import ABSTAIN, AGAINST, FOR, Proposal, VoteCast, Wallet
from quorate.errors import ChainError
from quorate.localnet.agents import Agents, agents
from quorate.localnet.anvil import anvil
from quorate.localnet.operators import Operators, operators
from quorate.localnet.stage import Stage
from quorate.localnet.tools import Tools
from quorate.operator.config import ModelConfig
from quorate.signatures import keccak
from quorate.units import Address, Hash

from .local import LocalDao, local_dao

__all__ = ["DelegateNet", "DemoResult", "delegate_net", "play"]

SERVICE = Path("services/delegate")
TOKENS = 10
VOTE_TIMEOUT_S = 300.0
DESCRIPTION = """# Reward for the report of a bug in the staking contract

A member found that unbonding stakes were counted twice and wrote it up, with a test that shows it. The treasury pays
{tokens} QRT to {recipient} for the report.
"""
_WORDS = {AGAINST: "AGAINST", FOR: "FOR", ABSTAIN: "ABSTAIN"}
_RATIONALE = re.compile(r"keccak256 (0x[0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What `./quorate demo --json` prints."""

    proposal_id: str
    governor: Address
    safe: Address
    support: int
    """As the Governor counts: 0 against, 1 for, 2 abstain."""
    choice: str
    reason: str
    rationale_hash: Hash
    """keccak256 of `rationale_file`."""
    rationale_file: str
    vote_tx: Hash
    vote_gas: int
    agents: list[Address]
    operators: list[Address]
    rounds: int
    seconds: float
    """From the command's start to the end of the story."""
    seconds_to_vote: float
    """From the proposal made to the vote mined."""
    executed: bool
    recipient: Address
    chain_url: str
    logs: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class DelegateNet:
    """A whole delegate service on this machine: EVM chain, DAO, operators, agents."""

    dao: LocalDao
    operators: Operators
    agents: Agents


@asynccontextmanager
async def delegate_net(
    on: Stage,
    tools: Tools,
    root: Path,
    *,
    count: int = 4,
    models: Sequence[Sequence[ModelConfig]] | None = None,
    config: Mapping[str, Any] | None = None,
) -> AsyncIterator[DelegateNet]:
    """Start all of it; the model servers load while the agents start. Everything is stopped at the end of the block.

    `models` is what each of the two operators serves (by default vLLMs of their own); `config` overrides service.yaml.
    """
    wallets = [Wallet.create() for _ in range(count)]
    on.name({wallet.address: f"agent-{number}" for number, wallet in enumerate(wallets, 1)})
    async with AsyncExitStack() as stack:
        with on.step("start an EVM chain (anvil); deploy token, Governor, Timelock, registry and the agents' Safe"):
            node = await stack.enter_async_context(anvil(on.supervisor, tools.anvil))
            dao = await stack.enter_async_context(local_dao(node, wallets))
        on.name({dao.safe.address: "the Safe"})
        providers = await stack.enter_async_context(
            operators(on.supervisor, on.run, tools=tools, evm=dao.evm, wallets=dao.operators, models=models)
        )
        on.name(providers.names)
        with on.step(f"start {count} agents (open-aea), each with its CometBFT validator"):
            quorum = await stack.enter_async_context(
                agents(
                    on.supervisor,
                    on.run,
                    root=root,
                    service=SERVICE,
                    wallets=wallets,
                    cometbft=tools.cometbft,
                    evm=dao.evm,
                    config=dao.delegate_config | dict(config or {}),
                )
            )
        with on.step("wait for the operators: model servers load, register and stake"):
            await providers.wait_until_registered()
        yield DelegateNet(dao, providers, quorum)


async def play(on: Stage, net: DelegateNet, *, began: float, note: Callable[[str], None] | None = None) -> DemoResult:
    """Make the proposal, wait for the vote, enact the proposal, and tell what came of it. `began`: time.monotonic()."""
    tell = note or on.note
    dao, recipient = net.dao, Wallet.create().address
    description = DESCRIPTION.format(tokens=TOKENS, recipient=recipient)
    proposal = await dao.propose([dao.payment(recipient, TOKENS)], description)
    proposed = time.monotonic()
    tell(f"proposal {_short(proposal.id)}: pay {TOKENS} QRT from the treasury to {recipient}")
    tell(f"the local chain's clock is moved by {_span(await dao.open_votes(proposal))}: votes are open")
    with on.step("the agents read, judge, agree and vote"):
        settled = _settlements(on)
        vote = await dao.wait_for_vote(proposal, VOTE_TIMEOUT_S)
        await _agents_have_seen_it(on, settled)
    seconds_to_vote = time.monotonic() - proposed
    rationale_hash, rationale_file = _collect_rationale(on, net, vote)
    receipt = await dao.chain.wait(vote.transaction)
    executed = await _enact(tell, dao, proposal) if vote.support == FOR else False
    return DemoResult(
        proposal_id=str(proposal.id),
        governor=dao.contracts.governor,
        safe=dao.safe.address,
        support=int(vote.support),
        choice=_WORDS[vote.support],
        reason=vote.reason,
        rationale_hash=rationale_hash,
        rationale_file=str(rationale_file),
        vote_tx=vote.transaction,
        vote_gas=receipt.gas_used,
        agents=list(net.agents.addresses),
        operators=[wallet.address for wallet in dao.operators],
        rounds=sum(map(len, on.story.round_ms.values())),
        seconds=round(time.monotonic() - began, 1),
        seconds_to_vote=round(seconds_to_vote, 2),
        executed=executed,
        recipient=recipient,
        chain_url=dao.node.url,
        logs=str(on.run.path),
    )


def _settlements(on: Stage) -> int:
    return len(on.story.round_ms.get("confirm", ()))


async def _agents_have_seen_it(on: Stage, settlements: int) -> None:
    """Wait until a quorum has agreed on what the chain says of its transaction; the chain says it a moment earlier."""
    try:
        async with asyncio.timeout(VOTE_TIMEOUT_S):
            while _settlements(on) == settlements:  # noqa: ASYNC110  (other processes tell the story)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise ChainError(
            f"the vote is on the chain, and after {VOTE_TIMEOUT_S:g} s the agents have not agreed that it is",
            fix=f"What they said is in {on.run.events} and {on.run.logs}.",
        ) from None


async def _enact(tell: Callable[[str], None], dao: LocalDao, proposal: Proposal) -> bool:
    tell(f"the clock is moved by {_span(await dao.close_votes(proposal))}: voting ends, the proposal has passed")
    skipped = await dao.enact(proposal)
    tell(f"queued; the clock is moved by {_span(skipped)}, the timelock's delay; executed")
    return await dao.is_executed(proposal)


def _collect_rationale(on: Stage, net: DelegateNet, vote: VoteCast) -> tuple[Hash, Path]:
    """The rationale that the vote's reason names, the same on all agents, copied to where the user finds it."""
    found = _RATIONALE.search(vote.reason)
    if found is None:
        raise ChainError(f"the vote's reason names no rationale: {vote.reason!r}")
    digest = Hash(found.group(1))
    copies = [file.evidence_dir / f"rationale-{digest}.json" for file in net.agents.files.values()]
    contents = {path.read_bytes() for path in copies if path.exists()}
    if len(contents) != 1 or "0x" + keccak(next(iter(contents))).hex() != digest:
        raise ChainError(f"the agents hold {len(contents)} rationales for {digest}; expected one with that hash")
    target = on.run.path / "rationale.json"
    target.write_bytes(contents.pop())
    return digest, target


def _short(number: int) -> str:
    text = str(number)
    return text if len(text) <= 12 else f"{text[:6]}…{text[-4:]}"


def _span(seconds: int) -> str:
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    parts = [(days, "day"), (hours, "hour"), (rest // 60, "minute"), (rest % 60, "second")]
    told = [f"{count} {unit}{'s' if count > 1 else ''}" for count, unit in parts if count]
    return " ".join(told[:2]) or "nothing"
