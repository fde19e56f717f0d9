"""A contract's ABI: encode calls, decode results, events and errors. Pure; nothing here asks a chain.

Addresses come out checksummed, byte strings as ``bytes``, integers as ``int``, structs and arrays as tuples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from eth_abi.abi import encode
from eth_abi.codec import ABICodec
from eth_abi.decoding import ContextFramesBytesIO, StringDecoder
from eth_abi.encoding import TextStringEncoder
from eth_abi.exceptions import DecodingError, EncodingError, InsufficientDataBytes, ParseError
from eth_abi.registry import BaseEquals, registry
from eth_utils.abi import collapse_if_tuple
from eth_utils.address import to_checksum_address

from quorate.errors import ChainError
from quorate.signatures import keccak
from quorate.units import Address

__all__ = ["Abi", "Event", "Fragment", "UndecodableError", "decode_exactly", "load_abi", "selector_of"]


class UndecodableError(ChainError):
    """Bytes that are not the one canonical encoding of the expected types."""


@dataclass(frozen=True)
class Fragment:
    """A function or custom error: its name, and the types and names of what it takes."""

    name: str
    types: tuple[str, ...]
    names: tuple[str, ...]
    returns: tuple[str, ...] = ()
    payable: bool = False

    @property
    def signature(self) -> str:
        """As its selector is made from: name(type,type)."""
        return f"{self.name}({','.join(self.types)})"

    @property
    def selector(self) -> bytes:
        """The 4 bytes that a call of it begins with."""
        return keccak(text=self.signature)[:4]

    def decode_arguments(self, encoded: bytes) -> tuple[Any, ...]:
        """The arguments behind the selector; raises UndecodableError."""
        return decode_exactly(self.types, encoded)


@dataclass(frozen=True)
class Event:
    """An event: `indexed` tells for each parameter whether it is a topic."""

    name: str
    types: tuple[str, ...]
    names: tuple[str, ...]
    indexed: tuple[bool, ...]

    @property
    def topic(self) -> bytes:
        """The 32 bytes that a log of it begins with."""
        return keccak(text=f"{self.name}({','.join(self.types)})")

    def decode(self, topics: Sequence[bytes], data: bytes) -> dict[str, Any]:
        """Every parameter by its name. An indexed string, bytes, array or struct is its hash (that is all a log
        holds).
        """
        if len(topics) != 1 + sum(self.indexed) or topics[0] != self.topic:
            raise UndecodableError(f"{len(topics)} topics that are not those of {self.name}")
        flat = _decode([t for t, i in zip(self.types, self.indexed, strict=True) if not i], data)
        values, hashed = iter(flat), iter(topics[1:])
        return {
            name: _topic_value(kind, next(hashed)) if indexed else next(values)
            for kind, name, indexed in zip(self.types, self.names, self.indexed, strict=True)
        }


class Abi:
    """The functions, events and errors of one contract, and its creation code where it is ours to deploy."""

    def __init__(self, entries: Iterable[Mapping[str, Any]], bytecode: str = "") -> None:
        self.bytecode = bytecode
        self.constructor: tuple[str, ...] = ()
        self.functions: dict[str, list[Fragment]] = {}
        self.errors: dict[bytes, Fragment] = {}
        self.events: dict[str, Event] = {}
        for entry in entries:
            self._add(entry)

    def _add(self, entry: Mapping[str, Any]) -> None:
        kind, inputs = entry["type"], entry.get("inputs", [])
        types = tuple(collapse_if_tuple(i) for i in inputs)
        names = tuple(i.get("name", "") for i in inputs)
        if kind == "constructor":
            self.constructor = types
        elif kind == "function":
            returns = tuple(collapse_if_tuple(o) for o in entry.get("outputs", []))
            payable = entry.get("stateMutability") == "payable"
            fragment = Fragment(entry["name"], types, names, returns, payable)
            self.functions.setdefault(fragment.name, []).append(fragment)
        elif kind == "error":
            fragment = Fragment(entry["name"], types, names)
            self.errors[fragment.selector] = fragment
        elif kind == "event":
            self.events[entry["name"]] = Event(entry["name"], types, names, tuple(i["indexed"] for i in inputs))

    def function(self, name: str, count: int) -> Fragment:
        """The function of this name (or whole signature) that takes `count` arguments; raises ValueError unless there
        is one.
        """
        overloads = self.functions.get(name.partition("(")[0], [])
        found = [f for f in overloads if (f.signature == name if "(" in name else len(f.types) == count)]
        if len(found) != 1:
            known = ", ".join(f.signature for f in overloads) or "no function of that name"
            raise ValueError(f"{name} with {count} arguments names {len(found)} functions; there is: {known}")
        return found[0]

    def encode(self, name: str, *arguments: Any) -> str:
        """A call's input as 0x-hex; raises ValueError where an argument does not fit its type."""
        function = self.function(name, len(arguments))
        return "0x" + (function.selector + _encode(function.signature, function.types, arguments)).hex()

    def creation(self, *arguments: Any) -> str:
        """The input of the transaction that deploys this contract, as 0x-hex."""
        if not self.bytecode:
            raise ValueError("this ABI came without bytecode; only contracts of the export can be deployed")
        return self.bytecode + _encode("constructor", self.constructor, arguments).hex()

    def results(self, name: str, count: int, encoded: bytes) -> tuple[Any, ...]:
        """What the function returned; raises UndecodableError."""
        return _decode(self.function(name, count).returns, encoded)

    def topic(self, event: str) -> bytes:
        """The 32 bytes that logs of this event begin with."""
        return self.events[event].topic


