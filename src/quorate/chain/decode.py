"""What a proposal's action would do, in plain words, from its bytes alone. Pure: nothing is asked of a chain or a
proposer.

Strict: an action is decoded only if its input is the one canonical encoding of a function that we know; anything else
is "unknown_function" or "undecodable", never a guess. Names of accounts and tokens come from the reader's own address
book, never from the contracts that a proposal points to. What a function *does* at a strange address nobody can say
from its name: a policy must look at `target`, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from quorate.chain.abi import Fragment, UndecodableError
from quorate.signatures import keccak
from quorate.units import Address, Call, Wei

__all__ = ["Action", "AddressBook", "Kind", "TokenUnit", "decode_action", "decode_actions"]

Kind = Literal[
    "native_transfer",
    "empty_call",
    "token_transfer",
    "token_transfer_from",
    "token_approve",
    "token_mint",
    "token_burn",
    "votes_delegate",
    "role_grant",
    "role_revoke",
    "role_renounce",
    "ownership_transfer",
    "ownership_renounce",
    "governor_setting",
    "timelock_setting",
    "relay",
    "upgrade",
    "unknown_function",
    "undecodable",
]

_UNLIMITED = 2**256 - 1
_DEEPEST_RELAY = 3


@dataclass(frozen=True)
class TokenUnit:
    """How amounts of a token are shown."""

    symbol: str
    decimals: int


@dataclass(frozen=True)
class AddressBook:
    """What the reader calls the accounts and tokens that it knows."""

    names: Mapping[Address, str] = field(default_factory=dict)
    tokens: Mapping[Address, TokenUnit] = field(default_factory=dict)
    payer: str = "the treasury"
    coin: TokenUnit = TokenUnit("ETH", 18)

    def show(self, address: Address) -> str:
        """The address, and its name where it is known."""
        name = self.names.get(address)
        return f"{name} ({address})" if name else address

    def show_amount(self, token: Address, amount: int) -> str:
        """The amount in the token's unit, exactly; in its smallest one where the token is unknown."""
        unit = self.tokens.get(token)
        if unit is None:
            return f"{amount} units of the unknown token {self.show(token)}"
        return f"{_decimal(amount, unit.decimals)} {unit.symbol}"


@dataclass(frozen=True)
class Action:
    """One call that a proposal would make, decoded.

    `function` is the signature ("transfer(address,uint256)"), the selector ("0x12345678") of an unknown one, empty for
    a plain payment, None where it cannot be read. `arguments` are numbers, checksummed addresses and bytes as 0x-hex,
    with their `names` beside them. `text` is for people and prompts; decide on the other fields.
    """

    kind: Kind
    target: Address
    value: Wei
    function: str | None
    names: tuple[str, ...]
    arguments: tuple[str | int, ...]
    text: str

    def argument(self, name: str) -> str | int:
        """The argument of this name; raises KeyError if there is none."""
        return dict(zip(self.names, self.arguments, strict=True))[name]

    @property
    def amount(self) -> int:
        """The argument "amount", in the smallest unit; raises KeyError if there is none."""
        return int(self.argument("amount"))


def decode_actions(calls: Sequence[Call], book: AddressBook | None = None) -> tuple[Action, ...]:
    """Every action of a proposal, in its order."""
    return tuple(decode_action(call.to, call.value, call.data, book) for call in calls)


def decode_action(target: Address, value: Wei, calldata: str, book: AddressBook | None = None) -> Action:
    """What a call of `target` with `value` wei and this input (0x-hex) would do."""
    return _decode(target, value, calldata, book or AddressBook(), _DEEPEST_RELAY)


