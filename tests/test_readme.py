"""What README tells a reader to type works as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import subprocess_environment
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    return README.split(f"\n## {name}\n")[1].split("\n## ")[0]


def test_every_line_of_python_about_drawing_runs_in_the_order_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read top to bottom, in one session, as someone who tries it does; text states are made where the page says "your own"."""
    import torch

    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    blocks = re.findall(r"```python\n(.*?)```", section("Draw"), re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, object] = {"text_tokens": torch.zeros(1, 77, 768)}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert Image.open(tmp_path / "circle.png").size == (64, 64) and names["images"].shape == (1, 3, 256, 256)


def test_the_command_that_draws_one_picture(tmp_path: Path) -> None:
    typed = next(line for line in re.findall(r"`(python -m iris \"[^`]*)`", README))
    arguments = [*shlex.split(typed)[1:], "--seed", "7", "--num-steps", "2", "--model", str(ROOT / "demo" / "models" / "iris-scenes")]
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=subprocess_environment(), capture_output=True, text=True, timeout=300, check=True)
    assert Image.open(tmp_path / "circle.png").size == (64, 64) and "seed 7" in done.stdout
    for wrong in (["-o", "nowhere/x.png"], ["-o", "x.exe"], ["--num-iterations", "many"], ["--model", "not/there/at/all"], ["--num-steps", "0"]):
        failed = subprocess.run([sys.executable, *arguments, *wrong], cwd=tmp_path, env=subprocess_environment(), capture_output=True, text=True, timeout=300, check=False)
        assert failed.returncode == 2 and failed.stderr.startswith("Error: ") and failed.stderr.count("\n") == 1, failed.stderr


def test_what_it_names_is_there() -> None:
    for name in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / name).exists(), name
    for module in re.findall(r"python -m ([\w.]+)", README):
        assert any((ROOT / module.replace(".", "/")).with_suffix(suffix).is_file() for suffix in (".py",)) or (ROOT / module.replace(".", "/") / "__main__.py").is_file(), module
    for profile in re.findall(r"PROFILE=(\w+)", README):
        assert (ROOT / "reports" / "profiles" / f"{profile}.yaml").is_file(), profile
