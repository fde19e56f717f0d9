"""`toolbox(needs)`: make the parts that are missing, several at a time, and say where everything is.

What holds here: nothing is fetched before the sum of sizes and the free disk were compared; the first failure ends
the other steps; Ctrl-C and SIGTERM end every child and keep what was finished. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from quorate.errors import SetupError
from quorate.localnet.tools.command import Cancelled
from quorate.localnet.tools.parts import Part, Site, Tool, Work, anvil_program, part
from quorate.localnet.tools.progress import Screen, Step, in_bytes, in_seconds

__all__ = ["Interrupted", "Tools", "is_offline", "missing", "toolbox"]

OFFLINE = "QUORATE_OFFLINE"
ROOM_TO_SPARE = 200_000_000  # logs, temporary files, and the margin of a measured size
_JOIN_S = 0.2

# What is needed at run time beside a part itself: forge's compiler is a Node script, the models are served by vLLM.
_WITH: Mapping[Tool, tuple[Tool, ...]] = {Tool.EVM: (Tool.NODE,), Tool.MODELS: (Tool.MODEL_ENV,)}


class Interrupted(KeyboardInterrupt):
    """SIGTERM during set-up, handled like Ctrl-C: the children are ended, what was finished is kept."""


@dataclass(frozen=True)
class Tools:
    """Where the tools are. Asking for one that was not among the needs raises SetupError."""

    site: Site
    has: frozenset[Tool]

    @property
    def cometbft(self) -> Path:
        """The consensus engine's program."""
        return self._folder(Tool.COMETBFT) / "cometbft"

    @property
    def anvil(self) -> Path:
        """The local EVM chain's program."""
        return self._folder(Tool.EVM) / anvil_program("anvil")

    @property
    def forge(self) -> Path:
        """The contracts' compiler and test runner."""
        return self._folder(Tool.EVM) / anvil_program("forge")

    @property
    def node_modules(self) -> Path:
        """Where npm put the packages."""
        return self._folder(Tool.EVM) / "node_modules"

    @property
    def node(self) -> Path:
        """The Node program; its folder must be on the PATH of whoever runs forge."""
        self._require(Tool.NODE)
        found = self.site.program(Tool.NODE)
        if found is None:
            raise SetupError("Node has vanished since it was set up.", fix="Run `./quorate setup --only node`.")
        return found

    @property
    def python(self) -> Path:
        """The core environment's Python."""
        return self._folder(Tool.PYTHON) / "bin/python"

    @property
    def model_python(self) -> Path:
        """The Python of vLLM's own environment."""
        return self._folder(Tool.MODEL_ENV) / "bin/python"

    @property
    def models(self) -> Path:
        """The folder that holds one folder for each model."""
        return self._folder(Tool.MODELS)

    def environment(self) -> dict[str, str]:
        """The variables by which tests and child processes find the tools, and a PATH on which Node is."""
        found: dict[str, str] = {}
        if Tool.COMETBFT in self.has:
            found["QUORATE_COMETBFT"] = str(self.cometbft)
        if Tool.EVM in self.has:
            found |= {
                "QUORATE_ANVIL": str(self.anvil),
                "QUORATE_FORGE": str(self.forge),
                "QUORATE_NODE_MODULES": str(self.node_modules),
            }
        if Tool.MODEL_ENV in self.has:
            found["QUORATE_MODEL_PYTHON"] = str(self.model_python)
        if Tool.MODELS in self.has:
            found["QUORATE_MODELS"] = str(self.models)
        if Tool.NODE in self.has:
            path = self.site.environment.get("PATH", os.defpath)
            found |= {"QUORATE_NODE": str(self.node), "PATH": f"{self.node.parent}{os.pathsep}{path}"}
        return found

    def _require(self, tool: Tool) -> None:
        if tool not in self.has:
            raise SetupError(
                f"{tool} was not asked for when the tools were set up.", fix=f"Run `./quorate setup --only {tool}`."
            )

    def _folder(self, tool: Tool) -> Path:
        self._require(tool)
        return self.site.cache.folder(part(self.site, tool).entry)


def is_offline(environment: Mapping[str, str]) -> bool:
    """Whether the user asked for no network (`--offline` anywhere, or QUORATE_OFFLINE=1)."""
    return environment.get(OFFLINE, "") not in ("", "0")


