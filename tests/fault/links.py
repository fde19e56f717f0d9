"""Every connection between two nodes goes through here: a small TCP proxy for each pair of dialer and listener.

Why a proxy in user space, and not network namespaces with `tc netem`: it needs no rights and no kernel module (netem is
missing in many, also here), it can cut one direction alone, and it does the same on each machine. What it cannot do is
lose single packets: a cut holds the bytes back, and the sender's TCP sees a peer that does not read. Packets that are
really lost, with TCP's growing pauses between retransmissions, are in `namespaces.py` (root only).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import permutations

__all__ = ["Links"]

_ENOUGH_BYTES = 256 * 1024  # held back: from here on nothing more is read, as if the wire were full
_Pair = tuple[int, int]


@dataclass
class _Flow:
    """What passes from one node to another."""

    is_cut: bool = False
    delay_s: float = 0
    bytes_per_s: float = 0
    """0: no limit."""
    pipes: set[_Pipe] = field(default_factory=set)


class _Pipe(asyncio.Protocol):
    """One end of a connection: what it reads goes, in order and in the flow's time, to the other end."""

    def __init__(self, flow: _Flow, met: Callable[[_Pipe], None] | None = None) -> None:
        self.flow, self.met = flow, met
        self.transport: asyncio.Transport | None = None
        self.other: _Pipe | None = None
        self._held: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._free_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.flow.pipes.add(self)
        if self.met is not None:
            self.met(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.flow.pipes.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._held.clear()
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def data_received(self, data: bytes) -> None:
        flow, now = self.flow, asyncio.get_running_loop().time()
        if not (flow.is_cut or flow.delay_s or flow.bytes_per_s or self._held) and self._deliver(data):
            return
        self._free_at = max(self._free_at, now) + (len(data) / flow.bytes_per_s if flow.bytes_per_s else 0)
        self._held.append((self._free_at + flow.delay_s, data))
        self._size += len(data)
        if self._size > _ENOUGH_BYTES and self.transport is not None:
            self.transport.pause_reading()
        self.go_on()

    def go_on(self) -> None:
        """Deliver what is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._held and not self.flow.is_cut:
            due, data = self._held[0]
            wait = due - loop.time()
            if wait > 0 and (self.flow.delay_s or self.flow.bytes_per_s):
                self._timer = loop.call_later(wait, self.go_on)
                return
            if not self._deliver(data):
                return
            self._held.popleft()
            self._size -= len(data)
        if self._size <= _ENOUGH_BYTES and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def _deliver(self, data: bytes) -> bool:
        if self.other is None or self.other.transport is None or self.other.transport.is_closing():
            return False
        self.other.transport.write(data)
        return True


class Links:
    """`links.way(i, j)` is where node i dials node j; `await links.open()` before, `await links.close()` after."""

    def __init__(self, ports: Iterable[int]) -> None:
        self.targets = dict(enumerate(ports))
        """Where each node listens."""
        self._refused: set[_Pair] = set()
        """(dialer, listener)"""
        pairs = list(permutations(self.targets, 2))
        self._flows: dict[_Pair, _Flow] = {pair: _Flow() for pair in pairs}
        self._servers: dict[_Pair, asyncio.Server] = {}
        self._dials: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        for pair in self._flows:
            self._servers[pair] = await self._listen(pair)

    async def close(self) -> None:
        for server in self._servers.values():
            server.close()
        for dial in list(self._dials):
            dial.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        self.reset(*self.targets)
        await asyncio.sleep(0)

    async def join(self, index: int, port: int, peers: Iterable[int], *, like: int) -> None:
        """One more node, at `port`, with links to and from these peers as the node `like` has them; `leave` ends it."""
        self.targets[index] = port
        for peer in peers:
            for pair, model in (((index, peer), (like, peer)), ((peer, index), (peer, like))):
                self._flows[pair] = replace(self._flows[model], pipes=set())
                self._servers[pair] = await self._listen(pair)

    def leave(self, index: int) -> None:
        """Take a node that has joined, and its links, away."""
        self.reset(index)
        for pair in [pair for pair in self._servers if index in pair]:
            self._servers.pop(pair).close()
            del self._flows[pair]
        del self.targets[index]

    def own(self, index: int) -> tuple[str, int]:
        """Where a node listens."""
        return "127.0.0.1", self.targets[index]

    def way(self, dialer: int, listener: int) -> tuple[str, int]:
        """Where a node dials another."""
        return "127.0.0.1", int(self._servers[dialer, listener].sockets[0].getsockname()[1])

    def command(self, index: int) -> list[str]:
        """What an agent's command begins with."""
        return []

    async def cut(self, *nodes: int, one_way: bool = False) -> None:
        """Nothing passes between these nodes and the others (`one_way`: nothing gets out of them); connections stay."""
        self._set(nodes, one_way, is_cut=True)

    async def slow(self, *nodes: int, delay_s: float, bytes_per_s: float = 0) -> None:
        """What passes between these nodes and the others takes longer, in each direction."""
        self._set(nodes, False, delay_s=delay_s, bytes_per_s=bytes_per_s)

    async def heal(self, *nodes: int) -> None:
        """Let everything pass at once again, also what was held back."""
        self._set(nodes, False, is_cut=False, delay_s=0, bytes_per_s=0)

    def reset(self, *nodes: int) -> None:
        """Break all connections of these nodes."""
        self._abort(pair for pair in self._flows if set(pair) & set(nodes))

    def refuse(self, dialer: int, listener: int) -> None:
        """Break the connections that one has made to the other, and let no new one come about."""
        self._refused.add((dialer, listener))
        self._abort([(dialer, listener), (listener, dialer)])

    def admit(self, dialer: int, listener: int) -> None:
        """The end of `refuse`."""
        self._refused.discard((dialer, listener))

    def _abort(self, pairs: Iterable[_Pair]) -> None:
        for pair in pairs:
            for pipe in list(self._flows[pair].pipes):
                if pipe.transport is not None:
                    pipe.transport.abort()

    def _set(self, nodes: Iterable[int], one_way: bool, **values: float) -> None:
        inside = set(nodes)
        for (source, target), flow in self._flows.items():
            if (source in inside) != (target in inside) and (source in inside or not one_way):
                for name, value in values.items():
                    setattr(flow, name, value)
                for pipe in list(flow.pipes):
                    pipe.go_on()

    async def _listen(self, pair: _Pair) -> asyncio.Server:
        def accept() -> _Pipe:
            return _Pipe(self._flows[pair], lambda near: self._dial(pair, near))

        return await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)

    def _dial(self, pair: _Pair, near: _Pipe) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(pair, near))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _connect(self, pair: _Pair, near: _Pipe) -> None:
        far = _Pipe(self._flows[pair[1], pair[0]])
        try:
            if pair in self._refused:
                raise ConnectionRefusedError
            await asyncio.get_running_loop().create_connection(lambda: far, *self.own(pair[1]))
        except OSError:  # nobody listens there
            if near.transport is not None:
                near.transport.abort()
            return
        near.other, far.other = far, near
        near.go_on()
        far.go_on()
        if near.transport is not None and near.transport.is_closing() and far.transport is not None:
            far.transport.abort()
