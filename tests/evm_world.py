"""One EVM chain in memory, with all that goes wrong on a real one: reorgs, lost transactions, fees, nodes that lag.

`Evm` is the chain itself, `Node` what one agent's RPC endpoint says of it. A Safe lives on it whose transactions are
payments: the data of a call holds the payment's number. `Evm.paid` lists the payments of the canonical chain in order:
what a settlement must leave there exactly once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from quorate.chain import CallReverted, Fees, Log, NonceTooLow
from quorate.chain.safe import MULTI_SEND, _runtime
from quorate.errors import ChainError, Underpriced, Unreachable
from quorate.rounds.settle import Intent
from quorate.signatures import keccak
from quorate.units import Address, Call, Hash, Wei

CHAIN_ID = 31337
SAFE = Address("0x" + "4" * 40)
STRANGER = Address("0x" + "9" * 40)
GWEI = 10**9
GENESIS = 100  # blocks there are before anything happens

__all__ = ["CHAIN_ID", "GWEI", "SAFE", "STRANGER", "Evm", "Node", "Tx", "number_of", "payment"]


def payment(number: int) -> Call:
    return Call(STRANGER, Wei(0), f"0xfaceb00c{number:08x}")


def number_of(call: Call) -> int:
    return int(call.data[10:], 16)


@dataclass(frozen=True)
class Tx:
    """A signed transaction that executes one of the Safe's."""

    sender: Address
    nonce: int
    fees: Fees
    intent: Intent
    digest: bytes
    hash: Hash = field(compare=False)


@dataclass
class Block:
    """A block, and what is true at its end."""

    included: list[tuple[Tx, bool]]
    safe_nonce: int
    accounts: dict[Address, int]
    paid: tuple[int, ...]


