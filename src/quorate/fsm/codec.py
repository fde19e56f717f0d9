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
import json
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from quorate.errors import PeerError, QuorateError, ServiceError

__all__ = ["conform", "decode", "describe", "encode", "require_codable"]

T = TypeVar("T")
_Reader = Callable[[Any, str], Any]

_INT_BOUND = 1 << 1024
_INT_DIGITS = 310  # a sign and the digits of 2**1024; checked before conversion, which takes quadratic time


def encode(value: Any) -> bytes:
    """The canonical JSON of `value`: tuples as lists, dataclasses by field. Raises `ServiceError` for anything else."""
    return _ENCODER.encode(_plain(value, "value")).encode()


def decode(hint: Any, data: bytes) -> Any:
    """The value of type `hint` whose encoding is `data`; `PeerError` with `data` as evidence if there is none."""
    read = _reader(hint)
    try:
        plain = _parse(data)
        value = read(plain, "value")
        if (canonical := encode(value)) != data:
            raise _Unfit(f"not canonical: the same value is written {_shown(canonical)}")
    except (_Unfit, ServiceError) as error:
        why = _shown(str(error).encode())
        raise PeerError(f"{_shown(data)} is no {_name(hint)}: {why}", evidence=data) from error
    return value


def conform(hint: Any, value: T) -> T:
    """`value` rebuilt as `decode` would give it (lists become tuples); `ServiceError` if it is not of type `hint`."""
    try:
        return typing.cast(T, _reader(hint)(_plain(value, "value"), "value"))
    except _Unfit as error:
        raise ServiceError(f"{value!r} is no {_name(hint)}: {error}") from error


def require_codable(hint: Any, where: str) -> None:
    """Raise `ServiceError`, naming `where` and the part at fault, if values of `hint` cannot be agreed on."""
    try:
        _reader(hint)
    except ServiceError as error:
        raise ServiceError(f"{where}: {error.message}", fix=error.fix) from error


def describe(hint: Any) -> str:
    """`hint` in words that change when its encoding, or the unit that its name promises, does."""
    if isinstance(hint, typing.NewType):
        return f"{hint.__name__}:{describe(hint.__supertype__)}"
    if hint is Ellipsis:
        return "..."
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"Literal{list(args)}"
    if origin is not None:
        name = "Union" if origin is types.UnionType else getattr(origin, "__name__", None) or str(origin)
        return f"{name}[{', '.join(describe(arg) for arg in args)}]"
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        return f"{hint.__name__}({', '.join(f'{f.name}: {describe(hints[f.name])}' for f in dataclasses.fields(hint))})"
    return _name(hint)


class _Unfit(Exception):
    """The bytes or the value do not fit the type."""


def _plain(value: Any, at: str) -> Any:
    """`value` in JSON's own types."""
    if value is None or type(value) is bool:
        return value
    if type(value) is str:
        return _text(value, at, ServiceError)
    if type(value) is int:
        if not -_INT_BOUND < value < _INT_BOUND:
            raise ServiceError(f"{at} is an integer of {value.bit_length()} bits; at most 1024 can be agreed on")
        return value
    if type(value) in (tuple, list):
        return [_plain(item, f"{at}[{i}]") for i, item in enumerate(value)]
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise ServiceError(f"{at} has the key {key!r}; only texts can be keys")
        return {_text(key, at, ServiceError): _plain(item, f"{at}[{key!r}]") for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), f"{at}.{f.name}") for f in dataclasses.fields(value)}
    raise ServiceError(
        f"{at} is {value!r}, a {type(value).__name__}; it has no canonical encoding",
        fix="Use texts, integers in a named unit, booleans, None, tuples, dicts by text, dataclasses of these.",
    )


