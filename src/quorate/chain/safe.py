"""The agents' common account: a Safe 1.4.1 whose threshold is their quorum.

Plain calls are made; several at once go through MultiSendCallOnly, the one contract that the Safe ever runs by
delegatecall, and which itself makes plain calls only. Nobody can ask for a delegatecall: it follows from the number of
calls. The EIP-712 digest that the owners sign is computed here and not asked of a node. Which nonce a transaction takes
is agreed first: two transactions of one nonce exclude each other, so calls happen once however often they are sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from eth_utils.address import to_checksum_address

from quorate.chain.abi import Abi
from quorate.chain.client import At, Chain, Receipt
from quorate.chain.revert import CallReverted
from quorate.chain.wallet import Wallet
from quorate.errors import ChainError, Reverted
from quorate.signatures import keccak, recover, typed_digest
from quorate.units import Address, Call, Hash, Wei

__all__ = ["MULTI_SEND", "SAFE_VERSION", "Execution", "Safe", "SafeTransaction", "compute_create2"]

SAFE_VERSION = "1.4.1"
ZERO = Address("0x" + "00" * 20)
DETERMINISTIC_DEPLOYER = Address("0x4e59b44847b379578588920cA78FbF26c0B4956C")
"""Deploys any code at an address that depends on the code alone; anvil has it, and nearly every chain."""

MULTI_SEND = Address("0x32228dDEA8b9A2bd7f2d71A958fF241D79ca5eEC")
"""Safe's MultiSendCallOnly 1.4.1 where DETERMINISTIC_DEPLOYER puts it, the same on every chain: the address is a hash
of the code, so no other code can be there."""

_SENTINEL = Address("0x" + "00" * 19 + "01")
_GUARD_SLOT = int.from_bytes(keccak(text="guard_manager.guard.address"), "big")
_DOMAIN = "EIP712Domain(uint256 chainId,address verifyingContract)"
_TYPE = (
    "SafeTx(address to,uint256 value,bytes data,uint8 operation,uint256 safeTxGas,uint256 baseGas,uint256 gasPrice,"
    "address gasToken,address refundReceiver,uint256 nonce)"
)
_CANONICAL = {  # where Safe deployed 1.4.1 on public chains
    "Safe": Address("0x29fcB43b46531BcA003ddC8FCB67FFE91900C762"),  # the SafeL2 variant: it emits what it executes
    "ProxyFactory": Address("0x4e1DCf7AD4e460CfD30791CCC4F9c8a4f820ec67"),
    "CompatibilityFallbackHandler": Address("0xfd0732Dc9E303f09fCEf3a7388Ad10A83459Ec99"),
    "MultiSendCallOnly": Address("0x9641d764fc13c8B624c04430C7356C1C7C8102e2"),
}


@dataclass(frozen=True)
class SafeTransaction:
    """Calls that the Safe shall make under one of its nonces: all of them in this order, or none.

    No call at all is a no-op that uses the nonce up (the Safe calls itself with nothing). One is made by the Safe
    itself, several by MultiSendCallOnly. With `gas` 0 a call that fails takes the whole transaction back: the nonce
    stays free and nothing has happened. With `gas` above 0 the calls get at least that much, and their failure uses the
    nonce up (an ExecutionFailure).
    """

    calls: tuple[Call, ...]
    nonce: int
    gas: int = 0

    def digest(self, chain_id: int, safe: Address) -> bytes:
        """The 32 bytes that owners sign; they name the chain and the Safe, so a signature is of no use elsewhere."""
        return _digest(self, chain_id, safe)

    def execution(self, safe: Address, signatures: Mapping[Address, bytes]) -> Call:
        """The call that anybody may send to execute this; the signatures are put in the order that Safe wants,
        unchecked.

        Give a threshold of signatures; each more costs 7.7 k gas.
        """
        ordered = b"".join(signature for _, signature in sorted(signatures.items(), key=lambda item: int(item[0], 16)))
        return Call(safe, Wei(0), _abi("Safe").encode("execTransaction", *self._arguments(safe), ordered))

    def _parts(self, safe: Address) -> tuple[Address, Wei, str, int]:
        """What the Safe is told: target, value, data, and 1 where it shall run the target's code as its own."""
        if not self.calls:
            return safe, Wei(0), "0x", 0
        if len(self.calls) == 1:
            (call,) = self.calls
            return call.to, call.value, call.data, 0
        return MULTI_SEND, Wei(0), _batch(self.calls), 1

    def _arguments(self, safe: Address) -> tuple[Address, Wei, str, int, int, int, int, Address, Address]:
        return *self._parts(safe), self.gas, 0, 0, ZERO, ZERO


