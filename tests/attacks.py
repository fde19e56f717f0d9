"""Calls with which a Safe was or could be robbed; no agent signs one, and no two owners of four can make one."""

from __future__ import annotations

from eth_abi.abi import encode

from quorate.chain import selector_of
from quorate.chain.safe import MULTI_SEND
from quorate.units import Address, Call, Wei

__all__ = ["attack_calls", "call"]

ZERO = "0x" + "00" * 20
SENTINEL = "0x" + "00" * 19 + "01"


def call(target: str, signature: str, *arguments: object, value: int = 0) -> Call:
    """A call of the function with this signature."""
    types = signature.partition("(")[2][:-1]
    data = encode(types.split(",") if types else [], arguments)
    return Call(Address(target), Wei(value), selector_of(signature) + data.hex())


def attack_calls(safe: Address, thief: Address, token: str = "0x" + "5" * 40) -> list[Call]:
    """Calls by the Safe that would hand it, or what it holds, to `thief`."""
    steal = bytes.fromhex(call(token, "transfer(address,uint256)", thief, 2**255).data[2:])
    packed = b"\0" + bytes.fromhex(safe[2:]) + bytes(64)
    return [
        # who owns it
        call(safe, "addOwnerWithThreshold(address,uint256)", thief, 1),
        call(safe, "swapOwner(address,address,address)", SENTINEL, thief, ZERO),
        call(safe, "removeOwner(address,address,uint256)", SENTINEL, thief, 1),
        call(safe, "changeThreshold(uint256)", 1),
        call(safe, "setup(address[],uint256,address,bytes,address,address,uint256,address)",
             [thief], 1, ZERO, b"", ZERO, ZERO, 0, ZERO),
        # who may act without its owners, or stop them
        call(safe, "enableModule(address)", thief),
        call(safe, "disableModule(address,address)", SENTINEL, thief),
        call(safe, "setGuard(address)", thief),
        call(safe, "setFallbackHandler(address)", thief),
        call(safe, "approveHash(bytes32)", b"\xaa" * 32),
        call(safe, "execTransactionFromModule(address,uint256,bytes,uint8)", thief, 0, b"", 1),
        call(safe, "simulateAndRevert(address,bytes)", thief, b""),
        # what it holds
        Call(thief, Wei(10**18), "0x"),
        call(token, "transfer(address,uint256)", thief, 2**255),
        call(token, "approve(address,uint256)", thief, 2**256 - 1),
        call(token, "increaseAllowance(address,uint256)", thief, 2**255),
        call(token, "transferFrom(address,address,uint256)", safe, thief, 1),
        call(token, "setApprovalForAll(address,bool)", thief, True),
        call(token, "permit(address,address,uint256,uint256,uint8,bytes32,bytes32)",
             safe, thief, 1, 2**63, 27, bytes(32), bytes(32)),
        call(token, "delegate(address)", thief),
        call(token, "transferOwnership(address)", thief),
        # code of others, run as its own or in its name
        call(MULTI_SEND, "multiSend(bytes)", packed),
        call(thief, "execute(address,bytes)", token, steal),
        call(token, "upgradeTo(address)", thief),
        call(token, "upgradeToAndCall(address,bytes)", thief, steal),
        call(thief, "transfer(address,uint256)", thief, 0),  # Bybit, 2025: by delegatecall it took the Safe's code away
    ]  # fmt: skip
