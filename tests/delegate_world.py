"""What a delegate service acts on, in memory: a Governor, the agents' Safe, and operators whose words a test chooses.

The chain's own wrappers (`Governor`, `SafeTransaction`, decoding) are the real ones; only what a node, a Safe contract
and an operator would answer is scripted here. `World.votes` holds every vote that the Governor counted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from eth_abi.abi import encode
from eth_account import Account

from quorate.chain import Abi, Log, SafeTransaction, load_abi, selector_of
from quorate.errors import Malformed, Reverted, Unreachable
from quorate.model import Answer, Embedding, ModelClient, Receipt, Schema
from quorate.rounds.settle import Intent, SafeSignature, Settlement
from quorate.signatures import keccak, recover
from quorate.units import Address, Call, Hash, Wei
from services.delegate.service import DelegateConfig

ONE = 10**18
CHAIN_ID = 31337
TOKEN, GOVERNOR, TREASURY, SAFE, PAYEE, REGISTRY, OPERATOR = (Address("0x" + digit * 40) for digit in "1234567")
CONFIG = DelegateConfig(
    safe=SAFE,
    governor=GOVERNOR,
    token=TOKEN,
    treasury=TREASURY,
    policy_file="dao/policies/treasury.yaml",
    embedding_model="embedder",
    language_model="talker",
)
ACCOUNTS = sorted((Account.from_key(bytes([n]) * 32) for n in range(1, 5)), key=lambda account: str(account.address))
AGENTS = [Address(account.address) for account in ACCOUNTS]
THRESHOLD = 3


def call(target: Address, signature: str, *arguments: object, value: int = 0) -> Call:
    types = signature.partition("(")[2][:-1]
    data = selector_of(signature) + encode(types.split(",") if types else [], arguments).hex()
    return Call(target, Wei(value), data)


def pay(tokens: int) -> Call:
    return call(TOKEN, "transfer(address,uint256)", PAYEE, tokens * ONE)


MINT = call(TOKEN, "mint(address,uint256)", PAYEE, ONE)


@dataclass(frozen=True)
class Vote:
    """A vote that the Governor counted, and which agent's transaction brought it."""

    proposal: int
    support: int
    reason: str
    sender: Address


