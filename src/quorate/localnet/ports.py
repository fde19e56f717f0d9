"""Free TCP ports on the loopback address, held until the process that they are for listens on them.

A held port is bound and never listens. The kernel then gives it to nobody who asks for *any* port, while a server that
asks for this one and sets SO_REUSEADDR (anvil, CometBFT, aiohttp and vLLM do) gets it. So no second run takes the port
between our choice and the server's start.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from quorate.errors import SetupError

__all__ = ["held_ports", "require_free"]

LOOPBACK = "127.0.0.1"


@contextmanager
def held_ports(count: int) -> Iterator[tuple[int, ...]]:
    """`count` free ports; leave the block when their servers listen."""
    sockets = [_held(0) for _ in range(count)]
    try:
        yield tuple(held.getsockname()[1] for held in sockets)
    finally:
        for held in sockets:
            held.close()


def require_free(port: int) -> int:
    """Return `port` if a server can listen on it; raises `SetupError` if another does."""
    try:
        with _held(port) as probe:
            probe.listen()
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise SetupError(
            f"port {port} of {LOOPBACK} cannot be used: {error.strerror}",
            fix="name another port, or none: then a free one is chosen",
        ) from error
    return port


def _held(port: int) -> socket.socket:
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((LOOPBACK, port))
    except OSError:
        held.close()
        raise
    return held
