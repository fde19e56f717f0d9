"""Why a contract refused: the revert data of a failed call, in words. Pure."""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import Any

from quorate.chain.abi import Fragment, UndecodableError, load_abi
from quorate.errors import Reverted
from quorate.units import Hash

__all__ = ["CallReverted", "Refusal", "explain"]

_CONTRACTS = ("InferencePayments", "OperatorRegistry", "QuorateGovernor", "QuorateToken", "TimelockController")
_ERROR = Fragment("Error", ("string",), ("message",))
_PANIC = Fragment("Panic", ("uint256",), ("code",))
_LONGEST_TEXT = 200  # a contract's own words are hostile text: bounded, and shown with escapes

_PANICS = {
    0x01: "an assertion failed",
    0x11: "an arithmetic overflow",
    0x12: "a division by zero",
    0x21: "a value outside of its enum",
    0x22: "a damaged storage array",
    0x31: "pop from an empty array",
    0x32: "an index out of bounds",
    0x41: "too much memory",
    0x51: "a call of an uninitialised function",
}

_SAFE = {
    "GS010": "too little gas was sent for the Safe transaction",
    "GS013": "the call that the Safe made failed (simulate it to learn why)",
    "GS020": "there are fewer signatures than the Safe's threshold",
    "GS021": "a signature is malformed",
    "GS025": "an owner has not approved this hash",
    "GS026": "a signature is not of an owner or not in the owners' order; this is also the answer when the Safe's "
    "nonce has moved on, because this transaction or another of its nonce was executed already",
    "GS030": "only an owner may approve a hash",
}


class Refusal(IntEnum):
    """Why a voucher pays nothing now, as IInferencePayments.sol numbers it (and says what the two numbers are)."""

    NONE = 0
    OTHER_OPERATOR = 1
    OTHER_EPOCH = 2
    EXPIRED = 3
    NOTHING_NEW = 4
    NOT_COVERED = 5
    NOT_SIGNED = 6


class CallReverted(Reverted):
    """A contract refused a call: `error` is the name of its error, `arguments` its values by name, `data` the bytes."""

    def __init__(self, what: str, data: bytes = b"", *, transaction: Hash | None = None, fix: str = "") -> None:
        self.error, self.arguments, text = explain(data)
        self.data = data
        self.transaction = transaction
        super().__init__(f"{what} was refused: {text}", fix=fix)


def explain(data: bytes) -> tuple[str, dict[str, Any], str]:
    """The error's name, its values by name, and one sentence, of what a call reverted with."""
    if not data:
        return "", {}, "no reason was given (no such function, out of gas, or a bare revert)"
    fragment = _known().get(data[:4])
    try:
        if fragment is None:
            raise UndecodableError("unknown selector")
        arguments = dict(zip(fragment.names, fragment.decode_arguments(data[4:]), strict=True))
    except UndecodableError:
        return "", {}, f"an error that we do not know, 0x{data[:36].hex()}" + ("…" if len(data) > 36 else "")
    return fragment.name, arguments, _sentence(fragment, arguments)


def _sentence(fragment: Fragment, arguments: dict[str, Any]) -> str:
    if fragment is _ERROR:
        message = arguments["message"][:_LONGEST_TEXT]
        return f"{message}, {_SAFE[message]}" if message in _SAFE else repr(message)
    if fragment is _PANIC:
        return _PANICS.get(arguments["code"], f"panic {arguments['code']}")
    if fragment.name == "VoucherRefused" and arguments["why"] in iter(Refusal):
        arguments = arguments | {"why": Refusal(arguments["why"]).name}
    return f"{fragment.name}({', '.join(f'{name}: {_shown(value)}' for name, value in arguments.items())})"


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return "0x" + value.hex()[:_LONGEST_TEXT]
    return (
        value
        if isinstance(value, str) and (value.startswith("0x") or value in Refusal.__members__)
        else repr(value)[:_LONGEST_TEXT]
    )


@cache
def _known() -> dict[bytes, Fragment]:
    known = {_ERROR.selector: _ERROR, _PANIC.selector: _PANIC}
    for name in _CONTRACTS:
        known |= load_abi(name).errors
    return known