def toolbox(
    needs: Collection[Tool],
    offline: bool | None = None,
    ui: Screen | None = None,
    *,
    site: Site | None = None,
    thorough: bool = False,
) -> Tools:
    """Make what `needs` lacks and return where all of it is.

    `offline` (by default from the environment) makes a missing part an error that names each. `thorough` reads
    every cached file again and makes damaged parts anew. Raises SetupError with what to do; KeyboardInterrupt after
    ending all that was started.
    """
    site = site if site is not None else Site.here()
    ui = ui if ui is not None else Screen()
    offline = is_offline(site.environment) if offline is None else offline
    wanted = _with_companions(needs)
    todo = _plan(site, wanted, ui, thorough=thorough, for_making=not offline)
    if todo:
        if offline:
            raise _offline_error(todo)
        _require_room(site, todo, ui)
        _make_all(site, todo, ui)
    _link(site, wanted)
    return Tools(site, frozenset(wanted))


def missing(needs: Collection[Tool], *, site: Site | None = None) -> list[Part]:
    """The parts of `needs` that are not ready (missing or damaged), without those that only serve to make others."""
    site = site if site is not None else Site.here()
    return _plan(site, _with_companions(needs), None, thorough=False, for_making=False)


# ------------------------------------------------------------ the plan


def _with_companions(needs: Collection[Tool]) -> list[Tool]:
    wanted = list(dict.fromkeys(needs))
    for tool in wanted:
        wanted += [other for other in _WITH.get(tool, ()) if other not in wanted]
    return wanted


def _plan(site: Site, wanted: Collection[Tool], ui: Screen | None, *, thorough: bool, for_making: bool) -> list[Part]:
    """The parts to make, each after those that it uses; says of a damaged one what is wrong with it."""
    planned: dict[Tool, Part] = {}

    def visit(tool: Tool) -> None:
        if tool in planned or _is_on_system(site, tool):
            return
        this = part(site, tool)
        condition = site.cache.condition(this.entry, thorough=thorough)
        if condition.is_ready:
            return
        if condition.fault and ui is not None:
            ui.say(
                f"{this.label} in the cache is damaged ({condition.fault})" + (": making it anew" if for_making else "")
            )
        for other in this.uses if for_making else ():
            visit(other)
        planned[tool] = this

    for tool in wanted:
        visit(tool)
    return list(planned.values())


def _is_on_system(site: Site, tool: Tool) -> bool:
    return tool in (Tool.UV, Tool.GO, Tool.NODE) and site.program(tool) is not None


def _offline_error(todo: list[Part]) -> SetupError:
    names = ", ".join(f"{p.label} ({p.tool})" for p in todo)
    these = "this part is" if len(todo) == 1 else f"these {len(todo)} parts are"
    only = " ".join(f"--only {p.tool}" for p in todo)
    return SetupError(
        f"--offline, but {these} not in the cache: {names}.", fix=f"With a network, run once: ./quorate setup {only}"
    )


def _require_room(site: Site, todo: list[Part], ui: Screen) -> None:
    """Say what set-up will cost, and refuse before the first byte if the disk cannot hold it."""
    site.cache.prepare()
    free = site.cache.free_bytes()
    kept, passing = sum(p.disk for p in todo), sum(p.scratch for p in todo)
    needed = kept + passing + ROOM_TO_SPARE
    if needed > free:
        sizes = ", ".join(f"{p.title} {in_bytes(p.disk)}" for p in todo)
        building = f", {in_bytes(passing)} while building" if passing else ""
        raise SetupError(
            f"Set-up needs {in_bytes(needed)} of disk ({sizes}{building}); "
            f"{in_bytes(free)} are free in {site.cache.root}.",
            fix="Free some space there, or set XDG_CACHE_HOME to a folder on a larger disk.",
        )
    if len(todo) > 1:
        fetched, seconds = sum(p.fetch for p in todo), _expected_seconds(todo)
        ui.say(
            f"set-up: {len(todo)} parts, {in_bytes(fetched)} to fetch, {in_bytes(kept)} on disk "
            f"({in_bytes(free)} free in {site.cache.root}), about {in_seconds(seconds)}; once only, Ctrl-C is safe"
        )


def _expected_seconds(todo: list[Part]) -> float:
    """The longest chain of parts that use each other, and not less than all downloads one after another."""
    by_tool = {p.tool: p for p in todo}

    def chain(p: Part) -> float:
        return p.seconds + max((chain(by_tool[t]) for t in p.uses if t in by_tool), default=0.0)

    return max(max(chain(p) for p in todo), sum(p.seconds for p in todo if p.fetch and p.verb == "fetching"))