class Evm:
    """The chain. `closed` payments fail from now on."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.blocks = [Block([], 0, {}, ()) for _ in range(GENESIS)]
        self.pool: dict[tuple[Address, int], Tx] = {}
        self.raw: dict[bytes, Tx] = {}
        """Every transaction that was ever signed, by its bytes."""
        self.closed: set[int] = set()
        self.owners: tuple[Address, ...] = ()
        self.base_fee = GWEI
        self.reorgs: list[int] = []
        self.highest_fee = 0
        """The most that an included transaction offered for a unit of gas."""

    @property
    def head(self) -> int:
        return len(self.blocks) - 1

    @property
    def paid(self) -> tuple[int, ...]:
        return self.blocks[-1].paid

    def mine(self) -> None:
        """One more block, of all that waits and pays enough."""
        last = self.blocks[-1]
        block = Block([], last.safe_nonce, dict(last.accounts) if self.pool else last.accounts, last.paid)
        for key in sorted(self.pool):
            tx = self.pool[key]
            if tx.nonce < block.accounts.get(tx.sender, 0):
                del self.pool[key]
            elif tx.nonce == block.accounts.get(tx.sender, 0) and tx.fees.maximum >= self.base_fee:
                del self.pool[key]
                self._include(block, tx)
        self.blocks.append(block)

    def _include(self, block: Block, tx: Tx) -> None:
        works = tx.intent.nonce == block.safe_nonce and not self.why_not(tx.intent.calls)
        block.included.append((tx, works))
        block.accounts[tx.sender] = tx.nonce + 1
        if tx.sender != STRANGER:
            self.highest_fee = max(self.highest_fee, tx.fees.maximum)
        if works:
            block.safe_nonce += 1
            block.paid += tuple(number_of(call) for call in tx.intent.calls)

    def reorg(self, depth: int, keeps: float) -> None:
        """Take `depth` blocks away and make one more in their place; of their transactions, `keeps` wait again."""
        depth = min(depth, self.head)
        gone = [tx for block in self.blocks[len(self.blocks) - depth :] for tx, _ in block.included]
        del self.blocks[len(self.blocks) - depth :]
        self.reorgs.append(depth)
        for tx in gone:
            if self.rng.random() < keeps:
                self.pool.setdefault((tx.sender, tx.nonce), tx)
        for _ in range(depth + 1):
            self.mine()

    def take_nonce(self) -> None:
        """Somebody else's transaction uses the Safe's nonce up, in a block of its own."""
        nonce = self.blocks[-1].safe_nonce
        fees = Fees(Wei(self.base_fee), Wei(1))
        other = Tx(STRANGER, 10**6 + nonce, fees, Intent((), nonce), bytes(32), Hash("0x" + f"{nonce:064x}"))
        self.mine()
        self._include(self.blocks[-1], other)

    def publish(self, intent: Intent, digest: bytes) -> None:
        """A stranger who got hold of enough signatures sends them."""
        nonce = self.blocks[-1].accounts.get(STRANGER, 0)
        fees = Fees(Wei(10**6 * GWEI), Wei(GWEI))
        name = Hash("0x" + keccak(text=f"stranger {nonce} {digest.hex()}").hex())
        self.pool[STRANGER, nonce] = Tx(STRANGER, nonce, fees, intent, digest, name)

    def why_not(self, calls: Sequence[Call]) -> str:
        bad = [call.data for call in calls if number_of(call) in self.closed]
        return f"payment {bad[0]} is closed" if bad else ""

    def accept(self, tx: Tx) -> None:
        """What a node does with a transaction that reaches it; raises as a node refuses."""
        account = self.blocks[-1].accounts.get(tx.sender, 0)
        if tx.nonce < account:
            if self.find(tx.hash) is None:
                raise NonceTooLow("nonce too low")
            return
        waiting = self.pool.get((tx.sender, tx.nonce))
        if waiting is not None and waiting != tx and not _replaces(tx.fees, waiting.fees):
            raise Underpriced("replacement transaction underpriced")
        self.pool[tx.sender, tx.nonce] = tx

    def find(self, transaction: Hash) -> tuple[int, Tx, bool] | None:
        for number in range(self.head, max(self.head - 2_000, -1), -1):
            for tx, works in self.blocks[number].included:
                if tx.hash == transaction:
                    return number, tx, works
        return None


class Node:
    """What one agent's node says: `lag` blocks behind, and now and then not at all. As much of `Chain` as is used.

    `intent` is what the call that is estimated carries: this chain runs no code.

    `watch` is called before and after every request: a test crashes the agent there.
    """

    chain_id = CHAIN_ID
    where = "http://in-memory"

    def __init__(
        self, evm: Evm, intent: Callable[[], Intent | None], watch: Callable[[str], None] = lambda point: None
    ) -> None:
        self.evm, self.intent, self.watch = evm, intent, watch
        self.lag, self.loss = 0, 0.0

    @property
    def _head(self) -> int:
        return max(self.evm.head - self.lag, 0)

    def _ask(self, what: str) -> None:
        self.watch(what)
        if self.loss and self.evm.rng.random() < self.loss:
            raise Unreachable(f"no answer to {what}")

    def _block(self, at: Any) -> Block:
        number = self._head if at == "latest" else at
        if number > self._head:
            raise ChainError(f"this node knows no block {number}")
        return self.evm.blocks[number]

    async def block_number(self) -> int:
        self._ask("block_number")
        return self._head

    async def read(self, address: Address, abi: Any, function: str, *_: Any, block: Any = "latest") -> Any:
        self._ask(function)
        assert address == SAFE
        if function == "getOwners":
            return self.evm.owners
        assert function == "nonce"
        return self._block(block).safe_nonce

    async def balance(self, address: Address, at: Any = "latest") -> Wei:
        return Wei(0)

    async def code(self, address: Address, at: Any = "latest") -> bytes:
        return _runtime("MultiSendCallOnly") if address == MULTI_SEND else b""

    async def simulate(self, call: Call, sender: Address, *, block: Any = "latest") -> bytes:
        self._ask("simulate")
        self._block(block)
        assert sender == SAFE
        if call.to == SAFE:  # simulateAndRevert of a batch
            fails = any(payment(number).data[2:] in call.data for number in self.evm.closed)
            raise CallReverted("trial", bytes(31) + bytes([not fails]) + bytes(32))
        if reason := self.evm.why_not([call]):
            raise CallReverted(reason)
        return b""

    async def logs(
        self, address: Address, abi: Any, event: str, *, from_block: int, to_block: int, topics: Any = ()
    ) -> tuple[Log, ...]:
        self._ask("logs")
        found = []
        for number in range(from_block, min(to_block, self._head) + 1):
            for tx, works in self.evm.blocks[number].included or ():
                if works and event == "ExecutionSuccess" and topics == (tx.digest,):
                    found.append(Log(SAFE, event, {}, number, tx.hash))
                if works and event == "SafeMultiSigTransaction":
                    info = {"additionalInfo": tx.intent.nonce.to_bytes(32, "big") + bytes(64)}
                    found.append(Log(SAFE, event, info, number, tx.hash))
        return tuple(found)

    async def receipt(self, transaction: Hash) -> Any:
        self._ask("receipt")
        found = self.evm.find(transaction)
        if found is None or found[0] > self._head:
            return None
        number, tx, works = found

        def logs(abi: Any, event: str, address: Address) -> tuple[Any, ...]:
            return (SimpleNamespace(arguments={"txHash": tx.digest}),) if event == "ExecutionSuccess" else ()

        return SimpleNamespace(
            transaction=tx.hash, block=number, gas_used=90_000, succeeded=works, sender=tx.sender, logs=logs
        )

    async def transaction_count(self, address: Address, at: str) -> int:
        self._ask("transaction_count")
        assert at == "latest"  # what is pending must be replaced, never followed
        return self._block(at).accounts.get(address, 0)

    async def estimate(self, call: Call, sender: Address) -> int:
        self._ask("estimate")
        intent = self.intent()
        if intent is not None and intent.nonce != self._block("latest").safe_nonce:
            raise CallReverted("GS026")
        if intent is not None and (reason := self.evm.why_not(intent.calls)):
            raise CallReverted(reason)
        return 90_000

    async def fees(self) -> Fees:
        self._ask("fees")
        return Fees(Wei(2 * self.evm.base_fee + GWEI), Wei(GWEI))

    async def send_raw(self, raw: bytes) -> Hash:
        self.watch("send_raw")
        fate = self.evm.rng.random() if self.loss else 1.0
        tx = self.evm.raw[raw]
        if fate < self.loss / 3:
            raise Unreachable("the transaction never reached the node")
        if fate < 2 * self.loss / 3:
            return tx.hash  # it did, and was dropped
        self.evm.accept(tx)
        if fate < self.loss:
            raise Unreachable("the transaction was accepted; the answer was lost")
        self.watch("send_raw done")
        return tx.hash


def _replaces(new: Fees, old: Fees) -> bool:
    """Both fees a tenth higher, as geth wants it."""
    return new.maximum * 10 >= old.maximum * 11 and new.priority * 10 >= old.priority * 11


def signed_tx(evm: Evm, sender: Address, request: Any, intent: Intent, digest: bytes) -> bytes:
    """The raw bytes of a transaction that carries `intent`, known to the chain as such."""
    fees = Fees(request.max_fee_per_gas, request.max_priority_fee_per_gas)
    raw = repr((sender, request.nonce, fees, digest.hex())).encode()
    tx = Tx(sender, request.nonce, fees, intent, digest, Hash("0x" + keccak(raw).hex()))
    evm.raw[raw] = replace(tx)
    return raw
