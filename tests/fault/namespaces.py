"""A network namespace for each agent, joined by a bridge: a cut loses packets, and TCP finds out by itself. Root only.

The alternative to `links` with the same methods, but for what only a proxy can do (one way, slow, led elsewhere).
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from collections.abc import Iterable

__all__ = ["Namespaces", "can_make_namespaces"]

_PORT = 26656


def can_make_namespaces() -> bool:
    """Whether this process may make network namespaces, pairs of interfaces and bridges."""
    probe = "ip link add qtprobe type bridge && ip link add qtprobe0 type veth peer name qtprobe1 && ip link set lo up"
    try:
        return subprocess.run(["unshare", "-n", "sh", "-c", probe], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


class Namespaces:
    """`names` are unused anywhere else; `close` removes them all, and nothing else."""

    def __init__(self, ports: Iterable[int]) -> None:
        mark = f"qt{secrets.token_hex(3)}"
        self._bridge = f"{mark}br"
        self._names = {index: f"{mark}-{index}" for index, _ in enumerate(ports)}

    async def open(self) -> None:
        await _ip("link", "add", self._bridge, "type", "bridge")
        await _ip("link", "set", self._bridge, "up")
        for index, name in self._names.items():
            inside, outside = f"{name}i", f"{name}o"
            await _ip("netns", "add", name)
            await _ip("link", "add", outside, "type", "veth", "peer", "name", inside)
            await _ip("link", "set", inside, "netns", name)
            await _ip("link", "set", outside, "master", self._bridge, "up")
            await _ip("-n", name, "address", "add", f"{self.own(index)[0]}/24", "dev", inside)
            await _ip("-n", name, "link", "set", inside, "up")
            await _ip("-n", name, "link", "set", "lo", "up")

    async def close(self) -> None:
        for name in self._names.values():
            await _ip("link", "delete", f"{name}o", check=False)
            await _ip("netns", "delete", name, check=False)
        await _ip("link", "delete", self._bridge, check=False)

    def own(self, index: int) -> tuple[str, int]:
        return f"10.213.77.{index + 1}", _PORT

    def way(self, dialer: int, listener: int) -> tuple[str, int]:
        return self.own(listener)

    def command(self, index: int) -> list[str]:
        return ["ip", "netns", "exec", self._names[index]]

    async def cut(self, *nodes: int) -> None:
        for node in nodes:
            await _ip("link", "set", f"{self._names[node]}o", "down")

    async def heal(self, *nodes: int) -> None:
        for node in nodes:
            await _ip("link", "set", f"{self._names[node]}o", "up")


async def _ip(*words: str, check: bool = True) -> None:
    process = await asyncio.create_subprocess_exec("ip", *words, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    if check and process.returncode:
        raise OSError(f"ip {' '.join(words)}: {said.decode().strip()}")
