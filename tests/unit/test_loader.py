"""A service's folder is found, imported and configured, or one clear sentence says why not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from quorate import Address, Context, Service, State, agree, same
from quorate.errors import ConfigError
from quorate.loader import Settings, load_service, load_settings

ROOT = Path(__file__).parents[2]

CODE = """
import re
from dataclasses import dataclass
from quorate import Context, Service, State, agree, same

@dataclass(frozen=True)
class Word(State):
    word: str = "{word}"

@agree(same("word"))
async def talk(ctx: Context, state: Word) -> str:
    return state.word

service = Service("{name}", state=Word, start=talk, transitions={{(talk, "DONE"): talk}}, otherwise=talk)
"""


def write(folder: Path, code: str | None = None, settings: str | None = None) -> Path:
    folder.mkdir(parents=True)
    if code is not None:
        (folder / "service.py").write_text(code)
    if settings is not None:
        (folder / "service.yaml").write_text(settings)
    return folder


def test_a_service_is_loaded_once() -> None:
    first = load_service(ROOT / "services" / "hello_world")
    assert first.name == "hello_world"
    assert load_service(str(ROOT / "services" / "hello_world")) is first


def test_two_folders_of_one_name_are_two_services(tmp_path: Path) -> None:
    a = load_service(write(tmp_path / "a" / "services" / "twin", CODE.format(name="twin", word="a")))
    b = load_service(write(tmp_path / "b" / "services" / "twin", CODE.format(name="twin", word="b")))
    assert (a.state().word, b.state().word) == ("a", "b")  # type: ignore[attr-defined]
    assert load_service(tmp_path / "b" / "services" / "twin") is b


def test_a_missing_folder_names_its_neighbours() -> None:
    with pytest.raises(ConfigError, match=r"no service folder .*helo_world") as error:
        load_service(ROOT / "services" / "helo_world")
    assert "hello_world" in error.value.fix


def test_a_missing_folder_without_neighbours_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no service folder") as error:
        load_service(tmp_path / "x")
    assert "service.py" in error.value.fix


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (None, "has no service.py"),
        ("x = 1", "defines nothing named service; expected a quorate.Service"),
        ("service = 1", "defines a int named service"),
        (
            "import no_such_module_anywhere",
            "cannot be imported: ModuleNotFoundError: No module",
        ),
        ("def (", "cannot be imported: .*syntax"),
        ("x = 1\ny = Quorum", r"cannot be imported: NameError: name 'Quorum' .*service.py, line 2"),
        (CODE.format(name="other", word=""), "is named 'other', its folder 'broken'"),
    ],
)
def test_a_wrong_service_is_one_clear_sentence(tmp_path: Path, code: str | None, why: str) -> None:
    folder = write(tmp_path / "services" / "broken", code)
    with pytest.raises(ConfigError, match=why):
        load_service(folder)


def test_a_mended_service_loads_in_the_same_process(tmp_path: Path) -> None:
    folder = write(tmp_path / "services" / "mended", "x = 1")
    with pytest.raises(ConfigError):
        load_service(folder)
    (folder / "service.py").write_text(CODE.format(name="mended", word=""))
    assert load_service(folder).name == "mended"


@dataclass(frozen=True)
class Config:
    safe: Address
    greeting: str = "hello"
    pause_s: float = 2
    tries: int = 3


@dataclass(frozen=True)
class Word(State):
    word: str = ""


@agree(same("word"))
async def talk(ctx: Context, state: Word) -> str:
    return ""


def service(config: type | None = Config) -> Service:
    return Service("word", state=Word, config=config, start=talk, transitions={(talk, "DONE"): talk}, otherwise=talk)


def test_settings_come_from_the_file_and_overrides_win(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", settings="agents: 7\nconfig: {safe: '0xA', pause_s: 1, tries: 5}\n")
    assert load_settings(service(), folder, {"tries": 6}) == Settings(7, Config(Address("0xA"), "hello", 1.0, 6))


def test_an_empty_file_means_four_agents_and_the_defaults(tmp_path: Path) -> None:
    settings = load_settings(service(config=None), write(tmp_path / "x", settings=""))
    assert settings.agents == 4
    assert not vars(settings.config)


@pytest.mark.parametrize(
    ("text", "why", "fix"),
    [
        (None, "has no service.yaml", "hello_world"),
        ("a: [", "is no YAML", ""),
        ("- a", "expected keys and values", ""),
        ("config: 5", "expected keys and values", ""),
        ("agent: 4", "unknown key 'agent'", "Did you mean agents?"),
        ("agents: 0", "agents is 0; expected 1 to 10", ""),
        ("agents: true", "agents is True", ""),
        ("config: {safe: '0xA', greting: hi}", "unknown key 'greting'", "Did you mean greeting?"),
        ("config: {safe: '0xA', zzz: 1}", "unknown key 'zzz'", r"It takes \['greeting', 'pause_s', 'safe', 'tries'\]"),
        ("config: {safe: 0xA}", "safe: 10 is no Address", "quotes"),
        ("config: {safe: '0xA', tries: many}", "tries: 'many' is no int", ""),
        ("config: {safe: '0xA', pause_s: soon}", "pause_s: 'soon'; expected a finite number", ""),
        ("config: {safe: '0xA', pause_s: .nan}", "pause_s: nan; expected a finite number", ""),
        ("config: {}", "safe is missing in config", "it is Address"),
    ],
)
def test_a_mistake_in_the_settings_names_file_and_key(tmp_path: Path, text: str | None, why: str, fix: str) -> None:
    folder = write(tmp_path / "shop", settings=text)
    with pytest.raises(ConfigError, match=why) as error:
        load_settings(service(), folder)
    assert str(folder) in str(error.value)

    assert re.search(fix, error.value.fix)


def test_a_service_without_settings_takes_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'x'"):
        load_settings(service(config=None), write(tmp_path / "x", settings="config: {x: 1}"))


def test_a_config_that_refuses_its_values_is_told_with_the_file(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Picky:
        edge: int = 1

        def __post_init__(self) -> None:
            if self.edge <= 0:
                raise ConfigError(f"edge is {self.edge}; expected more than 0")

    folder = write(tmp_path / "x", settings="config: {edge: 0}")
    with pytest.raises(ConfigError, match=r"service\.yaml, line 1: config: edge is 0; expected more than 0"):
        load_settings(service(config=Picky), folder)


FILE = """\
# A comment.
agents: 4
config:
  safe: '0xA'

  tries: ${TRIES:int:3}
  greeting: ${GREETING:str:hello} to all
