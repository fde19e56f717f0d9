"""An EVM chain, asked over JSON-RPC. Reads ask; `send` signs with a wallet and never knows why.

web3's asynchronous HTTP provider carries the requests. Its contract classes are not used: they fetch what a contract
tells them to (CCIP read) and hide revert data, and an ABI of ours decodes both.

What a node answers is a stranger's word: bounded in size and depth, and brought into our types here or refused as
`Unreachable`, so that a node that talks nonsense is one that says nothing, and never an agent's end.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
from eth_utils.address import to_checksum_address
from web3 import AsyncHTTPProvider
from web3._utils.http_session_manager import HTTPSessionManager
from web3.providers.rpc.utils import ExceptionRetryConfiguration

from quorate.chain.abi import Abi, Event
from quorate.chain.revert import CallReverted
from quorate.chain.wallet import Wallet
from quorate.errors import ChainError, ConfigError, Underpriced, Unreachable
from quorate.nesting import load_json
from quorate.signatures import keccak
from quorate.units import Address, Call, Hash, Wei

__all__ = ["At", "Block", "Chain", "Fees", "Log", "NonceTooLow", "Provider", "RawLog", "Receipt", "Signed"]

T = TypeVar("T")
At = int | Literal["latest", "safe", "finalized", "pending"]
"""A block by its number or by its standing."""

_LOG_SPAN = 10_000  # blocks a request; many providers refuse more
_MOST_SPANS = 100_000  # a node may claim any height; no chain has had a billion blocks
_LARGEST_ANSWER = 64 * 1024 * 1024
_POLL_S = 0.1
_SHOWN = 300  # characters of a node's own words in a message
_QUANTITY = re.compile("0x[0-9a-fA-F]+")
_BLANK = re.compile(r"\s")  # bytes.fromhex skips them
_NONCE_TRIES = 5


class Provider(Protocol):
    """What carries a JSON-RPC request (web3's AsyncHTTPProvider; a script in unit tests)."""

    async def make_request(self, method: Any, params: Any) -> Any:
        """The whole JSON-RPC response; ValueError, OSError or aiohttp's errors where there is none."""
        ...

    async def disconnect(self) -> None:
        """Close what is open."""
        ...


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
class RawLog:
    """An event as the chain holds it, not decoded."""

    address: Address
    topics: tuple[bytes, ...]
    data: bytes
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
    raw_logs: tuple[RawLog, ...] = field(repr=False)

    def logs(self, abi: Abi, event: str, address: Address) -> tuple[Log, ...]:
        """The events of this kind that the contract at `address` emitted in the transaction."""
        kind = abi.events[event]
        return tuple(
            _log(kind, raw)
            for raw in self.raw_logs
            if raw.address.lower() == address.lower() and raw.topics[:1] == (kind.topic,)
        )


class Chain:
    """A connection to one chain. One instance an event loop; sends of one account are put in order here."""

    def __init__(self, provider: Provider, chain_id: int, where: str, *, is_known: bool = True) -> None:
        """`is_known`: the node was asked, and serves the chain `chain_id`."""
        self._provider = provider
        self.chain_id = chain_id
        self.where = where
        self._is_known = is_known
        self._sending: dict[Address, asyncio.Lock] = {}

    @classmethod
    async def connect(cls, url: str, chain_id: int | None = None, *, timeout_s: float = 20) -> Self:
        """Connects and asks for the chain id; raises Unreachable, or ConfigError if it is not `chain_id`."""
        chain = cls(_provider(url, timeout_s), chain_id or 0, _shown_url(url), is_known=False)
        try:
            await chain.check()
        except BaseException:
            await chain.close()
            raise
        return chain

    @classmethod
    def at(cls, url: str, chain_id: int, *, timeout_s: float = 20) -> Self:
        """The same without a word to the node, which may be dead now: the first request asks for the chain id."""
        return cls(_provider(url, timeout_s), chain_id, _shown_url(url), is_known=False)

    async def check(self) -> None:
        """Ask for the chain id, unless the node has told it; raises Unreachable, or ConfigError if it is another."""
        if self._is_known:
            return
        found = await self._read(_number, "eth_chainId")
        if self.chain_id and found != self.chain_id:
            raise ConfigError(f"{self.where} serves chain {found}; expected chain {self.chain_id}", fix="check the URL")
        self.chain_id, self._is_known = found, True

    async def close(self) -> None:
        """Close the connection."""
        await self._provider.disconnect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # What the chain says

    async def block(self, at: At = "latest") -> Block:
        """The block, without its transactions; raises ChainError where the node has none such."""
        found = await self._ask(_block_or_none, "eth_getBlockByNumber", _tag(at), False)
        if found is None:
            raise ChainError(f"{self.where} knows no block {at}")
        return found

    async def block_number(self) -> int:
        """The height of the newest block."""
        return await self._ask(_number, "eth_blockNumber")

    async def timestamp(self, at: At = "latest") -> int:
        """Time of a block in seconds since 1970: the chain's clock, which may differ from this machine's."""
        return (await self.block(at)).timestamp

    async def balance(self, address: Address, at: At = "latest") -> Wei:
        """What the account holds of the chain's own coin."""
        return Wei(await self._ask(_amount, "eth_getBalance", address, _tag(at)))

    async def code(self, address: Address, at: At = "latest") -> bytes:
        """The contract's code; empty where there is none."""
        return await self._ask(_bytes, "eth_getCode", address, _tag(at))

    async def storage(self, address: Address, slot: int, at: At = "latest") -> bytes:
        """The 32 bytes in a slot of the contract's storage."""
        return (await self._ask(_bytes, "eth_getStorageAt", address, hex(slot), _tag(at))).rjust(32, b"\0")

    async def transaction_count(self, address: Address, at: At = "pending") -> int:
        """The nonce of the account's next transaction."""
        return await self._ask(_number, "eth_getTransactionCount", address, _tag(at))

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
        if (last - from_block) // _LOG_SPAN >= _MOST_SPANS:
            raise ChainError(f"the logs of blocks {from_block} to {last} are too many to ask {self.where} for")
        found: list[Log] = []
        for start in range(from_block, last + 1, _LOG_SPAN):
            end = min(start + _LOG_SPAN - 1, last)
            question = {"address": address, "topics": wanted, "fromBlock": hex(start), "toBlock": hex(end)}
            found += [_log(kind, raw) for raw in await self._ask(_raw_logs, "eth_getLogs", question)]
        return tuple(found)

    async def receipt(self, transaction: Hash) -> Receipt | None:
        """The receipt, or None while the transaction is in no block."""
        return await self._ask(_receipt_or_none, "eth_getTransactionReceipt", transaction)

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
        priority = await self._ask(_fee, "eth_maxPriorityFeePerGas")
        return Fees(Wei(2 * base_fee + priority), Wei(priority))

    async def estimate(self, call: Call | str, sender: Address) -> int:
        """Gas that `call` (or creation code) needs now; raises CallReverted if it would fail."""
        what = f"the call of {call.to}" if isinstance(call, Call) else "the deployment"
        return await self._ask(_number, "eth_estimateGas", _request(call, sender), what=f"{what} by {sender}")

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
        return Signed(_hash_of(raw), raw, transaction["nonce"], paid)

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
        transaction = _hash_of(raw)
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
        await self.check()
        return await self._request(method, *params, what=what)

    async def _request(self, method: str, *params: Any, what: str = "") -> Any:
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
        return response.get("result")

    async def _ask(self, read: Callable[[Any], T], method: str, *params: Any, what: str = "") -> T:
        """The result as `read` brings it into our types, from a node that serves the chain that we mean."""
        await self.check()
        return await self._read(read, method, *params, what=what)

    async def _read(self, read: Callable[[Any], T], method: str, *params: Any, what: str = "") -> T:
        raw = await self._request(method, *params, what=what)
        try:
            return read(raw)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise Unreachable(f"{self.where} answered {method} with what cannot be read: {why[:_SHOWN]}") from error

    async def _call(self, call: dict[str, Any], at: At, what: str) -> bytes:
        return await self._ask(_bytes, "eth_call", call, _tag(at), what=what)

    async def _is_buried(self, receipt: Receipt, confirmations: int) -> bool:
        return confirmations == 0 or await self.block_number() >= receipt.block + confirmations

    async def _failure(self, receipt: Receipt) -> ChainError:
        """Why a mined transaction failed: the same call replayed on the block before, or without words if that
        succeeds.
        """
        what = f"transaction {receipt.transaction} in block {receipt.block}"
        call = await self._ask(_call_or_none, "eth_getTransactionByHash", receipt.transaction)
        if call is not None:
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
    message = str(raw.get("message", ""))[:_SHOWN]
    words = message.lower()
    if raw.get("code") == 3 or "revert" in words:
        return CallReverted(what, _bytes_or_none(raw.get("data")))
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


def _log(kind: Event, raw: RawLog) -> Log:
    return Log(raw.address, kind.name, kind.decode(raw.topics, raw.data), raw.block, raw.transaction)


# From JSON to our types; each raises ValueError, TypeError, KeyError or AttributeError for what it cannot read.


def _block_or_none(raw: Any) -> Block | None:
    if raw is None:
        return None
    base_fee = Wei(_fee(raw.get("baseFeePerGas") or "0x0"))
    return Block(_number(raw["number"]), _hash(raw["hash"]), _number(raw["timestamp"]), base_fee)


def _receipt_or_none(raw: Any) -> Receipt | None:
    if raw is None:
        return None
    created = raw.get("contractAddress")
    return Receipt(
        transaction=_hash(raw["transactionHash"]),
        block=_number(raw["blockNumber"]),
        block_hash=_hash(raw["blockHash"]),
        succeeded=_number(raw["status"]) == 1,
        gas_used=_number(raw["gasUsed"]),
        gas_price=Wei(_amount(raw.get("effectiveGasPrice") or "0x0")),
        sender=_address(raw["from"]),
        created=_address(created) if created else None,
        raw_logs=_raw_logs(raw["logs"]),
    )


def _call_or_none(raw: Any) -> Call | None:
    """What a transaction called; None where it is unknown or created a contract."""
    if raw is None or not raw.get("to"):
        return None
    return Call(_address(raw["to"]), Wei(_amount(raw["value"])), _hex(_bytes(raw["input"])))


def _raw_logs(raw: Any) -> tuple[RawLog, ...]:
    if not isinstance(raw, list):
        raise TypeError(f"logs that are a {type(raw).__name__}")
    return tuple(
        RawLog(
            address=_address(one["address"]),
            topics=tuple(_bytes(topic, 32) for topic in one["topics"]),
            data=_bytes(one["data"]),
            block=_number(one["blockNumber"]),
            transaction=_hash(one["transactionHash"]),
        )
        for one in raw
    )


def _number(raw: Any, digits: int = 16) -> int:
    """A quantity of at most so many hex digits: 16 hold every height, time, nonce and amount of gas."""
    if not isinstance(raw, str) or not _QUANTITY.fullmatch(raw) or len(raw) > 2 + digits:
        raise ValueError(f"{raw!r:.80} is no quantity of {digits} hex digits")
    return int(raw, 16)


def _amount(raw: Any) -> int:
    return _number(raw, 64)


def _fee(raw: Any) -> int:
    return _number(raw, 32)


def _bytes(raw: Any, length: int | None = None) -> bytes:
    if not isinstance(raw, str) or not raw.startswith("0x") or _BLANK.search(raw):
        raise ValueError(f"{raw!r:.80} is no text of bytes")
    if length not in (None, len(raw) // 2 - 1):
        raise ValueError(f"{raw!r:.80} stands for {len(raw) // 2 - 1} bytes; expected {length}")
    return bytes.fromhex(raw[2:])


def _bytes_or_none(raw: Any) -> bytes:
    try:
        return _bytes(raw)
    except ValueError:
        return b""  # nodes differ in how they say that there was no reason


def _hash(raw: Any) -> Hash:
    return Hash(_hex(_bytes(raw, 32)))


def _address(raw: Any) -> Address:
    return Address(to_checksum_address(_bytes(raw, 20)))


class _BoundedProvider(AsyncHTTPProvider):
    """web3's, with bounds on what a node can make us hold and parse."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._request_session_manager = _BoundedSessions()

    @staticmethod
    def decode_rpc_response(raw_response: bytes) -> Any:
        return load_json(raw_response)


class _BoundedSessions(HTTPSessionManager):
    async def async_make_post_request(self, endpoint_uri: Any, data: Any, **options: Any) -> bytes:
        response = await self.async_get_response_from_post_request(endpoint_uri, data=data, **options)
        response.raise_for_status()
        body = bytearray()
        async for chunk in response.content.iter_chunked(1 << 16):
            body += chunk
            if len(body) > _LARGEST_ANSWER:
                response.close()
                raise ValueError(f"an answer of more than {_LARGEST_ANSWER} bytes")
        return bytes(body)


def _provider(url: str, timeout_s: float) -> _BoundedProvider:
    return _BoundedProvider(
        url,
        request_kwargs={"timeout": aiohttp.ClientTimeout(total=timeout_s)},
        exception_retry_configuration=ExceptionRetryConfiguration(
            errors=(aiohttp.ClientConnectionError,), retries=3, backoff_factor=0.1
        ),
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


def _hash_of(raw: bytes) -> Hash:
    return Hash(_hex(keccak(raw)))
