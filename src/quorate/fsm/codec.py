"""One value, one encoding: canonical JSON for everything that agents agree on.

Rules that hold here:
- `encode` gives equal bytes for equal values on every machine: sorted keys, no blanks, UTF-8, no floats.
- `decode` accepts exactly what `encode` gives for a value of that type and nothing else, so no two byte strings mean
  the same payload, and whatever it returns is of the annotated type to the last leaf.
- Nothing depends on the interpreter's settings or the stack: bounds are ours and part of the format.

Types: str, int (up to 1024 bits: above, Python's own limit on digits is an environment variable), bool, None, Literal,
NewType, X | None, tuple[X, ...], tuple[X, Y], dict[str, X] and dataclasses of these.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from quorate.errors import PeerError, QuorateError, ServiceError
from quorate.nesting import load_json

__all__ = ["conform", "decode", "describe", "encode", "require_codable"]

T = TypeVar("T")
_Reader = Callable[[Any], Any]

_INT_BOUND = 1 << 1024
_REMEMBERED = 64  # of each type: a payload is decoded at every step of its way, and by each simulated agent


def encode(value: Any) -> bytes:
    """The canonical JSON of `value`: tuples as lists, dataclasses by field. Raises `ServiceError` for anything else."""
    try:
        return _write(value).encode()
    except UnicodeEncodeError as error:  # a lone surrogate: no UTF-8
        raise ServiceError(f"the value {value!r} holds a text that is no valid Unicode") from error


def decode(hint: Any, data: bytes) -> Any:
    """The value of type `hint` whose encoding is `data`; `PeerError` with `data` as evidence if there is none."""
    try:
        return _decoder(hint)(data)
    except _Unfit as error:
        why = _shown(str(error).encode(errors="backslashreplace"))
        raise PeerError(f"{_shown(data)} is no {_name(hint)}: {why}", evidence=data) from error


def conform(hint: Any, value: T) -> T:
    """`value` rebuilt as `decode` would give it (lists become tuples); `ServiceError` if it is not of type `hint`."""
    try:
        return typing.cast(T, _decoder(hint)(encode(value)))
    except _Unfit as error:
        raise ServiceError(f"{value!r} is no {_name(hint)}: {error}") from error


def require_codable(hint: Any, where: str) -> None:
    """Raise `ServiceError`, naming `where` and the part at fault, if values of `hint` cannot be agreed on."""
    try:
        _decoder(hint)
    except ServiceError as error:
        raise ServiceError(f"{where}: {error.message}", fix=error.fix) from error


def describe(hint: Any) -> str:
    """`hint` in words that change when its encoding, or the unit that its name promises, does."""
    if isinstance(hint, typing.NewType):
        return f"{hint.__name__}:{describe(hint.__supertype__)}"
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return f"{_name(hint)}({', '.join(f'{f.name}: {describe(hints[f.name])}' for f in dataclasses.fields(hint))})"
    args = get_args(hint)
    if get_origin(hint) is Literal or not args:
        return _name(hint)
    kind = "Union" if get_origin(hint) in _UNIONS else get_origin(hint).__name__
    return f"{kind}[{', '.join('...' if arg is ... else describe(arg) for arg in args)}]"


class _Unfit(Exception):
    """The bytes or the value do not fit the type."""


def _write(value: Any) -> str:
    kind: Any = type(value)
    if kind is str:
        return _quoted(value)
    if kind is int:
        if not -_INT_BOUND < value < _INT_BOUND:
            raise ServiceError(f"the value is an integer of {value.bit_length()} bits; at most 1024 can be agreed on")
        return str(value)
    if value is None or kind is bool:
        return "null" if value is None else "true" if value else "false"
    if kind is tuple or kind is list:
        return f"[{','.join([_write(item) for item in value])}]"
    if kind is dict:
        if strange := [key for key in value if type(key) is not str]:
            raise ServiceError(f"the value {value!r} has the key {strange[0]!r}; only texts can be keys")
        return "{" + ",".join([f"{_quoted(key)}:{_write(value[key])}" for key in sorted(value)]) + "}"
    if (names := _sorted_fields(kind)) is None:
        raise ServiceError(
            f"the value {value!r} is a {kind.__name__}, which has no canonical encoding",
            fix="Use texts, integers in a named unit, booleans, None, tuples, dicts by text, dataclasses of these.",
        )
    return "{" + ",".join([f'"{name}":{_write(getattr(value, name))}' for name in names]) + "}"


@functools.cache
def _sorted_fields(kind: Any) -> list[str] | None:
    return sorted(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


_quoted = json.encoder.encode_basestring


@functools.cache
def _decoder(hint: Any) -> Callable[[bytes], Any]:
    """From bytes to a value of type `hint`; `_Unfit` if there is none, `ServiceError` if no such can be agreed on.

    Canonical first, which also rules out what JSON leaves open: blanks, escapes, -0, a key that appears twice. Values
    without a dict are remembered and shared; a dict is made anew for each caller, who might write to it.
    """
    read = _build(hint, "value", ())

    def decode(data: bytes) -> Any:
        try:
            plain = load_json(data)
            canonical = encode(plain)
        except (ValueError, ServiceError) as error:  # JSONDecodeError and UnicodeDecodeError; a float, a huge integer
            raise _Unfit(f"not JSON that can be agreed on: {error}") from error
        if canonical != data:
            raise _Unfit(f"not canonical: the same value is written {_shown(canonical)}")
        return read(plain)

    return decode if "dict[" in describe(hint) else functools.lru_cache(_REMEMBERED)(decode)


def _build(hint: Any, at: str, inside: tuple[type, ...]) -> _Reader:
    """A function from parsed canonical JSON to a value of type `hint`; `ServiceError` if no such can be agreed on.

    `at` says for messages where in the whole the value stands; `inside` holds the dataclasses around it.
    """
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    if hint in (str, int, bool, None, type(None)):
        return _scalar_reader(type(None) if hint is None else hint, at)
    if hint is float:
        fix = "Send an integer in a named unit: Bps, Wei, seconds, thousandths."
        raise ServiceError("floats differ between machines", fix=fix)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _literal_reader(args, at)
    if origin in _UNIONS:
        others = [arg for arg in args if arg is not type(None)]
        if len(others) != 1:
            fix = "Give the value one type, or wrap each case in a dataclass field."
            raise ServiceError(f"{_name(hint)} has two meanings for one text", fix=fix)
        read_other = _build(others[0], at, inside)
        return lambda plain: None if plain is None else read_other(plain)
    if origin is tuple and args:
        return _tuple_reader(args, at, inside)
    if origin is dict and describe(args[0]).endswith("str"):
        return _dict_reader(args[1], at, inside)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass_reader(hint, at, inside)
    raise ServiceError(f"{_name(hint)} cannot be agreed on", fix=_FIXES.get(origin or hint, _FIX))


_UNIONS = (Union, types.UnionType)
_FIX = "Use str, int, bool, None, Literal, X | None, tuple[X, ...], dict[str, X] or a frozen dataclass of these."
_FIXES: dict[Any, str] = {
    list: "A list can change under the rule that counted it: write tuple[X, ...].",
    **dict.fromkeys((set, frozenset), "A set has no order: write tuple[X, ...] and sort it."),
    bytes: "Write the bytes as text: '0x' and hex digits.",
    tuple: "Say of what: tuple[X, ...] or tuple[X, Y].",
    dict: "Say of what, by text: dict[str, X].",
}


def _scalar_reader(kind: type, at: str) -> _Reader:
    def read(plain: Any) -> Any:
        if type(plain) is not kind:  # not isinstance: True is no integer here
            raise _Unfit(f"{at} is {_json(plain)}, expected {kind.__name__}")
        return plain

    return read


def _literal_reader(options: tuple[Any, ...], at: str) -> _Reader:
    for option in options:
        if type(option) not in (str, int, bool, type(None)):
            raise ServiceError(f"the option {option!r} cannot be agreed on", fix=_FIX)

    def read(plain: Any) -> Any:
        for option in options:
            if type(option) is type(plain) and option == plain:
                return option
        raise _Unfit(f"{at} is {_json(plain)}, expected one of {list(options)}")

    return read


def _tuple_reader(args: tuple[Any, ...], at: str, inside: tuple[type, ...]) -> _Reader:
    size = None if args[-1] is ... else len(args)
    readers = [_build(arg, f"{at}[{i if size else ''}]", inside) for i, arg in enumerate(args) if arg is not ...]
    expected = "a list" if size is None else f"a list of {size}"

    def read(plain: Any) -> Any:
        if type(plain) is not list or size not in (None, len(plain)):
            raise _Unfit(f"{at} is {_json(plain)}, expected {expected}")
        return tuple([read_item(item) for read_item, item in zip(itertools.cycle(readers), plain, strict=False)])

    return read


def _dict_reader(item: Any, at: str, inside: tuple[type, ...]) -> _Reader:
    read_item = _build(item, f"{at}[]", inside)

    def read(plain: Any) -> Any:
        if type(plain) is not dict:
            raise _Unfit(f"{at} is {_json(plain)}, expected an object")
        return {key: read_item(one) for key, one in plain.items()}  # in key order, as all canonical JSON is

    return read


def _dataclass_reader(cls: type, at: str, inside: tuple[type, ...]) -> _Reader:
    if cls in inside:
        raise ServiceError(f"{cls.__name__} contains itself", fix="Give the payload a fixed depth.")
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        fix = "Import that name at the top of the module."
        raise ServiceError(f"an annotation of {cls.__name__} cannot be resolved: {error}", fix=fix) from error
    if not getattr(cls, "__dataclass_params__").frozen:  # noqa: B009 (mypy does not know the attribute)
        fix = "Write @dataclass(frozen=True)."
        raise ServiceError(f"{cls.__name__} can be changed after it was agreed on", fix=fix)
    readers: dict[str, _Reader] = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            raise ServiceError(f"{cls.__name__}.{field.name} has init=False, so it cannot be rebuilt from its encoding")
        try:
            readers[field.name] = _build(hints[field.name], f"{at}.{field.name}", (*inside, cls))
        except ServiceError as error:
            raise ServiceError(f"{cls.__name__}.{field.name}: {error.message}", fix=error.fix) from error

    def read(plain: Any) -> Any:
        if type(plain) is not dict:
            raise _Unfit(f"{at} is {_json(plain)}, expected an object")
        if plain.keys() != readers.keys():
            missing, unknown = sorted(readers.keys() - plain.keys()), sorted(plain.keys() - readers.keys())
            raise _Unfit(f"{at} lacks the fields {missing} and has the unknown fields {unknown}")
        values = {name: read_field(plain[name]) for name, read_field in readers.items()}
        try:
            made = cls(**values)
        except (ArithmeticError, LookupError, TypeError, ValueError, QuorateError) as error:  # its own __post_init__
            raise _Unfit(f"{at} is refused by {cls.__name__}: {error}") from error
        for name, value in values.items():
            if (now := getattr(made, name)) is not value and _write(now) != _write(value):
                raise _Unfit(f"not canonical: {cls.__name__} changes {at}.{name} when it is made")
        return made

    return read


def _name(hint: Any) -> str:
    named = isinstance(hint, (type, typing.NewType)) and not get_args(hint)
    return hint.__name__ if named else str(hint).replace("typing.", "")


def _json(plain: Any) -> str:
    return _shown(encode(plain), 80)


def _shown(data: bytes, limit: int = 200) -> str:
    """Enough of a peer's bytes to recognise them; it may have sent a log file's worth."""
    text = data.decode(errors="backslashreplace")
    return text if len(text) <= limit else f"{text[:limit]}... ({len(data)} bytes)"
