"""From a folder such as services/hello_world to its `Service` and settings: the one place that reads these files."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import sys
import traceback
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from quorate.errors import ConfigError, QuorateError, ServiceError
from quorate.fsm import Service, codec
from quorate.service_yaml import Document, read

__all__ = ["Settings", "load_service", "load_settings"]


@dataclass(frozen=True)
class Settings:
    """What service.yaml says."""

    agents: int
    """How many agents run the service, 1 to 10."""
    config: Any
    """An instance of the service's config dataclass, as one agent sees it."""
    shared: str = field(default="", compare=False)
    """What all agents must have alike, as text: the config without what is one agent's own."""

    def config_hash(self) -> str:
        """sha256 of what the agents share. A chain's genesis names it: an agent with another one does not start."""
        return hashlib.sha256((self.shared or repr(self.config)).encode()).hexdigest()


def load_service(folder: Path | str) -> Service:
    """The `service` of FOLDER/service.py; `ConfigError` if the folder, the file or the name is missing.

    The module is imported as services.NAME.service, and the folder above services/ joins the import path, so that
    ``import skills.SUBJECT`` works there. Importing runs its code: load only what you trust.
    """
    file = _existing(Path(folder).resolve(), "service.py")
    root = str(file.parent.parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    service = getattr(_import(file), "service", None)
    if not isinstance(service, Service):
        found = "nothing" if service is None else f"a {type(service).__name__}"
        raise ConfigError(
            f"{file} defines {found} named service; expected a quorate.Service",
            fix=f'End the file with: service = Service("{file.parent.name}", state=..., start=..., transitions=...)',
        )
    if service.name != file.parent.name:
        raise ConfigError(
            f"the service in {file} is named {service.name!r}, its folder {file.parent.name!r}",
            fix="Give both one name: files, logs and the chain's state are found by it.",
        )
    return service


def load_settings(
    service: Service,
    folder: Path | str,
    overrides: Mapping[str, Any] | None = None,
    *,
    agent: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """What FOLDER/service.yaml sets for the agent named `agent` (None: what all share).

    Over `config` come the file's own `overrides` for that agent, and over both the argument `overrides`. Variables
    (`${VAR:type:default}`) are read from `environ`, by default the process's. `ConfigError` names file, line and key.
    """
    file = _existing(Path(folder).resolve(), "service.yaml")
    given = os.environ if environ is None else environ
    raw = read(file.read_bytes(), str(file))
    raw.refuse_unknown({"agents", "config", "description", "overrides"})
    said = dataclasses.replace(raw, values={**raw.values, "overrides": None}).filled(given)
    agents = said.values.get("agents", 4)
    if type(agents) is not int or not 1 <= agents <= 10:
        raise ConfigError(f"{said.where('agents')}: agents is {agents!r}; expected 1 to 10")
    own = raw.part("overrides")
    own.refuse_unknown(f"agent-{number}" for number in range(1, agents + 1))
    for name in own.values:
        own.part(name).refuse_unknown(_fields(service))
    config = said.part("config")
    config.refuse_unknown(_fields(service))
    shared = _config(service, _Layers((config, Document("overrides", overrides or {}, {}))))
    if not own.values:
        return Settings(agents, shared)
    mine = own.part(agent or "").filled(given)
    seen = _config(service, _Layers((config, mine, Document("overrides", overrides or {}, {}))))
    return Settings(agents, seen, f"{shared!r} {json.dumps(own.values, sort_keys=True)}")


@dataclass(frozen=True)
class _Layers:
    """Documents over one another: the last that has a key says its value."""

    documents: tuple[Document, ...]

    @property
    def where(self) -> str:
        return self.documents[0].where()

    def values(self) -> dict[str, tuple[Any, str]]:
        """Each key with its value and where that stands."""
        return {key: (value, one.where(key)) for one in self.documents for key, value in one.values.items()}


def _fields(service: Service) -> list[str]:
    return [] if service.config is None else [one.name for one in dataclasses.fields(service.config)]


def _config(service: Service, layers: _Layers) -> Any:
    values = layers.values()
    for name, (_, where) in values.items():
        if name not in _fields(service):
            Document(where, {name: None}, {}).refuse_unknown(_fields(service))
    if service.config is None:
        return types.SimpleNamespace()
    hints = get_type_hints(service.config)
    fitted = {name: _fit(hints[name], value, name, where) for name, (value, where) in values.items()}
    for one in dataclasses.fields(service.config):
        has_default = one.default is not dataclasses.MISSING or one.default_factory is not dataclasses.MISSING
        if one.init and not has_default and one.name not in fitted:
            raise ConfigError(f"{layers.where}: {one.name} is missing in config", fix=f"Add it; it is {one.type}.")
    try:
        return service.config(**fitted)
    except ConfigError as error:
        raise ConfigError(f"{layers.where}: config: {error.message}", fix=error.fix) from error


def _fit(hint: Any, value: Any, name: str, where: str) -> Any:
    """`value` as a `hint`; settings are not agreed on, so floats may be among them."""
    if hint is float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ConfigError(f"{where}: {name}: {value!r}; expected a finite number")
        return float(value)
    try:
        return codec.conform(hint, value)
    except ServiceError as error:
        quotes = "Put it in quotes: YAML reads 0x... as a number." if type(value) is int else ""
        raise ConfigError(f"{where}: {name}: {error.message}", fix=quotes) from error


def _existing(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        beside = sorted(one.parent.name for one in folder.parent.glob("*/service.py"))
        raise ConfigError(
            f"there is no service folder {folder}",
            fix=f"{folder.parent} has {', '.join(beside)}." if beside else "Name a folder that holds a service.py.",
        )
    if not (file := folder / name).is_file():
        raise ConfigError(f"{folder} has no {name}", fix="See services/hello_world for the files of a service.")
    return file


def _import(file: Path) -> types.ModuleType:
    """The module in `file`, imported once a process."""
    name = f"services.{file.parent.name}.service"
    loaded = sys.modules.get(name)
    if loaded is not None and Path(loaded.__file__ or "") != file:  # another folder of that name: keep both
        name = f"services.{file.parent.name}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}.service"
        loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"Python cannot import {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up to resolve annotations
    try:
        spec.loader.exec_module(module)
    except QuorateError:
        raise
    except Exception as error:  # whatever a user's module may raise: told as one sentence, with where
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({at.filename}, line {at.lineno})"
        raise ConfigError(
            f"{file} cannot be imported: {type(error).__name__}: {error}{where}",
            fix="QUORATE_DEBUG=1 shows the whole way there.",
        ) from error
    finally:
        if getattr(module, "service", None) is None:
            sys.modules.pop(name, None)
    return module
