"""What an EVM node answers over JSON-RPC, when it lies."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, cast

from eth_abi.abi import encode

from quorate.chain import Chain, Governor, OperatorRegistry, Safe, Timelock, Token, Wallet, load_abi
from quorate.chain.client import RawLog, Receipt
from quorate.errors import ChainError
from quorate.host.journal import Journal
from quorate.host.settler import SafeSettler
from quorate.host.signer import Signer
from quorate.rounds.settle import Intent
from quorate.signatures import keccak
from quorate.units import Address, Call, Hash, Wei
from tests.fuzz.engine import Target, label_of, mutate_bytes, mutate_json

__all__ = ["RpcReplies"]

_A = Address("0x" + "12" * 20)
_HASH = Hash("0x" + "ab" * 32)
_WALLET = Wallet.from_key(b"\x01" * 32)
_PAYMENT = Call(_A, Wei(1), "0x")
_INTENT = Intent((Call(_A, Wei(0), "0x12345678"),), 3, 10)
_BLOCK = {"number": "0x10", "hash": _HASH, "timestamp": "0x64", "baseFeePerGas": "0x3b9aca00"}


class RpcReplies(Target):
    """Every question that `quorate.chain` asks, answered by a liar: a value of our types, or a `ChainError`.

    The input is JSON: which question, and the replies that it gets, over and over.
    """

    name = "rpc_replies"

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._provider = _Liar()
        self._questions = self._loop.run_until_complete(_questions(self._provider))

    def seeds(self) -> Iterable[bytes]:
        for name, replies in _replies().items():
            yield json.dumps({"ask": name, "replies": [{"result": reply} for reply in replies]}).encode()
        for message, data in (("execution reverted", "0x08c379a0"), ("nonce too low", None), ("underpriced", [])):
            error = {"code": 3, "message": message, "data": data}
            yield json.dumps({"ask": "send_raw", "replies": [{"error": error}]}).encode()

    def mutate(self, data: bytes, other: bytes, rng: random.Random) -> bytes:
        """Mostly one reply, sometimes another question; in long hex texts single words of 32 bytes."""
        try:
            asked = json.loads(data)
            replies = asked["replies"]
            at = rng.randrange(len(replies))
            if rng.random() < 0.1:
                asked["ask"] = rng.choice(sorted(self._questions))
            elif rng.random() < 0.2:
                replies.insert(at, rng.choice(json.loads(other)["replies"]))
            elif isinstance(replies[at].get("result"), str) and rng.random() < 0.8:
                replies[at]["result"] = _with_other_word(replies[at]["result"], rng)
            else:
                replies[at] = mutate_json(replies[at], rng)
            return json.dumps(asked).encode()
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return mutate_bytes(data, other, rng)

    def run(self, data: bytes) -> str:
        try:
            asked = json.loads(data)
            name, replies = asked["ask"], asked["replies"]
            question = self._questions[name]
        except (ValueError, KeyError, TypeError, RecursionError):
            return "no question"
        if not isinstance(replies, list) or not replies:
            return "no replies"
        self._provider.begin(replies)
        try:
            found = self._loop.run_until_complete(question())
        except ChainError as error:
            return f"{name}: {_refused(error)}"
        _require_sound(found)
        return f"{name}: {type(found).__name__}"

    def close(self) -> None:
        self._loop.close()


def _refused(error: ChainError) -> str:
    assert len(error.message) < 3_000, "a node's words are not cut short"
    return label_of(error)


class _Liar:
    """Gives the replies in turn, without end, and counts how often it was asked."""

    def begin(self, replies: list[Any]) -> None:
        self._replies, self._asked = replies, 0

    async def make_request(self, method: Any, params: Any) -> Any:
        self._asked += 1
        assert self._asked < 150_000, "a question that never ends"
        return self._replies[(self._asked - 1) % len(self._replies)]

    async def disconnect(self) -> None:
        """Nothing is connected."""


_Question = Callable[[], Awaitable[Any]]


async def _questions(provider: _Liar) -> dict[str, _Question]:
    chain = Chain(provider, 31337, "http://liar")
    governor, registry, token = Governor(chain, _A), OperatorRegistry(chain, _A), Token(chain, _A)
    safe, timelock, abi = Safe(chain, _A), Timelock(chain, _A), load_abi("QuorateToken")
    settler = SafeSettler(chain, _A, cast(Signer, None), cast(Journal, _Silent()), confirmations=2)

    async def receipt_logs() -> Any:
        receipt = await chain.receipt(_HASH)
        return receipt and receipt.logs(load_abi("QuorateGovernor"), "ProposalCreated", _A)

    async def calls_of_proposals() -> Any:
        return [proposal.calls for proposal in await governor.proposals(0, 5)]

    return {
        "block": chain.block,
        "block_number": chain.block_number,
        "balance": lambda: chain.balance(_A),
        "code": lambda: chain.code(_A),
        "storage": lambda: chain.storage(_A, 0),
        "count": lambda: chain.transaction_count(_A),
        "receipt": lambda: chain.receipt(_HASH),
        "receipt_logs": receipt_logs,
        "wait": lambda: chain.wait(_HASH, timeout_s=0, confirmations=1),
        "fees": chain.fees,
        "sign": lambda: chain.sign(_WALLET, _PAYMENT),
        "send_raw": lambda: chain.send_raw(b"\x02"),
        "simulate": lambda: chain.simulate(_PAYMENT, _A),
        "logs": lambda: chain.logs(_A, abi, "Transfer", from_block=1),
        "token": lambda: token.balance_of(_A),
        "delegate": lambda: token.delegate_of(_A),
        "operators": registry.operators,
        "operator": lambda: registry.operator_of(_A),
        "proposals": calls_of_proposals,
        "votes_cast": lambda: governor.votes_cast(0, 5),
        "state": lambda: governor.state(1),
        "tally": lambda: governor.votes(1),
        "has_voted": lambda: governor.has_voted(1, _A),
        "min_delay": timelock.min_delay,
        "safe_check": lambda: safe.check([_A], 1),
        "safe_owners": safe.owners,
        "safe_simulate": lambda: safe.simulate([_PAYMENT, _PAYMENT]),
        "safe_outcome": lambda: safe.outcome(_HASH, 1, 9),
        "safe_execution": lambda: safe.execution_at(3, 1, 9),
        "next_nonce": settler.next_nonce,
        "can_succeed": lambda: settler.can_succeed(_INTENT, 7),
        "outcome": lambda: settler.outcome((_INTENT,)),
    }


class _Silent:
    """A journal that nobody reads."""

    def emit(self, kind: str, **fields: Any) -> None: ...

    def waiting(self, what: str, why: object) -> None: ...


def _replies() -> Mapping[str, list[Any]]:
    """For each question, replies of an honest node."""
    word = "0x" + "00" * 31 + "05"
    topics = [_topic("Transfer(address,address,uint256)"), "0x" + "00" * 12 + "12" * 20, "0x" + "00" * 32]
    receipt = {
        **{"transactionHash": _HASH, "blockNumber": "0x5", "blockHash": _HASH, "status": "0x1", "gasUsed": "0x5208"},
        **{"effectiveGasPrice": "0x7", "from": _A, "contractAddress": None, "logs": [_log(topics, word)]},
    }
    created = _proposal_log()
    operator = (_A, _A, "http://o", [("m", b"\x01" * 32)], 5, 0, 0, False)
    cast_topics = [_topic("VoteCast(address,uint256,uint8,uint256,string)"), topics[1]]
    cast = _log(cast_topics, _hex(encode(["uint256", "uint8", "uint256", "string"], [1, 2, 3, "why"])))
    success = _log([_topic("ExecutionSuccess(bytes32,uint256)"), _HASH], word)
    kinds = "(address,address,string,(string,bytes32)[],uint256,uint256,uint256,bool)"
    return {
        "block": [_BLOCK], "block_number": ["0x10"], "balance": ["0x10"], "code": ["0x6001"], "storage": [word],
        "count": ["0x5"], "receipt": [receipt], "receipt_logs": [{**receipt, "logs": [created]}],
        "wait": [{**receipt, "status": "0x0"}, "0x9", {"to": _A, "value": "0x0", "input": "0x"}, "0x"],
        "fees": [_BLOCK, "0x2"], "sign": ["0x5208", _BLOCK, "0x2", "0x5"], "send_raw": [_HASH], "simulate": ["0x"],
        "logs": ["0x9", [_log(topics, word)]], "token": [word], "delegate": ["0x" + "00" * 12 + "12" * 20],
        "operators": ["0x10", _hex(encode([f"{kinds}[]"], [[operator, operator]]))],
        "operator": [_hex(encode([kinds], [operator]))],
        "proposals": [[created]], "votes_cast": [[cast]], "state": [word], "tally": [word + "00" * 64],
        "has_voted": ["0x" + "00" * 31 + "01"], "min_delay": [word], "safe_check": [word, "0x60"],
        "safe_owners": [_hex(encode(["address[]"], [[_A]]))],
        "safe_simulate": ["0x10", "0x"], "safe_outcome": [[success], receipt],
        "safe_execution": [[], receipt], "next_nonce": ["0x9", word, word], "can_succeed": ["0x"],
        "outcome": ["0x9", word, [success], {**receipt, "logs": [success]}],
    }  # fmt: skip


def _proposal_log() -> dict[str, Any]:
    kinds = ["uint256", "address", "address[]", "uint256[]", "string[]", "bytes[]", "uint256", "uint256", "string"]
    values = [1, _A, [_A, _A], [0, 1], ["", ""], [b"", b"\x01"], 5, 6, "words"]
    return _log([_topic(f"ProposalCreated({','.join(kinds)})")], _hex(encode(kinds, values)))


def _log(topics: list[str], data: str) -> dict[str, Any]:
    return {"address": _A, "topics": topics, "data": data, "blockNumber": "0x5", "transactionHash": _HASH}


def _topic(signature: str) -> str:
    return _hex(keccak(text=signature))


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


def _with_other_word(text: str, rng: random.Random) -> str:
    """Encoded values with another word of 32 bytes in one place: lengths and offsets are such words."""
    words = (len(text) - 2) // 64
    number = rng.choice((0, 1, 0x20, 0x40, 0x60, words * 32, rng.randrange(2**16), 2**255, 2**256 - 1))
    at = 2 + 64 * rng.randint(0, max(0, words))
    return text[:at] + f"{number:064x}" * rng.choice((1, 1, 3, 20)) + text[at + 64 :]


def _require_sound(found: Any) -> None:
    """Numbers that are no less than 0, and hashes and addresses in their one form, wherever they stand."""
    if isinstance(found, (list, tuple)):
        for one in found:
            _require_sound(one)
    elif isinstance(found, int):
        assert found >= 0, f"{found} is below 0"
    elif isinstance(found, (Receipt, RawLog)):
        for name in ("transaction", "block_hash"):
            text = getattr(found, name, _HASH)
            assert len(text) == 66, f"{name} is {text!r}"
            assert set(text[2:]) <= set("0123456789abcdef"), f"{name} is {text!r}"
        _require_sound([found.block, *getattr(found, "raw_logs", ())])
