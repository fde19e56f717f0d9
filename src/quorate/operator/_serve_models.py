"""Serves models with vLLM, all from one process. The model environment's Python runs this; it imports nothing of ours.

    python -I -u _serve_models.py PARENT_PID '[{"log": PATH, "arguments": [...]}, ...]'

Importing vLLM takes 10 s of a core and 0.7 GB, and vLLM does it anew in each of its processes, three a server. Here it
is imported once; the servers and their engines are forked from this process, which is safe because it has a single
thread (OMP_NUM_THREADS=1; checked below).

Every process here dies with its parent, also by kill -9 (PR_SET_PDEATHSIG at each fork). If one server ends, all end.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from typing import Any

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def main() -> int:
    """Serve until a server ends or TERM comes; returns the exit code, if at all."""
    parent, servers = int(sys.argv[1]), json.loads(sys.argv[2])
    die_with_parent(parent)
    import_vllm()
    if threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1:
        print("error: importing vLLM started threads; forking is not safe", flush=True)
        return 1
    os.register_at_fork(before=_note_parent, after_in_child=lambda: die_with_parent(_forking_from))
    children = {start(server): server["log"] for server in servers}
    signal.signal(signal.SIGTERM, lambda *_: end(children))
    pid, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    print(f"error: a server ended with {code}; its log is {children.pop(pid, '?')}", flush=True)
    end(children)
    return 1


_forking_from = 0


def _note_parent() -> None:
    global _forking_from
    _forking_from = os.getpid()


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when `parent` ends; it ends at once if that has happened already."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def import_vllm() -> None:
    """Import what servers and engines need, and let vLLM fork where it would start a new Python on a CPU."""
    import vllm.entrypoints.openai.api_server
    import vllm.v1.engine.async_llm
    import vllm.v1.engine.core
    import vllm.v1.executor.uniproc_executor
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm.model_executor.models import registry
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def check_then_fork(platform: Any, config: Any) -> None:
        check(
            platform, config
        )  # sets "spawn": a forked engine could not choose its number of OpenMP threads; ours is 1
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    CpuPlatform.check_and_update_config = classmethod(check_then_fork)
    registry._run_in_subprocess = lambda inspect: inspect()  # a subprocess only keeps CUDA from being initialised


def start(server: dict[str, Any]) -> int:
    """Fork a server; returns its process id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    log = os.open(server["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.argv = ["vllm", *server["arguments"]]
    from vllm.entrypoints.launchers.api_server import entry

    entry.main()
    sys.stdout.flush()
    os._exit(0)


def end(children: dict[int, str]) -> None:
    """End all servers and this process with code 1; their engines die with them."""
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