@dataclass(frozen=True)
class Execution:
    """That the Safe has executed a transaction: by which transaction of the chain, who sent that, and whether the calls
    succeeded.
    """

    digest: Hash
    tx: Hash
    block: int
    gas: int
    success: bool
    sender: Address


@dataclass(frozen=True)
class Safe:
    """A Safe 1.4.1 at an address of a chain (contracts and ABI come with safe-eth-py)."""

    chain: Chain
    address: Address

    @classmethod
    async def deploy(
        cls, chain: Chain, wallet: Wallet, owners: Sequence[Address], threshold: int, *, salt: int = 0
    ) -> Safe:
        """A new Safe, paid for by `wallet`; the Safe's own contracts too, where the chain does not have them.

        Its address depends on owners, threshold and salt alone; if it is there already, it is checked and returned.
        """
        if not 0 < threshold <= len(set(owners)) == len(owners):
            raise ValueError(
                f"a threshold of {threshold} does not fit {len(set(owners))} different owners of {len(owners)}"
            )
        singleton = await _ensure(chain, wallet, "Safe")
        factory = await _ensure(chain, wallet, "ProxyFactory")
        handler = await _ensure(chain, wallet, "CompatibilityFallbackHandler")
        await _ensure_here(chain, wallet, "MultiSendCallOnly")
        setup = _abi("Safe").encode("setup", list(owners), threshold, ZERO, "0x", handler, ZERO, 0, ZERO)
        safe = cls(chain, _proxy_address(factory, singleton, setup, salt))
        if not await chain.code(safe.address):
            create = _abi("ProxyFactory").encode("createProxyWithNonce", singleton, setup, salt)
            await chain.wait(await chain.send(wallet, Call(factory, Wei(0), create)))
        await safe.check(owners, threshold)
        return safe

    async def check(self, owners: Sequence[Address], threshold: int) -> None:
        """Raises ChainError unless this is a Safe 1.4.1 with exactly these owners and threshold, no module and no
        guard.

        A module may act without signatures and a guard may stop every action: with either, the quorum would decide
        nothing.
        """
        singleton = await self.chain.code(_address(await self.chain.storage(self.address, 0)))
        if singleton != _runtime("Safe"):
            raise ChainError(f"{self.address} on chain {self.chain.chain_id} is no Safe {SAFE_VERSION}")
        modules, _ = await self.chain.read(self.address, _abi("Safe"), "getModulesPaginated", _SENTINEL, 10)
        guard = _address(await self.chain.storage(self.address, _GUARD_SLOT))
        found_owners, found_threshold = await self.owners(), await self.threshold()
        if modules or guard != ZERO:
            raise ChainError(f"the Safe {self.address} has modules {modules} and the guard {guard}; expected none")
        if set(found_owners) != set(owners) or found_threshold != threshold:
            found = f"{found_threshold} of {', '.join(found_owners)}"
            raise ChainError(f"the Safe {self.address} needs {found}; expected {threshold} of {', '.join(owners)}")

    async def nonce(self, *, block: At = "latest") -> int:
        """The nonce that the next transaction must have, as of the end of `block`."""
        return int(await self.chain.read(self.address, _abi("Safe"), "nonce", block=block))

    async def owners(self) -> tuple[Address, ...]:
        """Whose signatures count."""
        return tuple(await self.chain.read(self.address, _abi("Safe"), "getOwners"))

    async def threshold(self) -> int:
        """How many of them a transaction needs."""
        return int(await self.chain.read(self.address, _abi("Safe"), "getThreshold"))

    async def transaction_hash(self, transaction: SafeTransaction) -> bytes:
        """What the contract itself computes as the digest; for checks only, `SafeTransaction.digest` needs no node."""
        arguments = (*transaction._arguments(self.address), transaction.nonce)
        return bytes(await self.chain.read(self.address, _abi("Safe"), "getTransactionHash", *arguments))

    def transaction(self, calls: Call | Sequence[Call], nonce: int, *, gas: int = 0) -> SafeTransaction:
        """What the owners sign to have these calls made at this nonce."""
        return SafeTransaction((calls,) if isinstance(calls, Call) else tuple(calls), nonce, gas)

    def digest(self, transaction: SafeTransaction) -> bytes:
        """What the owners sign for this Safe on this chain."""
        return transaction.digest(self.chain.chain_id, self.address)

    def execution(self, transaction: SafeTransaction, signatures: Mapping[Address, bytes]) -> Call:
        """The call that anybody may send to execute the transaction, with a threshold of signatures.

        Raises ValueError where a signature is not that owner's, so that a wrong one never costs gas.
        """
        digest = self.digest(transaction)
        for owner, signature in signatures.items():
            if (signer := recover(digest, signature)) != owner:
                raise ValueError(f"the signature given as {owner}'s is {signer or 'no valid signature'}'s")
        return transaction.execution(self.address, signatures)

    async def simulate(self, calls: Call | Sequence[Call], *, block: At = "latest") -> None:
        """Returns if the Safe could make these calls, in this order, at the end of `block`; else raises Reverted
        (CallReverted with the called contract's own reason, where one refused).

        A batch is run by the Safe's own `simulateAndRevert`: exactly the delegatecall that executing it would make.
        """
        batch = (calls,) if isinstance(calls, Call) else tuple(calls)
        if len(batch) == 1:
            await self._simulate_one(batch[0], block)
        elif batch:
            await self._simulate_batch(batch, block)

    async def outcome(self, digest: bytes | Hash, from_block: int = 0, to_block: int | None = None) -> Execution | None:
        """How the transaction with this digest ended within these blocks; None if it was not executed there.

        If it is None and the nonce has moved on, another transaction took the nonce and this one can never be executed.
        """
        topic = bytes.fromhex(digest[2:]) if isinstance(digest, str) else digest
        for event in ("ExecutionSuccess", "ExecutionFailure"):
            logs = await self.chain.logs(
                self.address, _abi("Safe"), event, from_block=from_block, to_block=to_block, topics=(topic,)
            )
            receipt = await self.chain.receipt(logs[-1].transaction) if logs else None
            if receipt is not None:  # a reorg between the two questions makes it open again
                return _execution(topic, receipt, event == "ExecutionSuccess")
        return None

    async def execution_at(self, nonce: int, from_block: int, to_block: int) -> Execution | None:
        """Whatever the Safe executed under this nonce within these blocks; None if it was nothing.

        The event that tells the nonce is the SafeL2 variant's, the one that `deploy` uses.
        """
        events = await self.chain.logs(
            self.address, _abi("Safe"), "SafeMultiSigTransaction", from_block=from_block, to_block=to_block
        )
        for log in events:
            if int.from_bytes(log.arguments["additionalInfo"][:32], "big") == nonce:
                receipt = await self.chain.receipt(log.transaction)
                return None if receipt is None else self._ended(receipt)
        return None

    def _ended(self, receipt: Receipt) -> Execution | None:
        for event in ("ExecutionSuccess", "ExecutionFailure"):
            for log in receipt.logs(_abi("Safe"), event, self.address):
                return _execution(log.arguments["txHash"], receipt, event == "ExecutionSuccess")
        return None

    async def _simulate_one(self, call: Call, block: At) -> None:
        if call.value and (balance := await self.chain.balance(self.address, block)) < call.value:
            raise Reverted(f"the call of {call.to} carries {call.value} wei; the Safe {self.address} has {balance}")
        await self.chain.simulate(call, self.address, block=block)

    async def _simulate_batch(self, batch: tuple[Call, ...], block: At) -> None:
        if await self.chain.code(MULTI_SEND, block) != _runtime("MultiSendCallOnly"):
            raise ChainError(  # a delegatecall to nothing succeeds, and does nothing
                f"chain {self.chain.chain_id} has no MultiSendCallOnly at {MULTI_SEND}; one call at a time works",
                fix="deploy it there: Safe.deploy does",
            )
        trial = _abi("Safe").encode("simulateAndRevert", MULTI_SEND, bytes.fromhex(_batch(batch)[2:]))
        try:
            await self.chain.simulate(Call(self.address, Wei(0), trial), self.address, block=block)
        except CallReverted as error:
            if len(error.data) < 64:
                raise ChainError(f"{self.chain.where} does not say how a trial of {len(batch)} calls ended") from error
            if int.from_bytes(error.data[:32], "big") == 1:
                return
        for number, call in enumerate(batch, 1):  # MultiSend gives no reason; a call that fails alone has one
            try:
                await self._simulate_one(call, block)
            except Reverted as error:
                raise Reverted(f"call {number} of {len(batch)}: {error.message}") from error
        raise Reverted(f"the {len(batch)} calls by the Safe {self.address} fail together; each alone would succeed")