def _text(value: str, at: str, error: type[Exception]) -> str:
    """`value`, unless it has a lone surrogate: a peer's would make `.encode()` fail in somebody's act or rule."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as cause:
            raise error(f"{at} is {value!r}, which is no valid Unicode text") from cause
    return value


def _parse(data: bytes) -> Any:
    try:
        return _DECODER.decode(data.decode())
    except RecursionError as error:  # no type that we read is that deep: it is unfit, however deep our own stack is
        raise _Unfit("nested too deeply") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise _Unfit(f"not JSON: {error}") from error


def _refuse_float(text: str) -> Any:
    raise _Unfit(f"{text[:40]} is a float; floats differ between machines")


def _parse_int(text: str) -> int:
    if len(text) > _INT_DIGITS or not -_INT_BOUND < (value := int(text)) < _INT_BOUND:
        raise _Unfit(f"an integer of {len(text)} digits; at most 1024 bits can be agreed on")
    return value


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _Unfit(f"a key appears twice among {sorted(key for key, _ in pairs)}")
    return result


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_DECODER = json.JSONDecoder(
    parse_float=_refuse_float, parse_constant=_refuse_float, parse_int=_parse_int, object_pairs_hook=_parse_object
)


@functools.cache
def _reader(hint: Any) -> _Reader:
    return _build(hint, ())


def _build(hint: Any, inside: tuple[type, ...]) -> _Reader:
    """A function from parsed JSON to a value of type `hint`; `ServiceError` if no such value can be agreed on."""
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    if hint in _SCALARS:
        return _SCALARS[hint]
    if hint is float:
        raise ServiceError(
            "floats differ between machines", fix="Send an integer in a named unit: Bps, Wei, seconds, thousandths."
        )
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _literal_reader(args)
    if origin in (Union, types.UnionType):
        return _optional_reader(hint, args, inside)
    if origin is tuple and args:
        return _tuple_reader(args, inside)
    if origin is dict:
        return _dict_reader(hint, args, inside)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass_reader(hint, inside)
    raise ServiceError(f"{_name(hint)} cannot be agreed on", fix=_FIXES.get(origin or hint, _FIX))


_FIX = "Use str, int, bool, None, Literal, X | None, tuple[X, ...], dict[str, X] or a frozen dataclass of these."
_FIXES: dict[Any, str] = {
    list: "A list can change under the rule that counted it: write tuple[X, ...].",
    set: "A set has no order: write tuple[X, ...] and sort it.",
    frozenset: "A set has no order: write tuple[X, ...] and sort it.",
    bytes: "Write the bytes as text: '0x' and hex digits.",
    tuple: "Say of what: tuple[X, ...] or tuple[X, Y].",
    dict: "Say of what: dict[str, X].",
}


def _scalar_reader(kind: type) -> _Reader:
    def read(plain: Any, at: str) -> Any:
        if type(plain) is not kind:  # not isinstance: True is no integer here
            raise _Unfit(f"{at} is {_json(plain)}, expected {kind.__name__}")
        return plain

    return read


def _read_text(plain: Any, at: str) -> Any:
    if type(plain) is not str:
        raise _Unfit(f"{at} is {_json(plain)}, expected str")
    return _text(plain, at, _Unfit)


_SCALARS: dict[Any, _Reader] = {
    str: _read_text,
    int: _scalar_reader(int),
    bool: _scalar_reader(bool),
    None: _scalar_reader(type(None)),
    type(None): _scalar_reader(type(None)),
}


def _literal_reader(options: tuple[Any, ...]) -> _Reader:
    for option in options:
        if type(option) not in (str, int, bool, type(None)):
            raise ServiceError(f"the option {option!r} cannot be agreed on", fix=_FIX)

    def read(plain: Any, at: str) -> Any:
        for option in options:
            if type(option) is type(plain) and option == plain:
                return option
        raise _Unfit(f"{at} is {_json(plain)}, expected one of {list(options)}")

    return read


def _optional_reader(hint: Any, args: tuple[Any, ...], inside: tuple[type, ...]) -> _Reader:
    others = [arg for arg in args if arg is not type(None)]
    if len(others) != 1 or len(others) == len(args):
        raise ServiceError(
            f"{_name(hint)} has two meanings for one text",
            fix="Give the value one type, or wrap each case in a dataclass field.",
        )
    read_other = _build(others[0], inside)

    def read(plain: Any, at: str) -> Any:
        return None if plain is None else read_other(plain, at)

    return read


def _tuple_reader(args: tuple[Any, ...], inside: tuple[type, ...]) -> _Reader:
    if len(args) == 2 and args[1] is Ellipsis:
        read_item = _build(args[0], inside)

        def read_any(plain: Any, at: str) -> Any:
            if type(plain) is not list:
                raise _Unfit(f"{at} is {_json(plain)}, expected a list")
            return tuple(read_item(item, f"{at}[{i}]") for i, item in enumerate(plain))

        return read_any
    readers = [_build(arg, inside) for arg in args]

    def read_fixed(plain: Any, at: str) -> Any:
        if type(plain) is not list or len(plain) != len(readers):
            raise _Unfit(f"{at} is {_json(plain)}, expected a list of {len(readers)}")
        return tuple(read(item, f"{at}[{i}]") for i, (read, item) in enumerate(zip(readers, plain, strict=True)))

    return read_fixed


def _dict_reader(hint: Any, args: tuple[Any, ...], inside: tuple[type, ...]) -> _Reader:
    key = args[0]
    while isinstance(key, typing.NewType):
        key = key.__supertype__
    if key is not str:
        raise ServiceError(f"{_name(hint)} cannot be agreed on: only texts can be keys", fix=_FIX)
    read_item = _build(args[1], inside)

    def read(plain: Any, at: str) -> Any:
        if type(plain) is not dict:
            raise _Unfit(f"{at} is {_json(plain)}, expected an object")
        # In key order, whatever order it came in: the value of equal bytes iterates alike for all.
        return {_text(k, at, _Unfit): read_item(plain[k], f"{at}[{k!r}]") for k in sorted(plain)}

    return read


def _dataclass_reader(cls: type, inside: tuple[type, ...]) -> _Reader:
    if cls in inside:
        raise ServiceError(f"{cls.__name__} contains itself", fix="Give the payload a fixed depth.")
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise ServiceError(
            f"an annotation of {cls.__name__} cannot be resolved: {error}",
            fix="Import that name at the top of the module.",
        ) from error
    if not getattr(cls, "__dataclass_params__").frozen:  # noqa: B009 (mypy does not know the attribute)
        raise ServiceError(
            f"{cls.__name__} can be changed after it was agreed on", fix="Write @dataclass(frozen=True)."
        )
    readers: dict[str, _Reader] = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            raise ServiceError(f"{cls.__name__}.{field.name} has init=False, so it cannot be rebuilt from its encoding")
        try:
            readers[field.name] = _build(hints[field.name], (*inside, cls))
        except ServiceError as error:
            raise ServiceError(f"{cls.__name__}.{field.name}: {error.message}", fix=error.fix) from error

    def read(plain: Any, at: str) -> Any:
        if type(plain) is not dict:
            raise _Unfit(f"{at} is {_json(plain)}, expected an object")
        if plain.keys() != readers.keys():
            missing, unknown = sorted(readers.keys() - plain.keys()), sorted(plain.keys() - readers.keys())
            raise _Unfit(f"{at} lacks the fields {missing} and has the unknown fields {unknown}")
        values = {name: read_field(plain[name], f"{at}.{name}") for name, read_field in readers.items()}
        try:
            return cls(**values)
        except (ArithmeticError, LookupError, TypeError, ValueError, QuorateError) as error:  # its own __post_init__
            raise _Unfit(f"{at} is refused by {cls.__name__}: {error}") from error

    return read


def _name(hint: Any) -> str:
    if isinstance(hint, typing.NewType):
        return hint.__name__
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def _json(plain: Any) -> str:
    return _shown(json.dumps(plain).encode(), 80)


def _shown(data: bytes, limit: int = 200) -> str:
    """Enough of a peer's bytes to recognise them; it may have sent a log file's worth."""
    text = data.decode(errors="backslashreplace")
    return text if len(text) <= limit else f"{text[:limit]}... ({len(data)} bytes)"
