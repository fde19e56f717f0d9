"""Whatever stands in a service.yaml or in the environment, it is settings or a `ConfigError`: never another failure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from quorate import Address, Context, Service, State, agree, same
from quorate.errors import ConfigError
from quorate.loader import Settings, load_settings
from quorate.service_yaml import read


@dataclass(frozen=True)
class Config:
    safe: Address = Address("0xA")
    pause_s: float = 2
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Word(State):
    word: str = ""


@agree(same("word"))
async def talk(ctx: Context, state: Word) -> str:
    return ""


SERVICE = Service("w", state=Word, config=Config, start=talk, transitions={(talk, "DONE"): talk}, otherwise=talk)

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
leaves |= st.sampled_from(["${A}", "${A:int:3}", "${A:list:[1]}", "${A:bool:yes}", "x${A}y", "${", "${A:nope:1}"])
keys = st.sampled_from(["agents", "config", "overrides", "agent-1", "pause_s", "names", "safe"]) | st.text(max_size=5)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)
files = st.dictionaries(keys, trees, max_size=5).map(lambda tree: yaml.safe_dump(tree, allow_unicode=True))
environments = st.dictionaries(st.just("A"), st.text(alphabet=st.characters(exclude_characters="\0"), max_size=8))


@given(st.text(max_size=60) | files, environments, st.sampled_from([None, "agent-1", "nobody"]))
@example("a: &a [*a]", {}, None)
@example("config: &c {pause_s: 1}\noverrides: {agent-1: *c}", {}, "agent-1")
@example("config:\n  <<: {pause_s: 1}", {}, None)
@example("? [1]\n: 2", {}, None)
@example("a: !!python/object/apply:os.system [x]", {}, None)
@example("config: {pause_s: .nan}", {}, None)
@example("2020-01-01: 1", {}, None)
@example("a: 2020-13-45", {}, None)
@example("a: \x00", {}, None)
@example("a: " + "[" * 500, {}, None)
@example("config: {safe: ${A}}", {"A": "\ud800"}, None)
def test_any_file_is_settings_or_a_config_error(text: str, environ: dict[str, str], agent: str | None) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "service.yaml").write_text(text, encoding="utf-8", newline="")
        try:
            settings = load_settings(SERVICE, folder, agent=agent, environ=environ)
        except ConfigError:
            return
        assert isinstance(settings, Settings)
        assert len(settings.config_hash()) == 64


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, unique=True), st.integers(0, 3))
def test_a_key_is_told_with_the_line_on_which_it_stands(names: list[str], empty: int) -> None:
    text = ("\n" * empty).join(f"{name}: 1\n" for name in names)
    document = read(text.encode(), "f")
    for number, name in enumerate(names):
        assert document.where(name) == f"f, line {1 + number * (empty + 1)}"


def test_a_file_that_is_no_text_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "service.yaml").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ConfigError, match=r"service\.yaml is no YAML"):
        load_settings(SERVICE, tmp_path)
