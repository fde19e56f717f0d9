"""From a folder such as services/hello_world to its `Service` and settings: the one place that reads these files."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.util
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from quorate.errors import ConfigError, ServiceError
from quorate.fsm import Service, codec

__all__ = ["Settings", "load_service", "load_settings"]


@dataclass(frozen=True)
class Settings:
    """What service.yaml says."""

    agents: int
    """How many agents run the service, 1 to 10."""
    config: Any
    """An instance of the service's config dataclass."""

    def config_hash(self) -> str:
        """sha256 of the config as it prints. A chain's genesis names it: an agent with another one does not start."""
        return hashlib.sha256(repr(self.config).encode()).hexdigest()


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


def load_settings(service: Service, folder: Path | str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """What FOLDER/service.yaml sets, `overrides` over its config; `ConfigError` names an unknown key or wrong type."""
    file = _existing(Path(folder).resolve(), "service.yaml")
    try:
        said = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is no YAML: {error}") from error
    if not isinstance(said, dict) or not isinstance(said.get("config") or {}, dict):
        raise ConfigError(f"{file}: expected keys and values, as in services/hello_world/service.yaml")
    _refuse_unknown(said, {"agents", "config", "description"}, str(file))
    agents = said.get("agents", 4)
    if type(agents) is not int or not 1 <= agents <= 10:
        raise ConfigError(f"{file}: agents is {agents!r}; expected 1 to 10")
    return Settings(agents, _config(service, {**(said.get("config") or {}), **(overrides or {})}, str(file)))


def _config(service: Service, values: Mapping[str, Any], where: str) -> Any:
    if service.config is None:
        _refuse_unknown(values, set(), f"{where}: config")
        return types.SimpleNamespace()
    hints = get_type_hints(service.config)
    fields = [one.name for one in dataclasses.fields(service.config)]
    _refuse_unknown(values, set(fields), f"{where}: config")
    try:
        return service.config(**{name: _fit(hints[name], values[name], name) for name in fields if name in values})
    except TypeError as error:  # a field without a default is missing
        raise ConfigError(f"{where}: config: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: config: {error.message}", fix=error.fix) from error


def _fit(hint: Any, value: Any, name: str) -> Any:
    """`value` as a `hint`; settings are not agreed on, so floats may be among them."""
    if hint is float and type(value) in (int, float):
        return float(value)
    try:
        return codec.conform(hint, value)
    except ServiceError as error:
        quotes = "Put it in quotes: YAML reads 0x... as a number." if type(value) is int else ""
        raise ConfigError(f"{name}: {error.message}", fix=quotes) from error


def _refuse_unknown(values: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(known), 1)
            hint = f"Did you mean {near[0]}?" if near else f"It takes {sorted(known)}."
            raise ConfigError(f"{where} has the unknown key {key!r}", fix=hint)


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
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{file} cannot be imported: {error}") from error
    finally:
        if getattr(module, "service", None) is None:
            sys.modules.pop(name, None)
    return module