@dataclass
class World:
    """One EVM chain, as far as the delegates' agents see it."""

    votes: list[Vote] = field(default_factory=list)
    sent: list[tuple[Address, Intent, Mapping[Address, SafeSignature]]] = field(default_factory=list)
    """Every transaction that some keeper sent, mined or not."""
    closed: set[int] = field(default_factory=set)
    """Proposals on which nobody may vote any more."""
    unreachable: set[Address] = field(default_factory=set)
    """Agents whose node does not answer."""
    loses: int = 0
    """How many of the next transactions are sent but not mined."""
    nonce: int = 0
    block: int = 100
    events: list[tuple[Address, str, dict[str, Any]]] = field(default_factory=list)
    files: dict[Address, dict[str, bytes]] = field(default_factory=dict)
    _proposals: list[dict[str, Any]] = field(default_factory=list)
    _settled: dict[Intent, Settlement] = field(default_factory=dict)

    def propose(self, description: str, *calls: Call) -> int:
        """A new proposal that is open for votes; its id."""
        self.block += 1
        number = int.from_bytes(keccak(text=f"{len(self._proposals)}"), "big")
        self._proposals.append({
            "proposalId": number,
            "proposer": PAYEE,
            "targets": tuple(one.to for one in calls),
            "values": tuple(one.value for one in calls),
            "signatures": ("",) * len(calls),
            "calldatas": tuple(bytes.fromhex(one.data[2:]) for one in calls),
            "voteStart": 1,
            "voteEnd": 2,
            "description": description,
        })  # fmt: skip
        return number

    def context(self, model: ScriptedModel) -> Callable[[Address], Mapping[str, Any]]:
        """What `quorate.testing.Network` gives to each agent."""

        def of(me: Address) -> Mapping[str, Any]:
            return {
                "chain": ScriptedChain(self, me),
                "settler": ScriptedSettler(self, me),
                "model": model,
                "emit": lambda kind, **fields: self.events.append((me, kind, fields)),
                "keep": lambda name, content: self.files.setdefault(me, {}).update({name: content}),
            }

        return of

    def mine(self, sender: Address, intent: Intent, signatures: Mapping[Address, SafeSignature]) -> None:
        """What the Safe's and the Governor's code would do with the transaction; raises Reverted."""
        digest = SafeTransaction(intent.calls, intent.nonce).digest(CHAIN_ID, SAFE)
        if intent.nonce != self.nonce:
            raise Reverted("GS026")
        owners = {who for who, one in signatures.items() if recover(digest, _bytes(one.signature)) == who}
        if len(owners & set(AGENTS)) < THRESHOLD or len(owners) != len(signatures):
            raise Reverted("GS020")
        for one in intent.calls:
            self._vote(sender, one)
        self.nonce += 1
        self.block += 1
        self._settled[intent] = Settlement(
            0, Hash("0x" + keccak(digest).hex()), self.block, 80_000, True, sender, Hash("0x" + digest.hex())
        )

    def outcome(self, unsettled: Sequence[Intent]) -> Settlement | None:
        """The Safe's nonce, and which of these intents used it up."""
        if self.nonce <= unsettled[0].nonce:
            return None
        for which, intent in enumerate(unsettled):
            if intent in self._settled:
                return replace(self._settled[intent], which=which)
        return Settlement(-1, Hash("0x" + "00" * 32), self.block, 0, True, PAYEE)

    def can_succeed(self, intent: Intent) -> bool:
        """Whether the Governor would take the votes."""
        function = load_abi("QuorateGovernor").function("castVoteWithReason", 3)
        votes = [function.decode_arguments(_bytes(one.data)[4:])[0] for one in intent.calls]
        return not any(vote in self.closed or self.has_voted(vote) for vote in votes)

    def has_voted(self, proposal: int) -> bool:
        return any(vote.proposal == proposal for vote in self.votes)

    def _vote(self, sender: Address, one: Call) -> None:
        function = load_abi("QuorateGovernor").function("castVoteWithReason", 3)
        if one.to != GOVERNOR or one.data[:10] != "0x" + function.selector.hex():
            raise Reverted("the scripted Safe only votes")
        proposal, support, reason = function.decode_arguments(_bytes(one.data)[4:])
        if proposal in self.closed or self.has_voted(proposal):
            raise Reverted("GS013")
        self.votes.append(Vote(proposal, support, reason, sender))


class ScriptedChain:
    """Answers what `quorate.chain.Governor` asks of a node."""

    chain_id = CHAIN_ID

    def __init__(self, world: World, me: Address) -> None:
        self._world, self._me = world, me

    async def block_number(self) -> int:
        self._answer(GOVERNOR)
        return self._world.block

    async def logs(self, address: Address, abi: Abi, event: str, **_: Any) -> tuple[Log, ...]:
        self._answer(address)
        assert event == "ProposalCreated"
        made = self._world._proposals
        return tuple(Log(address, event, one, 1, Hash("0x" + "00" * 32)) for one in made)

    async def read(self, address: Address, abi: Abi, function: str, *arguments: Any, block: Any = "latest") -> Any:
        self._answer(address)
        proposal = arguments[0]
        if function == "state":
            return 4 if proposal in self._world.closed else 1
        assert (function, arguments[1]) == ("hasVoted", SAFE)
        return self._world.has_voted(proposal)

    def _answer(self, address: Address) -> None:
        assert address == GOVERNOR
        if self._me in self._world.unreachable:
            raise Unreachable("the node does not answer")


