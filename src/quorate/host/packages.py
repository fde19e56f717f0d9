"""From the open-aea packages in `agents/` and `skills/` to a running agent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from aea.aea import AEA
from aea.aea_builder import AEABuilder
from aea.configurations.validation import ExtraPropertiesError
from aea.exceptions import AEAException
from aea.identity.base import Identity

from quorate.errors import ConfigError
from quorate.units import Address

from .connection import ServiceConnection
from .decision_maker import QuorateDecisionMaker

__all__ = ["build_agent"]

_LEDGER = "ethereum"


def build_agent(
    *,
    package: Path,
    root: Path,
    name: str,
    me: Address,
    keystore: Path,
    passphrase: str,
    data_dir: Path,
    connect: Callable[[Identity], ServiceConnection],
) -> tuple[AEA, QuorateDecisionMaker]:
    """The agent of `package` (a folder with aea-config.yaml); skills come from `root`/skills, its key from `keystore`.

    `ConfigError` where the package is wrong, the passphrase does not open the keystore, or the key is not `me`'s.
    """  # fmt: skip
    builder = AEABuilder(with_default_packages=False)
    try:
        configuration = AEABuilder.try_to_load_agent_configuration_file(package, apply_environment_variables=False)
        builder.set_from_configuration(configuration, root, skip_consistency_check=True)
    except (AEAException, ExtraPropertiesError, ValueError, OSError) as error:
        raise ConfigError(
            f"the agent package {package} cannot be loaded: {error}", fix="compare it with agents/hello_world"
        ) from error
    aea_name = name.replace("-", "_")  # open-aea's names are identifiers
    builder.set_name(aea_name)
    builder.set_data_dir(str(data_dir))
    builder.add_private_key(_LEDGER, str(keystore))
    connection = connect(Identity(aea_name, address=me, public_key=""))
    builder.add_component_instance(connection)
    try:
        agent = builder.build(password=passphrase)
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"the keystore {keystore} cannot be opened: {error}", fix="check QUORATE_PASSPHRASE and the file"
        ) from error
    if agent.identity.address != me:
        raise ConfigError(f"the keystore {keystore} holds the key of {agent.identity.address}; expected {me}")
    return agent, _decision_maker_of(agent)


def _decision_maker_of(agent: Any) -> QuorateDecisionMaker:
    handler = agent.runtime.decision_maker.decision_maker_handler
    if not isinstance(handler, QuorateDecisionMaker):
        raise ConfigError(
            f"the agent's decision maker is {type(handler).__name__}; only QuorateDecisionMaker may hold the keys",
            fix="set decision_maker_handler in aea-config.yaml as agents/hello_world does",
        )
    return handler
