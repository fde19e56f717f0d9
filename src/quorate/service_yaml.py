"""The text of a service.yaml as values that know their lines, with `${VAR:type:default}` filled in. Pure.

- `${VAR}` is the environment variable VAR, as text; `${VAR:int}` is read as a number; `${VAR:int:3}` is 3 where VAR is
  not set. Types: str, int, float, bool, list, dict (the last two as YAML). Inside a longer text only str makes sense.
- A key that stands twice is an error: YAML would silently take the last. So are aliases and tags: one place a value,
  and one way to say what it is. Both open doors of YAML's own (a few aliases can stand for gigabytes).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from quorate.errors import ConfigError
from quorate.nesting import DEEPEST

__all__ = ["Document", "read"]

Path = tuple[str, ...]
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<type>[a-z]*)(?::(?P<default>.*?))?)?\}", re.DOTALL)
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Document:
    """Keys and values of one file, or of a part of it."""

    file: str
    values: Mapping[str, Any]
    """As Python has them, nested; variables not filled in."""
    _lines: Mapping[Path, int]
    _path: Path = ()

    def where(self, *keys: str) -> str:
        """File and line of the key that `keys` lead to, or of the nearest above it that the file has."""
        path = (*self._path, *keys)
        while path and path not in self._lines:
            path = path[:-1]
        return f"{self.file}, line {self._lines[path]}" if path else self.file

    def part(self, key: str) -> Document:
        """The mapping under `key`, empty if it is not there; `ConfigError` if it is something else."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{self.where(key)}: {key} is {value!r}; expected keys and values")
        return dataclasses.replace(self, values=value or {}, _path=(*self._path, key))

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Raise `ConfigError` for a key that is none of `known`, with the one that is nearest to it."""
        names = sorted(known)
        for key in self.values:
            if key not in names:
                near = difflib.get_close_matches(key, names, 1)
                hint = f"Did you mean {near[0]}?" if near else f"It takes {names}."
                inside = f" in {'.'.join(self._path)}" if self._path else ""
                raise ConfigError(f"{self.where(key)}: unknown key {key!r}{inside}", fix=hint)

    def filled(self, environ: Mapping[str, str]) -> Document:
        """The same with every variable's value in its place."""
        return dataclasses.replace(self, values=_filled(self.values, environ, self.where))


def read(data: bytes, file: str) -> Document:
    """The document in `data`; `ConfigError` names the line where it is no YAML, or not keys and values."""
    if len(data) > _LARGEST:
        raise ConfigError(f"{file} has {len(data)} bytes; expected {_LARGEST} at most")
    lines: dict[Path, int] = {}
    try:
        text = data.decode()
        _refuse_doors(text, lambda line: f"{file}, line {line}")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _collect(node, (), lines, file)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}," if mark else ""
        raise ConfigError(f"{file}{at} is no YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date such as 2020-13-45
        raise ConfigError(f"{file} is no YAML: {error}") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{file}: expected keys and values, as in services/hello_world/service.yaml")
    return Document(file, values or {}, lines)


def _refuse_doors(text: str, where: Callable[[int], str]) -> None:
    """Raise `ConfigError` for an alias, a tag, or nesting deeper than any settings are; the parser recurses.

    Tokens are what the scanner finds without recursion. A list at the indentation of its key opens no token of its own.
    """
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        at = where(token.start_mark.line + 1)
        if depth > DEEPEST:
            raise ConfigError(f"{at}: nested too deeply, beyond {DEEPEST} levels")
        if isinstance(token, yaml.AliasToken):
            raise ConfigError(f"{at}: *{token.value} is an alias", fix="Write the value itself.")
        if isinstance(token, yaml.TagToken):
            raise ConfigError(f"{at}: {''.join(filter(None, token.value))} is a tag", fix="Write the value alone.")


_LARGEST = 1 << 18
_OPENING = (
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)


def _collect(node: yaml.Node, path: Path, lines: dict[Path, int], file: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if key.tag != "tag:yaml.org,2002:str":
            raise ConfigError(f"{file}, line {line}: the key {name} is no text", fix="Put it in quotes.")
        here = (*path, name)
        if here in lines:
            raise ConfigError(f"{file}, line {line}: {name} stands there twice, first in line {lines[here]}")
        lines[here] = line
        _collect(value, here, lines, file)


def _filled(value: Any, environ: Mapping[str, str], where: Callable[..., str], path: Path = ()) -> Any:
    if isinstance(value, dict):
        return {key: _filled(one, environ, where, (*path, key)) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, environ, where, path) for one in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    if (whole := _VARIABLE.fullmatch(value)) is not None:
        return _value_of(whole, environ, where(*path))
    text = _VARIABLE.sub(lambda found: str(_value_of(found, environ, where(*path))), value)
    if "${" in text:
        raise ConfigError(
            f"{where(*path)}: {value!r} is no ${{VAR:type:default}}", fix="For example: ${GREETING:str:hi}"
        )
    return text


def _value_of(found: re.Match[str], environ: Mapping[str, str], where: str) -> Any:
    name, kind, default = found["name"], found["type"] or "str", found["default"]
    if kind not in _READERS:
        near = difflib.get_close_matches(kind, _READERS, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Types are {', '.join(_READERS)}."
        raise ConfigError(f"{where}: {kind} is no type for {name}", fix=hint)
    text = environ.get(name, default)
    if text is None:
        raise ConfigError(
            f"{where}: the environment variable {name} is not set",
            fix=f"Set it, or give it a default: ${{{name}:{kind}:...}}",
        )
    try:
        return _READERS[kind](text)
    except (ValueError, KeyError, yaml.YAMLError, ConfigError):
        source = name if name in environ else f"the default of {name}"
        raise ConfigError(f"{where}: {source} is {text!r}; expected {kind}") from None


def _read_yaml(kind: type) -> Callable[[str], Any]:
    def read_as(text: str) -> Any:
        _refuse_doors(text, str)
        value = yaml.safe_load(text)
        if not isinstance(value, kind):
            raise ValueError(text)
        return value

    return read_as


_READERS: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": lambda text: _WORDS[text.lower()],
    "list": _read_yaml(list),
    "dict": _read_yaml(dict),
}