@cache
def load_abi(name: str) -> Abi:
    """The ABI and bytecode of one of our contracts, as ``contracts/export.py`` wrote them."""
    artifact = json.loads(files("quorate.chain").joinpath("artifacts", f"{name}.json").read_text())
    return Abi(artifact["abi"], artifact["bytecode"])


def selector_of(signature: str) -> str:
    """The first four bytes of a call of this function ("transfer(address,uint256)"), as 0x-hex."""
    return "0x" + keccak(text=signature)[:4].hex()


def decode_exactly(types: Sequence[str], encoded: bytes) -> tuple[Any, ...]:
    """The values, if `encoded` is their one canonical encoding and nothing more; raises UndecodableError.

    Solidity ignores trailing bytes and accepts odd offsets; whoever shows an action to a voter must not, or two readers
    could see two different actions in the same bytes.
    """
    try:
        values = _STRICT.decode(types, encoded)
        canonical = encode(types, values)
    except _MALFORMED as error:
        raise UndecodableError(f"{len(encoded)} bytes do not decode as ({', '.join(types)}): {error}") from error
    if canonical != encoded:
        raise UndecodableError(f"{len(encoded)} bytes are not the canonical encoding of ({', '.join(types)})")
    return tuple(_mapped(kind, value, _read_leaf) for kind, value in zip(types, values, strict=True))


def _encode(what: str, types: Sequence[str], arguments: Sequence[Any]) -> bytes:
    if len(types) != len(arguments):
        raise ValueError(f"{what} takes {len(types)} arguments, not {len(arguments)}")
    try:
        return encode(types, [_mapped(kind, value, _write_leaf) for kind, value in zip(types, arguments, strict=True)])
    except EncodingError as error:
        raise ValueError(f"{what}: {error}") from error


def _decode(types: Sequence[str], encoded: bytes) -> tuple[Any, ...]:
    """What a contract answered. Strings in it are somebody's text: bytes that are no UTF-8 become U+FFFD, so that one
    operator or proposer who writes such bytes cannot make the answer about all the others unreadable."""
    try:
        values = _LENIENT.decode(types, encoded)
    except _MALFORMED as error:
        raise UndecodableError(f"{len(encoded)} bytes do not decode as ({', '.join(types)}): {error}") from error
    return tuple(_mapped(kind, value, _read_leaf) for kind, value in zip(types, values, strict=True))


def _mapped(kind: str, value: Any, leaf: Callable[[str, Any], Any]) -> Any:
    """`value` of the ABI type `kind` with `leaf` applied to every elementary value in it; arrays and structs as
    tuples.
    """
    if kind.endswith("]"):
        element = kind[: kind.rindex("[")]
        return tuple(_mapped(element, item, leaf) for item in value)
    if kind.startswith("("):
        return tuple(_mapped(member, item, leaf) for member, item in zip(_members(kind), value, strict=True))
    return leaf(kind, value)


def _read_leaf(kind: str, value: Any) -> Any:
    return Address(to_checksum_address(value)) if kind == "address" else value


def _write_leaf(kind: str, value: Any) -> Any:
    """Bytes may be given as 0x-hex, as a Hash or a Call's data are."""
    if kind.startswith("bytes") and isinstance(value, str):
        return bytes.fromhex(value.removeprefix("0x"))
    return value


def _members(kind: str) -> list[str]:
    """The member types of a tuple type such as ``(address,(string,bytes32)[],bool)``."""
    members, depth, start = [], 0, 1
    for position, character in enumerate(kind):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if (character == "," and depth == 1) or (character == ")" and depth == 0):
            members.append(kind[start:position])
            start = position + 1
    return members


def _topic_value(kind: str, topic: bytes) -> Any:
    if kind in ("string", "bytes") or kind.endswith(("]", ")")):
        return topic
    return decode_exactly([kind], topic)[0]


class _Metered(ContextFramesBytesIO):
    """Ends a decoding that reads the same bytes again and again: offsets may overlap, and a few of them stand for more
    than any memory holds. A canonical encoding is read about three times.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        self._left = 16 * len(self.getbuffer()) + 4096

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self._left -= len(found) + 1
        if self._left < 0:
            raise InsufficientDataBytes("its parts overlap")
        return found


def _lenient_codec() -> ABICodec:
    lenient = registry.copy()  # type: ignore[no-untyped-call]
    lenient.unregister("string")
    is_string = BaseEquals("string", with_sub=False)  # type: ignore[no-untyped-call]
    decoder = StringDecoder(handle_string_errors="replace")  # type: ignore[no-untyped-call]
    lenient.register(is_string, TextStringEncoder, decoder, label="string")
    return ABICodec(lenient)


_MALFORMED = (DecodingError, EncodingError, ParseError, OverflowError, UnicodeDecodeError)
_LENIENT, _STRICT = _lenient_codec(), ABICodec(registry)
_LENIENT.stream_class = _STRICT.stream_class = _Metered  # each codec's own