overrides:
  agent-2:
    greeting: ${SECRET}
"""


@pytest.mark.parametrize(
    ("old", "new", "why", "fix"),
    [
        ("  tries: ${TRIES:int:3}", "  tires: 3", "line 6: unknown key 'tires' in config", "Did you mean tries?"),
        ("  tries: ${TRIES:int:3}", "  tries: many", "line 6: tries: 'many' is no int", ""),
        ("  tries: ${TRIES:int:3}", "  safe: '0xB'", "line 6: safe stands there twice, first in line 4", ""),
        ("  tries: ${TRIES:int:3}", "  7: 3", "line 6: the key 7 is no text", "quotes"),
        ("  tries: ${TRIES:int:3}", "  tries: [", "line 7, is no YAML", ""),
        ("${TRIES:int:3}", "${TRIES:int:x}", "line 6: the default of TRIES is 'x'; expected int", ""),
        ("${TRIES:int:3}", "${TRIES:itn:3}", "line 6: itn is no type for TRIES", "Did you mean int?"),
        ("${TRIES:int:3}", "${TRIES:int}", "line 6: the environment variable TRIES is not set", r"\$\{TRIES:int:...\}"),
        ("${GREETING:str:hello} to all", "a ${ b", r"line 7: 'a \$\{ b' is no \$\{VAR:type:default\}", "For example"),
        ("  safe: '0xA'", "", "line 3: safe is missing in config", "it is Address"),
        ("agent-2", "agent-5", "line 9: unknown key 'agent-5' in overrides", "Did you mean agent-"),
        (
            "    greeting:",
            "    greting:",
            "line 10: unknown key 'greting' in overrides.agent-2",
            "Did you mean greeting?",
        ),
        ("agents: 4", "agents: 40", "line 2: agents is 40; expected 1 to 10", ""),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, old: str, new: str, why: str, fix: str) -> None:
    assert old in FILE
    folder = write(tmp_path / "shop", settings=FILE.replace(old, new))
    with pytest.raises(ConfigError, match=why) as error:
        load_settings(service(), folder, environ={})
    assert re.search(fix, error.value.fix)


def test_a_variable_is_read_as_its_type_or_has_its_default(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", settings=FILE)
    assert load_settings(service(), folder, environ={}).config == Config(Address("0xA"), "hello to all", 2, 3)
    given = load_settings(service(), folder, environ={"TRIES": "9", "GREETING": "hi"}).config
    assert (given.tries, given.greeting) == (9, "hi to all")
    with pytest.raises(ConfigError, match="line 6: TRIES is 'nine'; expected int"):
        load_settings(service(), folder, environ={"TRIES": "nine"})


def test_an_agents_own_values_are_its_own_and_all_agents_still_have_one_hash(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", settings=FILE)
    seen = {
        name: load_settings(service(), folder, agent=name, environ={"SECRET": f"of {name}"})
        for name in ("agent-1", "agent-2")
    }
    assert seen["agent-1"].config.greeting == "hello to all"
    assert seen["agent-2"].config.greeting == "of agent-2"
    shared = load_settings(service(), folder, environ={})
    assert {one.config_hash() for one in seen.values()} == {shared.config_hash()}
    (folder / "service.yaml").write_text(FILE.replace("greeting: ${SECRET}", "greeting: other"))
    assert load_settings(service(), folder, environ={}).config_hash() != shared.config_hash()
    other = load_settings(service(), folder, {"tries": 4}, environ={})
    assert other.config.tries == 4
    assert other.config_hash() != shared.config_hash()


def test_an_agent_needs_no_variable_of_another_agent(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", settings=FILE)
    load_settings(service(), folder, agent="agent-1", environ={})
    with pytest.raises(ConfigError, match="line 10: the environment variable SECRET is not set"):
        load_settings(service(), folder, agent="agent-2", environ={})