def compute_create2(deployer: Address, salt: bytes, creation: bytes) -> Address:
    """Where CREATE2 puts `creation` code (EIP-1014)."""
    packed = b"\xff" + bytes.fromhex(deployer[2:]) + salt + keccak(creation)
    return Address(to_checksum_address(keccak(packed)[12:]))


async def _ensure(chain: Chain, wallet: Wallet, name: str) -> Address:
    """Where the chain has this contract of Safe's, with exactly the expected code; deployed if it is nowhere."""
    creation = _creation(name)
    ours = compute_create2(DETERMINISTIC_DEPLOYER, bytes(32), creation)
    for address in (_CANONICAL[name], ours):
        if await chain.code(address) == _runtime(name):
            return address
    return await _ensure_here(chain, wallet, name)


async def _ensure_here(chain: Chain, wallet: Wallet, name: str) -> Address:
    """As `_ensure`, but at the address that follows from our own deployer, even if Safe's own has it too."""
    creation = _creation(name)
    ours = compute_create2(DETERMINISTIC_DEPLOYER, bytes(32), creation)
    if await chain.code(ours) == _runtime(name):
        return ours
    if not await chain.code(DETERMINISTIC_DEPLOYER):
        fix = f"deploy the contract of EIP-1014 fame at {DETERMINISTIC_DEPLOYER} first, or Safe {SAFE_VERSION} itself"
        raise ChainError(
            f"chain {chain.chain_id} has neither Safe {SAFE_VERSION} nor a deterministic deployer", fix=fix
        )
    deployment = Call(DETERMINISTIC_DEPLOYER, Wei(0), "0x" + (bytes(32) + creation).hex())
    await chain.wait(await chain.send(wallet, deployment))
    if await chain.code(ours) != _runtime(name):
        raise ChainError(f"{name} of Safe {SAFE_VERSION} did not arrive at {ours}")
    return ours