def _decode(target: Address, value: Wei, calldata: str, book: AddressBook, depth: int) -> Action:
    try:
        data = bytes.fromhex(calldata.removeprefix("0x"))
    except ValueError:
        return _undecodable(target, value, "", book, "its input is no hexadecimal text")
    if not data:
        return _payment(target, value, book)
    if len(data) < 4:
        return _undecodable(target, value, "", book, f"its input has {len(data)} bytes, too few to name a function")
    known = _KNOWN.get(data[:4])
    if known is None:
        return _unknown(target, value, data, book)
    kind, fragment = known
    try:
        values = fragment.decode_arguments(data[4:])
    except UndecodableError as error:
        return _undecodable(target, value, fragment.signature, book, str(error))
    if value and not fragment.payable:
        return _undecodable(
            target, value, fragment.signature, book, "it carries a payment, which the function does not take"
        )
    named = dict(zip(fragment.names, values, strict=True))
    text = _words(fragment.name, target, named, book, depth)
    if value:
        text += f", with a payment of {_coins(value, book)}"
    return Action(kind, target, value, fragment.signature, fragment.names, tuple(map(_agreeable, values)), text)


def _words(name: str, target: Address, a: dict[str, Any], book: AddressBook, depth: int) -> str:
    """One clause of plain words for a decoded call; `a` holds its arguments by name."""
    on = book.show(target)
    match name:
        case "transfer":
            return f"send {book.show_amount(target, a['amount'])} from {book.payer} to {book.show(a['to'])}"
        case "transferFrom":
            amount = book.show_amount(target, a["amount"])
            return f"take {amount} from {book.show(a['from'])} and send it to {book.show(a['to'])}"
        case "approve" if a["amount"] == _UNLIMITED:
            unit = book.tokens.get(target)
            what = f"every {unit.symbol}" if unit else f"everything of the unknown token {on}"
            return f"let {book.show(a['spender'])} take {what} that {book.payer} has or will ever have"
        case "approve":
            amount = book.show_amount(target, a["amount"])
            return f"let {book.show(a['spender'])} take up to {amount} from {book.payer}"
        case "mint":
            return f"mint {book.show_amount(target, a['amount'])} for {book.show(a['to'])}"
        case "burn":
            return f"destroy {book.show_amount(target, a['amount'])} of {book.payer}"
        case "delegate":
            return f"give the votes of the {on} tokens that {book.payer} holds to {book.show(a['to'])}"
        case "grantRole":
            return f"give the role {_role(a['role'])} on {on} to {book.show(a['account'])}"
        case "revokeRole":
            return f"take the role {_role(a['role'])} on {on} away from {book.show(a['account'])}"
        case "renounceRole":
            return f"give up the role {_role(a['role'])} on {on} that {book.show(a['account'])} has"
        case "transferOwnership":
            return f"make {book.show(a['owner'])} the owner of {on}"
        case "renounceOwnership":
            return f"leave {on} without an owner for ever"
        case "setVotingDelay":
            return f"set the delay before votes of {on} to {a['seconds']} seconds"
        case "setVotingPeriod":
            return f"set the time for votes of {on} to {a['seconds']} seconds"
        case "setProposalThreshold":
            return f"set the votes that a proposer of {on} needs to {a['votes']} units of 1e-18"
        case "updateQuorumNumerator":
            return f"set the quorum of {on} to {a['percent']} percent of the supply"
        case "updateTimelock":
            return f"hand every power of {on} to another timelock, {book.show(a['timelock'])}"
        case "updateDelay":
            return f"set the waiting time of {on} to {a['seconds']} seconds"
        case "relay":
            if not depth:
                return f"make {on} call {book.show(a['target'])}, nested too deep to be shown"
            inner = _decode(a["target"], Wei(a["value"]), a["data"].hex(), book, depth - 1)
            return f"make {on} do this: {inner.text}"
        case "upgradeTo" | "upgradeToAndCall" | "upgrade" | "upgradeAndCall":
            proxy = book.show(a["proxy"]) if "proxy" in a else on
            then = f" and call it with {len(a['data'])} bytes" if a.get("data") else ""
            return f"replace the code of {proxy} by that of {book.show(a['implementation'])}{then}"
        case _:
            raise AssertionError(f"{name} is in the table without words")


def _payment(target: Address, value: Wei, book: AddressBook) -> Action:
    if not value:
        return Action("empty_call", target, value, "", (), (), f"call {book.show(target)} with nothing")
    text = f"send {_coins(value, book)} from {book.payer} to {book.show(target)}"
    return Action("native_transfer", target, value, "", ("to", "amount"), (target, value), text)


