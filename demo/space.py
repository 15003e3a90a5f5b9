"""Put this repository on Hugging Face as a Space: `python -m demo.space user/name [--dry-run] [--private]`.

Plain git pushes of binaries are refused there, so the tracked files go up through `huggingface_hub`. What git does not
track (runs, caches, local models) stays at home; a file deleted here disappears there.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("README.md", "requirements.txt", "demo/app.py")


class SpaceError(ValueError):
    """An upload that cannot start; the message says what to do first."""


def tracked_files(root: Path) -> list[Path]:
    """Files that git tracks below `root` and that exist, as relative paths in order; raises SpaceError outside a repository."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SpaceError("The files to upload are those that git tracks; run this inside a clone of the repository.") from error
    return [Path(name) for name in listed.decode().split("\0") if name and (root / name).is_file()]


def check_files(root: Path, files: list[Path]) -> None:
    """Raise SpaceError unless a Space built from `files` can start: its front matter, requirements, app and a model."""
    missing = [name for name in NEEDED if Path(name) not in files]
    if missing:
        raise SpaceError(f"A Space needs {', '.join(missing)}; add and commit what is missing.")
    if not (root / "README.md").read_text(encoding="utf-8").startswith("---\n"):
        raise SpaceError("README.md must start with the Space's front matter (sdk: gradio, app_file: demo/app.py).")
    if not any(path.match("demo/models/*/config.json") for path in files):
        raise SpaceError("No model is tracked in demo/models; the Space would start without one.")


def upload(repo_id: str, root: Path, files: list[Path], private: bool) -> str:
    """Create the Space where needed and make it hold exactly `files`; returns its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.whoami()
        api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        if private and not api.repo_info(repo_id, repo_type="space").private:  # that of an earlier upload, which a later wish does not change
            raise SpaceError(f"The Space {repo_id} is public already; make it private in its settings first.")
        with tempfile.TemporaryDirectory() as staged:
            for path in files:
                (Path(staged) / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / path, Path(staged) / path)
            api.upload_folder(repo_id=repo_id, repo_type="space", folder_path=staged, delete_patterns="*", commit_message="Update the Space")
    except SpaceError:
        raise
    except LocalTokenNotFoundError as error:
        raise SpaceError("You are not logged in to Hugging Face; run `hf auth login` first, with a token that may write.") from error
    except HFValidationError as error:
        raise SpaceError(f"{repo_id!r} is not a name the Hub allows; use user/name.") from error
    except HfHubHTTPError as error:
        raise SpaceError(f"The Hub refused the upload: {str(error).splitlines()[0]}") from error
    except Exception as error:  # the Hub's client changed its HTTP library, and with it the type of a lost connection
        raise SpaceError(f"The upload failed ({type(error).__name__}); check the connection and try again.") from error
    return f"https://huggingface.co/spaces/{repo_id}"


def main(arguments: list[str] | None = None) -> None:
    """List (`--dry-run`) or upload; SystemExit with one sentence when it cannot."""
    parser = argparse.ArgumentParser(prog="python -m demo.space", description="Upload this repository as a Space.")
    parser.add_argument("repo", help="user/name of the Space")
    parser.add_argument("--dry-run", action="store_true", help="list what would go, and send nothing")
    parser.add_argument("--private", action="store_true", help="create the Space as a private one")
    options = parser.parse_args(arguments)
    try:
        if options.repo.count("/") != 1 or not all(options.repo.split("/")):
            raise SpaceError(f"The Space is named {options.repo!r}; use user/name.")
        files = tracked_files(ROOT)
        if options.dry_run:
            print(*files, sep="\n")
        check_files(ROOT, files)
        size = sum((ROOT / path).stat().st_size for path in files) / 1e6
        if options.dry_run:
            print(f"{len(files)} files, {size:.1f} MB, would go to the Space {options.repo}.")
        else:
            print(f"{upload(options.repo, ROOT, files, options.private)} holds {len(files)} files, {size:.1f} MB.")
    except SpaceError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