def _proxy_address(factory: Address, singleton: Address, setup: str, salt: int) -> Address:
    salted = keccak(keccak(hexstr=setup) + _word(salt))
    return compute_create2(factory, salted, _creation("Proxy") + _word(int(singleton, 16)))


@lru_cache(maxsize=64)  # whoever waits for an outcome asks again and again
def _digest(transaction: SafeTransaction, chain_id: int, safe: Address) -> bytes:
    separator = keccak(keccak(text=_DOMAIN) + _word(chain_id) + _word(int(safe, 16)))
    to, value, data, operation = transaction._parts(safe)
    fields = (int(to, 16), value, None, operation, transaction.gas, 0, 0, 0, 0, transaction.nonce)
    data_hash = keccak(hexstr=data)
    return typed_digest(separator, _TYPE, *(data_hash if field is None else _word(field) for field in fields))


def _batch(calls: Sequence[Call]) -> str:
    """MultiSend's argument: a call after another, each as operation 0, target, value, length of data, data."""
    packed = b"".join(
        b"\0"
        + bytes.fromhex(call.to[2:])
        + _word(call.value)
        + _word(len(call.data) // 2 - 1)
        + bytes.fromhex(call.data[2:])
        for call in calls
    )
    return _abi("MultiSendCallOnly").encode("multiSend", packed)


def _execution(digest: bytes, receipt: Receipt, success: bool) -> Execution:
    return Execution(
        Hash("0x" + digest.hex()), receipt.transaction, receipt.block, receipt.gas_used, success, receipt.sender
    )


@cache
def _artifact(name: str) -> dict[str, object]:
    """Read as a file: importing safe_eth's modules takes seconds and is needed for nothing else."""
    spec = find_spec("safe_eth")
    if spec is None or spec.origin is None:
        raise ChainError("safe-eth-py, which carries Safe's contracts, is not installed")
    folder = Path(spec.origin).parent / "eth/contracts/abis"
    loaded: dict[str, object] = json.loads((folder / f"{name}_V1_4_1.json").read_text())
    return loaded


@cache
def _abi(name: str) -> Abi:
    return Abi(_artifact(name)["abi"])  # type: ignore[arg-type]  # Hardhat's artifact format


def _creation(name: str) -> bytes:
    return bytes.fromhex(str(_artifact(name)["bytecode"]).removeprefix("0x"))


def _runtime(name: str) -> bytes:
    return bytes.fromhex(str(_artifact(name)["deployedBytecode"]).removeprefix("0x"))


def _address(word: bytes) -> Address:
    return Address(to_checksum_address(word[-20:]))


def _word(number: int) -> bytes:
    return number.to_bytes(32, "big")