# ------------------------------------------------------------ the making


def _make_all(site: Site, todo: list[Part], ui: Screen) -> None:
    """Make the parts, each in a thread that waits for those it uses; the first error ends all and is raised."""
    cancel = threading.Event()
    done = {p.tool: threading.Event() for p in todo}
    # Events and not Thread.join: on Python 3.11 a join that Ctrl-C interrupts takes its thread for ended (gh-90882).
    ended = {p.tool: threading.Event() for p in todo}
    errors: list[BaseException] = []

    def work(this: Part) -> None:
        try:
            for tool in this.uses:
                while tool in done and not done[tool].wait(_JOIN_S):
                    if cancel.is_set():
                        return
            _make(site, this, ui, cancel)
            done[this.tool].set()
        except Cancelled:
            pass
        except BaseException as error:  # handed to the caller's thread, which raises it
            errors.append(error)
            cancel.set()
        finally:
            ended[this.tool].set()

    threads = {p.tool: threading.Thread(target=work, args=(p,), name=f"setup-{p.tool}") for p in todo}
    with ui, _sigterm_interrupts():
        try:
            for thread in threads.values():
                thread.start()
            for one in ended.values():
                while not one.wait(_JOIN_S):
                    pass
        except KeyboardInterrupt:
            cancel.set()
            ui.say("stopping; what was finished is kept, and the same command goes on from there")
            raise
        finally:
            cancel.set()
            for tool, thread in threads.items():
                if thread.ident is not None:  # it was started
                    ended[tool].wait()
    if errors:
        raise errors[0]


def _make(site: Site, this: Part, ui: Screen, cancel: threading.Event) -> None:
    """Make one part under its lock, unless another set-up makes it while we wait."""
    step = Step(this.title, this.seconds, this.disk if this.verb == "fetching" else 0)
    cost = f"{in_bytes(this.fetch)}, " if this.fetch else ""
    ui.begin(step, f"{this.label}: {this.verb} ({cost}{in_bytes(this.disk)} on disk, about {in_seconds(this.seconds)})")

    def waiting(pid: str) -> None:
        step.note = f"waiting for another set-up (process {pid}) that makes it"
        ui.say(f"{this.title}: {step.note}")

    try:
        with site.cache.locked(this.entry, on_wait=waiting, cancel=cancel):
            if step.note and site.cache.condition(this.entry).is_ready:
                ui.end(step, f"{this.label}: made by the other set-up")
                return
            step.note = ""
            started = time.monotonic()
            with site.cache.scratch(this.entry) as scratch:
                folder = scratch / "made"
                folder.mkdir()
                this.make(Work(site, this, folder, scratch, step, cancel))
                site.cache.keep(this.entry, folder, time.monotonic() - started)
        ui.end(step, f"{this.label}: ready after {in_seconds(step.seconds)}")
    except OSError as error:
        raise _disk_error(this, error) from error
    finally:
        ui.end(step)


def _disk_error(this: Part, error: OSError) -> SetupError:
    return SetupError(
        f"{this.label} could not be set up: {error.strerror or error} ({error.filename or 'in the cache folder'}).",
        fix="Check that the cache's disk has room and may be written, or set XDG_CACHE_HOME to another folder.",
    )


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends set-up as Ctrl-C does: by an exception, so that every child is ended. Only the main thread may
    ask for that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _link(site: Site, wanted: Collection[Tool]) -> None:
    """Point the checkout's `.venv` and `third_party/evm/node_modules` at the cache, where nothing of the user's own
    is in the way.
    """
    links = {Tool.PYTHON: (".venv", ""), Tool.EVM: ("third_party/evm/node_modules", "node_modules")}
    for tool in wanted:
        if tool in links:
            place, inside = links[tool]
            _point(site.root / place, site.cache.folder(part(site, tool).entry) / inside)


def _point(link: Path, target: Path) -> None:
    if link.is_symlink() and Path(os.readlink(link)) == target:
        return
    if link.exists() and not link.is_symlink():  # a folder of the user's own
        return
    temporary = link.with_name(f"{link.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a read-only checkout works without its links
        temporary.symlink_to(target)
        temporary.replace(link)