class ScriptedSettler:
    """One agent's way to the Safe, with its real key."""

    def __init__(self, world: World, me: Address) -> None:
        self._world, self._me = world, me

    async def newest(self) -> tuple[int, int]:
        return await self.next_nonce()

    async def next_nonce(self) -> tuple[int, int]:
        return self._world.nonce, self._world.block

    async def can_succeed(self, intent: Intent, block: int | None = None) -> bool:
        return self._world.can_succeed(intent)

    async def sign(self, intent: Intent) -> SafeSignature:
        digest = SafeTransaction(intent.calls, intent.nonce).digest(CHAIN_ID, SAFE)
        signature = ACCOUNTS[AGENTS.index(self._me)].unsafe_sign_hash(digest).signature
        return SafeSignature(Hash("0x" + digest.hex()), "0x" + bytes(signature).hex())

    async def is_owner(self) -> bool:
        return True

    async def push(self, intent: Intent, signatures: Mapping[Address, SafeSignature]) -> None:
        if (self._me, intent, signatures) in self._world.sent:
            return
        self._world.sent.append((self._me, intent, signatures))
        if self._world.loses:
            self._world.loses -= 1
        elif self._world.can_succeed(intent):
            self._world.mine(self._me, intent, signatures)

    async def outcome(self, unsettled: tuple[Intent, ...], *, final: bool = False) -> Settlement | None:
        return self._world.outcome(unsettled)


class ScriptedModel(ModelClient):
    """Operators that sign whatever a test lets them say; by default a sensible pair.

    A title with "audit" is near to what the policy welcomes, one with "insider" to what it forbids, any other to both.
    """

    def __init__(
        self,
        *,
        vectors: Callable[[Sequence[str]], Sequence[Sequence[float]]] | None = None,
        words: Callable[[Sequence[Any]], str] = lambda _: json.dumps({"summary": "It pays somebody for something."}),
    ) -> None:
        self.vectors = vectors or sensible_vectors
        self.words = words
        self.fails: dict[str, Exception] = {}
        """By "embed" or "chat": what is raised in place of an answer."""
        self.asked: list[tuple[str, Any]] = []

    async def embed(self, texts: Sequence[str], model: str) -> Embedding:
        self._hear("embed", list(texts))
        found = tuple(tuple(vector) for vector in self.vectors(texts))
        return Embedding(found, receipt_of(model, repr(found)), b"", (), 0.0)

    async def chat(self, messages: Any, schema: Any = None, *, model: str, **_: Any) -> Answer[Any]:
        self._hear("chat", messages)
        text = self.words(messages)
        try:
            value = None if schema is None else Schema.of(schema).parse(text)
        except Malformed as error:
            raise Malformed(f"no operator gave an answer of {model!r} that counts ({error})") from None
        return Answer(text, value, receipt_of(model, text), b"", (), 0.0)

    def _hear(self, what: str, content: Any) -> None:
        self.asked.append((what, content))
        if what in self.fails:
            raise self.fails[what]


def sensible_vectors(texts: Sequence[str]) -> list[list[float]]:
    purpose, *sentences = texts
    toward = [1.0, 0.0] if "audit" in purpose else [0.0, 1.0] if "insider" in purpose else [1.0, 1.0]
    welcome = len(CONFIG.policy.welcome)
    return [toward, *([1.0, 0.0] if i < welcome else [0.0, 1.0] for i in range(len(sentences)))]


def receipt_of(model: str, answer: str) -> Receipt:
    nothing = Hash("0x" + "00" * 32)
    return Receipt(
        chain_id=CHAIN_ID,
        registry=REGISTRY,
        operator=OPERATOR,
        client=AGENTS[0],
        model=model,
        manifest_hash=nothing,
        request_hash=nothing,
        answer_hash=Hash("0x" + keccak(answer.encode(errors="replace")).hex()),
        prompt_tokens=1,
        completion_tokens=1,
        issued_at=1,
        nonce=nothing,
    )


class AtOnce(ThreadPoolExecutor):
    """Runs what langchain hands to threads in the caller: a simulation must not depend on who is faster."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def run_threads_at_once() -> None:
    """From here on nothing in the running loop leaves its thread."""
    asyncio.get_running_loop().set_default_executor(AtOnce(1))


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])
