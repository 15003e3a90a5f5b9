"""Sharing: what goes up to the Hub comes back the same elsewhere, and a Space holds what git tracks. The client is the real one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from demo_server import nano_pipeline
from hub_server import HubServer, running_hub

from iris.pipeline import IRISPipeline

PUSH = "import sys; from iris import IRISPipeline; print(IRISPipeline.from_pretrained(sys.argv[1]).push_to_hub('user/drawer'))"
PRIVATE = PUSH.replace("'user/drawer'", "'user/drawer', private=True")
DRAW = """
import sys, numpy as np
from iris import IRISPipeline
np.save(sys.argv[1], np.asarray(IRISPipeline.from_pretrained('user/drawer')('red apple', seed=5).images[0]))
"""
SPACE = "import sys; from pathlib import Path; from demo import space; space.ROOT = Path(sys.argv[1]); space.main(['user/page'])"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with running_hub() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano_pipeline().save_pretrained(tmp_path_factory.mktemp("models") / "nano")


def test_a_model_that_was_pushed_draws_the_same_elsewhere_and_offline(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    pushed = hub.client(tmp_path / "mine", PUSH, str(folder))
    assert pushed.returncode == 0, pushed.stderr
    held = hub.repositories["models/user/drawer"]
    assert {"config.json", "manifest.json"} < set(held) and any(path.endswith(".safetensors") for path in held)
    assert not [path for path in held if path.endswith((".bin", ".pt", ".pkl", ".py"))]
    expected = np.asarray(IRISPipeline.from_pretrained(folder)("red apple", seed=5).images[0])
    drawn = hub.client(tmp_path / "theirs", DRAW, str(tmp_path / "online.npy"))
    assert drawn.returncode == 0, drawn.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "online.npy"), expected)
    hub.repositories.clear()
    hub.shutdown()  # from here on nobody answers
    hub.server_close()
    again = hub.client(tmp_path / "theirs", DRAW, str(tmp_path / "offline.npy"))
    assert again.returncode == 0, again.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "offline.npy"), expected)


def test_what_is_to_be_private_does_not_go_to_a_public_repository(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.repositories["models/user/drawer"] = {"README.md": b"public"}
    refused = hub.client(tmp_path / "mine", PRIVATE, str(folder))
    assert refused.returncode == 1 and "user/drawer is public already" in refused.stderr
    assert hub.repositories["models/user/drawer"] == {"README.md": b"public"}
    hub.repositories.clear()
    for _ in range(2):
        pushed = hub.client(tmp_path / "mine", PRIVATE, str(folder))
        assert pushed.returncode == 0, pushed.stderr
    assert hub.private == {"models/user/drawer"} and "config.json" in hub.repositories["models/user/drawer"]


def test_a_smaller_model_pushed_over_a_larger_one_loads(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.repositories["models/user/drawer"] = {"config.json": b"{}", "autoencoder-00001-of-00002.safetensors": b"x", "autoencoder-00002-of-00002.safetensors": b"x",
                                              "README.md": b"kept"}
    assert hub.client(tmp_path / "mine", PUSH, str(folder)).returncode == 0
    drawn = hub.client(tmp_path / "theirs", DRAW, str(tmp_path / "drawn.npy"))
    assert drawn.returncode == 0, drawn.stderr
    assert hub.repositories["models/user/drawer"]["README.md"] == b"kept"


@pytest.mark.parametrize("harm", ["flipped", "missing", "code beside"])
def test_a_damaged_model_is_refused_with_the_files_name_and_foreign_code_stays_there(harm: str, hub: HubServer, folder: Path, tmp_path: Path) -> None:
    held = hub.repositories["models/user/drawer"] = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    shard = next(path for path in held if path.endswith(".safetensors"))
    if harm == "flipped":
        held[shard] = held[shard][:-9] + bytes([held[shard][-9] ^ 1]) + held[shard][-8:]
    elif harm == "missing":
        del held[shard]
    else:
        held["modeling_iris.py"], held["pytorch_model.bin"] = b"raise SystemExit('ran')", b"\x80\x04."
    result = hub.client(tmp_path / "home", DRAW, str(tmp_path / "drawn.npy"))
    if harm == "code beside":
        assert result.returncode == 0, result.stderr
        assert not [*(tmp_path / "home").rglob("*.py"), *(tmp_path / "home").rglob("*.bin")]
    else:
        last = result.stderr.strip().splitlines()[-1]
        assert result.returncode == 1 and "CheckpointError" in last and Path(shard).name in last, last


def test_a_name_that_is_not_there_is_one_sentence(hub: HubServer, tmp_path: Path) -> None:
    result = hub.client(tmp_path / "home", DRAW, str(tmp_path / "drawn.npy"))
    assert result.stderr.strip().splitlines()[-1].startswith("iris.checkpoint.CheckpointError: user/drawer is neither a folder here nor available from the hub")


def test_a_space_holds_what_git_tracks_and_no_longer_what_was_deleted(hub: HubServer, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    contents = {"README.md": "---\nsdk: gradio\n---\n", "requirements.txt": "", "demo/app.py": "", "demo/models/m/config.json": "{}", "old.txt": "x", "secret.txt": "x"}
    for name, text in contents.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    subprocess.run(["git", "add", "README.md", "requirements.txt", "demo", "old.txt"], cwd=tree, check=True)
    first = hub.client(tmp_path / "home", SPACE, str(tree))
    assert first.returncode == 0, first.stderr
    assert "https://huggingface.co/spaces/user/page holds 5 files" in first.stdout
    held = hub.repositories["spaces/user/page"]
    assert {path: held[path].decode() for path in held} == {name: text for name, text in contents.items() if name != "secret.txt"}
    subprocess.run(["git", "rm", "-q", "-f", "old.txt"], cwd=tree, check=True)
    assert hub.client(tmp_path / "home", SPACE, str(tree)).returncode == 0
    assert set(held) == set(contents) - {"secret.txt", "old.txt"}