def _unknown(target: Address, value: Wei, data: bytes, book: AddressBook) -> Action:
    selector = "0x" + data[:4].hex()
    text = f"call the unknown function {selector} of {book.show(target)} with {len(data) - 4} bytes of arguments"
    if value:
        text += f" and a payment of {_coins(value, book)}"
    return Action("unknown_function", target, value, selector, (), (), text)


def _undecodable(target: Address, value: Wei, function: str, book: AddressBook, reason: str) -> Action:
    what = f"{function} of {book.show(target)}" if function else book.show(target)
    paying = f" with a payment of {_coins(value, book)}" if value else ""
    text = f"call {what}{paying} in a way that cannot be read: {reason}"
    return Action("undecodable", target, value, None, (), (), text)


def _coins(value: int, book: AddressBook) -> str:
    return f"{_decimal(value, book.coin.decimals)} {book.coin.symbol}"


def _decimal(amount: int, decimals: int) -> str:
    """The exact amount as a decimal number; `decimals` at least 0."""
    whole, part = divmod(amount, 10**decimals)
    digits = str(part).rjust(decimals, "0").rstrip("0") if part else ""
    return f"{whole:,}.{digits}" if digits else f"{whole:,}"


def _role(role: bytes) -> str:
    return _ROLES.get(role, "0x" + role.hex())


def _agreeable(value: str | int | bytes) -> str | int:
    """Bytes as 0x-hex: agreed state holds no bytes."""
    return "0x" + value.hex() if isinstance(value, bytes) else value


def _function(text: str) -> Fragment:
    """A fragment from "name(type name, ...)", with " payable" at its end where it takes payments."""
    name, _, inside = text.removesuffix(" payable").rstrip(")").partition("(")
    pairs = [argument.split() for argument in inside.split(",")] if inside else []
    return Fragment(name, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs), (), text.endswith(" payable"))


_ROLES = {bytes(32): "DEFAULT_ADMIN_ROLE"} | {
    keccak(text=name): name
    for name in ("PROPOSER_ROLE", "EXECUTOR_ROLE", "CANCELLER_ROLE", "MINTER_ROLE", "PAUSER_ROLE", "UPGRADER_ROLE")
}

_TABLE: tuple[tuple[Kind, str], ...] = (
    ("token_transfer", "transfer(address to,uint256 amount)"),
    ("token_transfer_from", "transferFrom(address from,address to,uint256 amount)"),
    ("token_approve", "approve(address spender,uint256 amount)"),
    ("token_mint", "mint(address to,uint256 amount)"),
    ("token_burn", "burn(uint256 amount)"),
    ("votes_delegate", "delegate(address to)"),
    ("role_grant", "grantRole(bytes32 role,address account)"),
    ("role_revoke", "revokeRole(bytes32 role,address account)"),
    ("role_renounce", "renounceRole(bytes32 role,address account)"),
    ("ownership_transfer", "transferOwnership(address owner)"),
    ("ownership_renounce", "renounceOwnership()"),
    ("governor_setting", "setVotingDelay(uint48 seconds)"),
    ("governor_setting", "setVotingPeriod(uint32 seconds)"),
    ("governor_setting", "setProposalThreshold(uint256 votes)"),
    ("governor_setting", "updateQuorumNumerator(uint256 percent)"),
    ("governor_setting", "updateTimelock(address timelock)"),
    ("timelock_setting", "updateDelay(uint256 seconds)"),
    ("relay", "relay(address target,uint256 value,bytes data) payable"),
    ("upgrade", "upgradeTo(address implementation)"),
    ("upgrade", "upgradeToAndCall(address implementation,bytes data) payable"),
    ("upgrade", "upgrade(address proxy,address implementation)"),
    ("upgrade", "upgradeAndCall(address proxy,address implementation,bytes data) payable"),
)
_KNOWN = {fragment.selector: (kind, fragment) for kind, text in _TABLE for fragment in (_function(text),)}
