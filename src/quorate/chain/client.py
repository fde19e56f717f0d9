"""An EVM chain, asked over JSON-RPC. Reads ask; `send` signs with a wallet and never knows why.

web3's asynchronous HTTP provider carries the requests. Its contract classes are not used: they fetch what a contract
tells them to (CCIP read) and hide revert data, and an ABI of ours decodes both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self
from urllib.parse import urlsplit

import aiohttp
from eth_utils.address import to_checksum_address
from web3 import AsyncHTTPProvider
from web3.providers.rpc.utils import ExceptionRetryConfiguration

from quorate.chain.abi import Abi, Event
from quorate.chain.revert import CallReverted
from quorate.chain.wallet import Wallet
from quorate.errors import ChainError, ConfigError, Underpriced, Unreachable
from quorate.signatures import keccak
from quorate.units import Address, Call, Hash, Wei

__all__ = ["At", "Block", "Chain", "Fees", "Log", "NonceTooLow", "Provider", "Receipt", "Signed"]

At = int | Literal["latest", "safe", "finalized", "pending"]
"""A block by its number or by its standing."""

_LOG_SPAN = 10_000  # blocks a request; many providers refuse more
_POLL_S = 0.1
_NONCE_TRIES = 5


class Provider(Protocol):
    """What carries a JSON-RPC request (web3's AsyncHTTPProvider; a script in unit tests)."""

    async def make_request(self, method: Any, params: Any) -> Any: ...

    async def disconnect(self) -> None: ...


class NonceTooLow(ChainError):
    """The account has sent a transaction with this nonce already."""


@dataclass(frozen=True)
class Block:
    """A block's place, time (seconds since 1970) and base fee."""

    number: int
    hash: Hash
    timestamp: int
    base_fee: Wei


@dataclass(frozen=True)
class Fees:
    """EIP-1559 fees per unit of gas: the most to be paid at all, and the part of it that the block's maker gets."""

    maximum: Wei
    priority: Wei

    def bumped(self, ceiling: Wei) -> Fees:
        """Both fees 12.5 % higher (nodes ask for 10 % of each to replace); raises Underpriced above `ceiling`."""
        bumped = Fees(_eighth_more(self.maximum), _eighth_more(self.priority))
        if bumped.maximum > ceiling:
            raise Underpriced(f"a replacement needs a fee of {bumped.maximum} wei, above the ceiling of {ceiling}")
        return bumped


@dataclass(frozen=True)
class Signed:
    """A signed transaction: its hash is known before it is sent, so it can be looked for whatever happens."""

    hash: Hash
    raw: bytes = field(repr=False)
    nonce: int
    fees: Fees


@dataclass(frozen=True)
class Log:
    """An event that a contract emitted, with its parameters by name."""

    address: Address
    event: str
    arguments: dict[str, Any]
    block: int
    transaction: Hash


@dataclass(frozen=True)
class Receipt:
    """That a transaction is in a block, and what came of it. A reorg can make it vanish: see `Chain.wait`."""

    transaction: Hash
    block: int
    block_hash: Hash
    succeeded: bool
    gas_used: int
    gas_price: Wei
    sender: Address
    created: Address | None
    raw_logs: tuple[dict[str, Any], ...] = field(repr=False)

    def logs(self, abi: Abi, event: str, address: Address) -> tuple[Log, ...]:
        """The events of this kind that the contract at `address` emitted in the transaction."""
        kind = abi.events[event]
        return tuple(
            _log(kind, raw)
            for raw in self.raw_logs
            if raw["address"].lower() == address.lower() and raw["topics"][:1] == [_hex(kind.topic)]
        )


class Chain:
    """A connection to one chain. One instance an event loop; sends of one account are put in order here."""

    def __init__(self, provider: Provider, chain_id: int, where: str) -> None:
        self._provider = provider
        self.chain_id = chain_id
        self.where = where
        self._sending: dict[Address, asyncio.Lock] = {}

    @classmethod
    async def connect(cls, url: str, chain_id: int | None = None, *, timeout_s: float = 20) -> Self:
        """Connects and asks for the chain id; raises Unreachable, or ConfigError if it is not `chain_id`."""
        provider = AsyncHTTPProvider(
            url,
            request_kwargs={"timeout": aiohttp.ClientTimeout(total=timeout_s)},
            exception_retry_configuration=ExceptionRetryConfiguration(
                errors=(aiohttp.ClientConnectionError,), retries=3, backoff_factor=0.1
            ),
        )
        chain = cls(provider, chain_id or 0, _shown_url(url))
        try:
            found = int(await chain.request("eth_chainId"), 16)
        except BaseException:
            await chain.close()
            raise
        if chain_id is not None and found != chain_id:
            await chain.close()
            raise ConfigError(f"{chain.where} serves chain {found}; expected chain {chain_id}", fix="check the URL")
        chain.chain_id = found
        return chain

    async def close(self) -> None:
        await self._provider.disconnect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # What the chain says

    async def block(self, at: At = "latest") -> Block:
        raw = await self.request("eth_getBlockByNumber", _tag(at), False)
        if raw is None:
            raise ChainError(f"{self.where} knows no block {at}")
        base_fee = Wei(int(raw.get("baseFeePerGas") or "0x0", 16))
        return Block(int(raw["number"], 16), Hash(raw["hash"]), int(raw["timestamp"], 16), base_fee)

    async def block_number(self) -> int:
        return int(await self.request("eth_blockNumber"), 16)

    async def timestamp(self, at: At = "latest") -> int:
        """Time of a block in seconds since 1970: the chain's clock, which may differ from this machine's."""
        return (await self.block(at)).timestamp

    async def balance(self, address: Address, at: At = "latest") -> Wei:
        return Wei(int(await self.request("eth_getBalance", address, _tag(at)), 16))

    async def code(self, address: Address, at: At = "latest") -> bytes:
        """The contract's code; empty where there is none."""
        return _bytes(await self.request("eth_getCode", address, _tag(at)))

    async def storage(self, address: Address, slot: int, at: At = "latest") -> bytes:
        return _bytes(await self.request("eth_getStorageAt", address, hex(slot), _tag(at))).rjust(32, b"\0")

    async def transaction_count(self, address: Address, at: At = "pending") -> int:
        """The nonce of the account's next transaction."""
        return int(await self.request("eth_getTransactionCount", address, _tag(at)), 16)

    async def read(self, address: Address, abi: Abi, function: str, *arguments: Any, block: At = "latest") -> Any:
        """What a view function returns (a tuple if several values); raises CallReverted, or ChainError if nobody is
        there.
        """
        call = {"to": address, "data": abi.encode(function, *arguments)}
        answer = await self._call(call, block, f"{function} of {address}")
        if not answer and abi.function(function, len(arguments)).returns:
            raise ChainError(
                f"{function} of {address} on chain {self.chain_id} returned nothing: there is no such contract"
            )
        values = abi.results(function, len(arguments), answer)
        return values[0] if len(values) == 1 else values

    async def simulate(self, call: Call, sender: Address, *, block: At = "latest") -> bytes:
        """What `call` would return if `sender` made it now; raises CallReverted. Sends nothing."""
        return await self._call(_request(call, sender), block, f"the call of {call.to} by {sender}")

    async def logs(
        self,
        address: Address,
        abi: Abi,
        event: str,
        *,
        from_block: int,
        to_block: int | None = None,
        topics: Sequence[bytes | None] = (),
    ) -> tuple[Log, ...]:
        """The events of one kind, oldest first. `topics` filters by indexed parameters, None = any; to the newest block
        if not told.
        """
        kind = abi.events[event]
        last = await self.block_number() if to_block is None else to_block
        wanted = [_hex(kind.topic), *(None if t is None else _hex(t) for t in topics)]
        found: list[Log] = []
        for start in range(from_block, last + 1, _LOG_SPAN):
            end = min(start + _LOG_SPAN - 1, last)
            question = {"address": address, "topics": wanted, "fromBlock": hex(start), "toBlock": hex(end)}
            found += [_log(kind, raw) for raw in await self.request("eth_getLogs", question)]
        return tuple(found)

    async def receipt(self, transaction: Hash) -> Receipt | None:
        """The receipt, or None while the transaction is in no block."""
        raw = await self.request("eth_getTransactionReceipt", transaction)
        return None if raw is None else _receipt(raw)

    async def wait(self, transaction: Hash, *, timeout_s: float = 60, confirmations: int = 0) -> Receipt:
        """The receipt once `confirmations` blocks stand on top of it; a receipt that a reorg took away is waited for
        again.

        Raises CallReverted (with the reason, as far as a replay shows it) if it failed, and ChainError when the time is
        over.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            receipt = await self.receipt(transaction)
            if receipt and await self._is_buried(receipt, confirmations):
                if not receipt.succeeded:
                    raise await self._failure(receipt)
                return receipt
            if time.monotonic() >= deadline:
                state = f"in block {receipt.block}, without its confirmations" if receipt else "in no block"
                raise ChainError(f"transaction {transaction} is still {state} after {timeout_s:g} s")
            await asyncio.sleep(_POLL_S)

    # What we tell the chain

    async def fees(self) -> Fees:
        """Fees with which a transaction is mined soon: twice the base fee, so that six full blocks do not price it
        out.
        """
        base_fee = (await self.block()).base_fee
        priority = int(await self.request("eth_maxPriorityFeePerGas"), 16)
        return Fees(Wei(2 * base_fee + priority), Wei(priority))

    async def estimate(self, call: Call | str, sender: Address) -> int:
        """Gas that `call` (or creation code) needs now; raises CallReverted if it would fail."""
        what = f"the call of {call.to}" if isinstance(call, Call) else "the deployment"
        return int(await self.request("eth_estimateGas", _request(call, sender), what=f"{what} by {sender}"), 16)

    async def prepare(
        self,
        call: Call | str,
        sender: Address,
        *,
        gas: int | None = None,
        nonce: int | None = None,
        fees: Fees | None = None,
    ) -> dict[str, Any]:
        """The transaction, complete but for its signature. Gas is estimated, with a quarter to spare, unless told."""
        limit = gas if gas is not None else await self.estimate(call, sender) * 5 // 4
        fees = fees or await self.fees()
        target: dict[str, Any] = {"data": call, "value": 0}
        if isinstance(call, Call):
            target = {"to": call.to, "data": call.data, "value": call.value}
        return target | {
            "chainId": self.chain_id,
            "nonce": await self.transaction_count(sender) if nonce is None else nonce,
            "gas": limit,
            "maxFeePerGas": fees.maximum,
            "maxPriorityFeePerGas": fees.priority,
            "type": 2,
        }

    async def sign(
        self,
        wallet: Wallet,
        call: Call | str,
        *,
        gas: int | None = None,
        nonce: int | None = None,
        fees: Fees | None = None,
    ) -> Signed:
        """The signed transaction, not sent: note its hash first, then `send_raw`."""
        transaction = await self.prepare(call, wallet.address, gas=gas, nonce=nonce, fees=fees)
        raw = wallet.sign_transaction(transaction)
        paid = Fees(Wei(transaction["maxFeePerGas"]), Wei(transaction["maxPriorityFeePerGas"]))
        return Signed(_hash(raw), raw, transaction["nonce"], paid)

    async def send(self, wallet: Wallet, call: Call | str, *, gas: int | None = None) -> Hash:
        """Signs and sends; returns the hash without waiting for a block. Raises CallReverted if it would fail now.

        Sends of one account from this instance go one after another, each with the next nonce. If another process took
        the nonce meanwhile, it is signed anew: the refused one was never accepted, so nothing is sent twice. Let only
        one process send from an account, though: the very same call by two at the same moment is one transaction.
        """
        async with self._sending.setdefault(wallet.address, asyncio.Lock()):
            for attempt in range(_NONCE_TRIES):
                signed = await self.sign(wallet, call, gas=gas)
                try:
                    return await self.send_raw(signed.raw)
                except (
                    NonceTooLow,
                    Underpriced,
                ):  # underpriced is also what a taken nonce is called while it is pending
                    if attempt == _NONCE_TRIES - 1:
                        raise
                    await asyncio.sleep(_POLL_S * attempt)
        raise AssertionError("unreachable: the last try returns or raises")

    async def send_raw(self, raw: bytes) -> Hash:
        """Sends a signed transaction. Safe to repeat, also by several: one that the node knows or has mined counts as
        sent.
        """
        transaction = _hash(raw)
        try:
            await self.request("eth_sendRawTransaction", _hex(raw), what=f"transaction {transaction}")
        except _AlreadyKnown:
            pass
        except NonceTooLow:
            if await self.receipt(transaction) is None:
                raise
        return transaction

    async def deploy(self, wallet: Wallet, abi: Abi, *arguments: Any) -> Address:
        """Deploys a contract and waits until it is there."""
        receipt = await self.wait(await self.send(wallet, abi.creation(*arguments)))
        if receipt.created is None:
            raise ChainError(f"transaction {receipt.transaction} created no contract")
        return receipt.created

    async def request(self, method: str, *params: Any, what: str = "") -> Any:
        """The result of any JSON-RPC method (of a local chain's own, too). `what` names the request in an error."""
        try:
            response = await self._provider.make_request(method, params)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            fix = "check that the node runs and the URL is right"
            raise Unreachable(f"{self.where} gave no answer to {method}: {reason}", fix=fix) from error
        if not isinstance(response, dict) or not ({"result", "error"} & response.keys()):
            raise Unreachable(f"{self.where} answered {method} with something that is no JSON-RPC")
        if refusal := response.get("error"):
            raise _refusal(refusal, what or method, self.where)
        return response["result"]

    async def _call(self, call: dict[str, Any], at: At, what: str) -> bytes:
        return _bytes(await self.request("eth_call", call, _tag(at), what=what))

    async def _is_buried(self, receipt: Receipt, confirmations: int) -> bool:
        return confirmations == 0 or await self.block_number() >= receipt.block + confirmations

    async def _failure(self, receipt: Receipt) -> ChainError:
        """Why a mined transaction failed: the same call replayed on the block before, or without words if that
        succeeds.
        """
        what = f"transaction {receipt.transaction} in block {receipt.block}"
        raw = await self.request("eth_getTransactionByHash", receipt.transaction)
        if raw is not None and raw.get("to"):
            call = Call(Address(raw["to"]), Wei(int(raw["value"], 16)), raw["input"])
            try:
                await self.simulate(call, receipt.sender, block=receipt.block - 1)
            except CallReverted as error:
                return CallReverted(what, error.data, transaction=receipt.transaction)
        return CallReverted(what, transaction=receipt.transaction)


class _AlreadyKnown(ChainError):
    """The node has this very transaction."""


def _refusal(error: Any, what: str, where: str) -> ChainError:
    """The error that a node's answer means. Nodes agree on messages only roughly, so we look for the words they
    share.
    """
    raw = error if isinstance(error, dict) else {"message": str(error)}
    message = str(raw.get("message", ""))
    words = message.lower()
    data = raw.get("data")
    if raw.get("code") == 3 or "revert" in words:
        return CallReverted(what, _bytes(data) if isinstance(data, str) and data.startswith("0x") else b"")
    if "already known" in words or "already imported" in words:
        return _AlreadyKnown(f"{where} knows {what} already")
    if "nonce too low" in words:
        return NonceTooLow(f"{where} refused {what}: {message}")
    if "underpriced" in words or "fee too low" in words or "less than block base fee" in words:
        return Underpriced(f"{where} refused {what}: {message}", fix="send it again with higher fees")
    if "insufficient funds" in words:
        return ChainError(
            f"{where} refused {what}: {message}", fix="the sending account needs more of the chain's coin"
        )
    return ChainError(f"{where} refused {what}: {message}")


def _request(call: Call | str, sender: Address) -> dict[str, Any]:
    if isinstance(call, Call):
        return {"from": sender, "to": call.to, "value": hex(call.value), "data": call.data}
    return {"from": sender, "data": call}


def _log(kind: Event, raw: dict[str, Any]) -> Log:
    arguments = kind.decode([_bytes(t) for t in raw["topics"]], _bytes(raw["data"]))
    address = Address(to_checksum_address(raw["address"]))
    return Log(address, kind.name, arguments, int(raw["blockNumber"], 16), Hash(raw["transactionHash"]))


def _receipt(raw: dict[str, Any]) -> Receipt:
    created = raw.get("contractAddress")
    return Receipt(
        transaction=Hash(raw["transactionHash"]),
        block=int(raw["blockNumber"], 16),
        block_hash=Hash(raw["blockHash"]),
        succeeded=int(raw["status"], 16) == 1,
        gas_used=int(raw["gasUsed"], 16),
        gas_price=Wei(int(raw.get("effectiveGasPrice") or "0x0", 16)),
        sender=Address(to_checksum_address(raw["from"])),
        created=Address(to_checksum_address(created)) if created else None,
        raw_logs=tuple(raw["logs"]),
    )


def _shown_url(url: str) -> str:
    """The URL without user, password, path and query: providers keep keys there."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _eighth_more(fee: int) -> Wei:
    return Wei(fee + -(-fee // 8))


def _tag(at: At) -> str:
    return hex(at) if isinstance(at, int) else at


def _hex(raw: bytes) -> str:
    return "0x" + raw.hex()


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def _hash(raw: bytes) -> Hash:
    return Hash(_hex(keccak(raw)))
