"""What the client makes of a node's answers, good and bad."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from quorate.chain import CallReverted, Fees, NonceTooLow, Wallet, load_abi
from quorate.chain.revert import explain
from quorate.errors import ChainError, ConfigError, Underpriced, Unreachable
from quorate.signatures import keccak
from quorate.units import Address, Call, Hash, Wei
from tests.unit.scripted_chain import scripted_chain

A = Address("0x" + "12" * 20)
PAYMENT = Call(A, Wei(1), "0x")
WALLET = Wallet.from_key(b"\x01" * 32)
BLOCK = {"number": "0x10", "hash": "0x" + "11" * 32, "timestamp": "0x64", "baseFeePerGas": "0x3b9aca00"}
READY = {
    "eth_getBlockByNumber": BLOCK,
    "eth_maxPriorityFeePerGas": "0x2",
    "eth_getTransactionCount": "0x5",
    "eth_estimateGas": "0x5208",
}


def _error(message: str, data: str | None = None, code: int = -32000) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "data": data}}


def _receipt(transaction: str, block: int = 16, status: str = "0x1") -> dict[str, Any]:
    return {
        "transactionHash": transaction,
        "blockNumber": hex(block),
        "blockHash": "0x" + "22" * 32,
        "status": status,
        "gasUsed": "0x5208",
        "from": WALLET.address.lower(),
        "contractAddress": None,
        "logs": [],
    }


@pytest.mark.parametrize(
    "failure",
    [aiohttp.ClientConnectionError("refused"), TimeoutError(), ValueError("no JSON"), OSError("network is down")],
)
async def test_a_node_that_does_not_answer_is_unreachable(failure: Exception) -> None:
    with pytest.raises(Unreachable, match="http://scripted gave no answer to eth_blockNumber"):
        await scripted_chain({"eth_blockNumber": failure}).block_number()


async def test_a_node_that_is_dead_at_first_is_asked_for_its_chain_once_it_answers_and_once_only() -> None:
    answers: dict[str, Any] = {"eth_chainId": OSError("connection refused"), "eth_blockNumber": "0x10"}
    chain = scripted_chain(answers, is_known=False)
    for _ in range(2):
        with pytest.raises(Unreachable, match="gave no answer to eth_chainId"):
            await chain.block_number()
    answers["eth_chainId"] = "0x7a69"
    assert [await chain.block_number() for _ in range(2)] == [16, 16]
    asked = [method for method, _ in chain._provider.asked]  # type: ignore[attr-defined]
    assert asked == ["eth_chainId"] * 3 + ["eth_blockNumber"] * 2


async def test_a_node_of_another_chain_is_sent_nothing() -> None:
    chain = scripted_chain({"eth_chainId": "0x1"}, is_known=False)
    for ask in (chain.check, chain.block_number, lambda: chain.send_raw(b"\x01")):
        with pytest.raises(ConfigError, match="http://scripted serves chain 1; expected chain 31337"):
            await ask()
    assert {method for method, _ in chain._provider.asked} == {"eth_chainId"}  # type: ignore[attr-defined]


async def test_an_answer_that_is_no_json_rpc_is_unreachable() -> None:
    chain = scripted_chain({})
    chain._provider.make_request = lambda *_: _answer(["nonsense"])  # type: ignore[method-assign]
    with pytest.raises(Unreachable, match="no JSON-RPC"):
        await chain.block_number()


async def _answer(value: Any) -> Any:
    return value


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("nonce too low: next nonce 6, tx nonce 5", NonceTooLow),
        ("replacement transaction underpriced", Underpriced),
        ("transaction underpriced: gas tip cap 0, minimum needed 1", Underpriced),
        ("max fee per gas less than block base fee", Underpriced),
        ("the method is rate limited", ChainError),
    ],
)
async def test_a_refusal_is_told_by_what_the_caller_can_do(message: str, kind: type[ChainError]) -> None:
    answers = {"eth_sendRawTransaction": _error(message), "eth_getTransactionReceipt": None}
    with pytest.raises(kind) as refused:
        await scripted_chain(answers).send_raw(b"\x02")
    assert type(refused.value) is kind
    assert message in str(refused.value)


async def test_a_transaction_that_the_node_knows_or_has_mined_counts_as_sent() -> None:
    expected = "0x" + keccak(b"\x02").hex()
    known = {"eth_sendRawTransaction": _error("already known")}
    assert await scripted_chain(known).send_raw(b"\x02") == expected
    mined = {"eth_sendRawTransaction": _error("nonce too low"), "eth_getTransactionReceipt": _receipt(expected)}
    assert await scripted_chain(mined).send_raw(b"\x02") == expected


async def test_a_nonce_that_another_process_took_is_replaced_by_the_next() -> None:
    counts = iter(["0x5", "0x6"])
    refusals = iter([_error("nonce too low"), "0x" + "00" * 32])
    chain = scripted_chain(
        READY
        | {
            "eth_getTransactionCount": lambda *_: next(counts),
            "eth_sendRawTransaction": lambda *_: next(refusals),
            "eth_getTransactionReceipt": None,
        }
    )
    sent = await chain.send(WALLET, PAYMENT)
    assert sent == (await chain.sign(WALLET, PAYMENT, nonce=6)).hash


async def test_a_transaction_is_complete_and_estimated_with_a_quarter_to_spare() -> None:
    prepared = await scripted_chain(READY).prepare(PAYMENT, A)
    assert prepared == {
        "to": A,
        "data": "0x",
        "value": 1,
        "chainId": 31337,
        "nonce": 5,
        "gas": 26250,
        "maxFeePerGas": 2 * 10**9 + 2,
        "maxPriorityFeePerGas": 2,
        "type": 2,
    }


def test_a_replacement_raises_both_fees_by_at_least_an_eighth() -> None:
    assert Fees(Wei(80), Wei(1)).bumped(Wei(100)) == Fees(Wei(90), Wei(2))
    with pytest.raises(Underpriced, match="a fee of 90 wei, above the ceiling of 89"):
        Fees(Wei(80), Wei(1)).bumped(Wei(89))


async def test_a_failed_transaction_is_explained_by_replaying_it_on_the_block_before() -> None:
    error = load_abi("OperatorRegistry").errors[keccak(text="StakeTooSmall(uint256,uint256)")[:4]]
    data = "0x" + (error.selector + bytes(31) + b"\x01" + bytes(31) + b"\x02").hex()
    asked = []

    def call(parameters: dict[str, str], block: str) -> dict[str, Any]:
        asked.append((parameters["from"], block))
        return _error("execution reverted", data, 3)

    transaction = Hash("0x" + "33" * 32)
    chain = scripted_chain(
        {
            "eth_getTransactionReceipt": _receipt(transaction, status="0x0"),
            "eth_getTransactionByHash": {"to": A, "value": "0x0", "input": "0x"},
            "eth_call": call,
        }
    )
    with pytest.raises(CallReverted, match=r"StakeTooSmall\(stake: 1, amount: 2\)") as failed:
        await chain.wait(transaction)
    assert (failed.value.error, failed.value.arguments) == ("StakeTooSmall", {"stake": 1, "amount": 2})
    assert failed.value.transaction == transaction
    assert asked == [(WALLET.address, "0xf")]


async def test_logs_are_asked_for_in_spans_that_providers_take() -> None:
    spans = []

    def logs(question: dict[str, Any]) -> list[Any]:
        spans.append((int(question["fromBlock"], 16), int(question["toBlock"], 16)))
        return []

    chain = scripted_chain({"eth_getLogs": logs, "eth_blockNumber": hex(25_000)})
    await chain.logs(A, load_abi("QuorateGovernor"), "VoteCast", from_block=5)
    assert spans == [(5, 10_004), (10_005, 20_004), (20_005, 25_000)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no reason was given"),
        (b"\xde\xad\xbe\xef", "an error that we do not know, 0xdeadbeef"),
        (keccak(text="Panic(uint256)")[:4] + bytes(31) + b"\x11", "an arithmetic overflow"),
        (keccak(text="Error(string)")[:4] + b"\x01", "an error that we do not know"),
        (keccak(text="NotRegistered(address)")[:4] + bytes(12) + b"\x12" * 20, f"NotRegistered(operator: {A})"),
    ],
)
def test_revert_data_is_said_in_words_and_never_guessed(data: bytes, words: str) -> None:
    assert words in explain(data)[2]


def test_a_contracts_own_words_are_bounded_and_escaped() -> None:
    text = b"\x1b[31m" + b"x" * 1000
    padded = text + bytes(-len(text) % 32)
    data = keccak(text="Error(string)")[:4] + bytes(31) + b"\x20" + len(text).to_bytes(32, "big") + padded
    words = explain(data)[2]
    assert len(words) < 250
    assert "\x1b" not in words
