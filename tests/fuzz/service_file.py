"""A service.yaml, and the environment that fills in its variables."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from quorate.errors import ConfigError
from quorate.loader import load_settings
from quorate.service_yaml import read
from tests.fuzz.engine import Target, label_of, mutate_bytes
from tests.property.test_service_yaml import SERVICE

__all__ = ["ServiceFile"]

_WORDS = (
    *("config:", "\n  ", "overrides:", "agent-1:", "pause_s: 1", "names: [a, b]", "- ", "? ", "!!int ", "!!bool x"),
    *("!!timestamp x", "&a ", "*a", "<<: ", "${A}", "${A:int:3}", "${A:list:[1]}", "${A:dict:", "}", "[", "{", "'"),
    *('"', "| \n", "> \n", "%YAML 1.1\n", "---\n", "...\n", "\t", "#", ": ", ",", "0o7", "1:1:1", "2020-13-45"),
    *(".nan", "=", "~"),
)


class ServiceFile(Target):
    """`service_yaml.read` and `load_settings`: settings, or a `ConfigError`. After a NUL: the variable A's value."""

    name = "service_file"
    largest = 2_000

    def __init__(self) -> None:
        self._folder = TemporaryDirectory()

    def seeds(self) -> Iterable[bytes]:
        yield b"agents: 4\nconfig:\n  safe: '0xA'\n  pause_s: ${A:float:1.5}\n  names: [a, b]\n\0" + b"2"
        yield b"description: |\n  words\noverrides:\n  agent-1: {pause_s: 3, names: ['${A:str:x}']}\n"
        yield b"config: {names: '${A:list}'}\n\0[a, b]"

    def mutate(self, data: bytes, other: bytes, rng: random.Random) -> bytes:
        """Half of the changes put a word of YAML somewhere, once or very often."""
        if rng.random() < 0.5:
            return mutate_bytes(data, other, rng)
        at = rng.randint(0, len(data))
        return data[:at] + rng.choice(_WORDS).encode() * rng.choice((1, 1, 1, 2, 100)) + data[at:]

    def run(self, data: bytes) -> str:
        text, _, value = data.partition(b"\0")
        environ = {"A": value.decode("latin-1")}
        try:
            document = read(text, "f")
        except ConfigError as error:
            return label_of(error)
        assert read(text, "f") == document, "a file that reads differently the second time"
        lines = text.count(b"\n") + 1
        for key in document.values:
            place, _, number = document.where(key).rpartition("line ")
            assert place == "f, ", f"{key!r} has no place"
            assert int(number) <= lines or b"\r" in text or not text.isascii(), f"{key!r} stands beyond the end"
        (Path(self._folder.name) / "service.yaml").write_bytes(text)
        try:
            settings = load_settings(SERVICE, self._folder.name, agent="agent-1", environ=environ)
        except ConfigError as error:
            return label_of(error)
        assert len(settings.config_hash()) == 64
        return f"settings of {settings.agents}"

    def close(self) -> None:
        self._folder.cleanup()
