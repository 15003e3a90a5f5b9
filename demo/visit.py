"""The pictures of one visit: each with its parameters, the newest first, kept in the visitor's own session."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

MAX_PICTURES = 24


class Drawn(NamedTuple):
    """A finished picture's file and all it takes to make it again."""

    path: str
    parameters: dict[str, Any]


def remember(visit: list[Drawn], picture: Drawn) -> list[Drawn]:
    """The visit with one picture more, at most MAX_PICTURES; without those whose files have been swept away."""
    return [picture, *filter(_is_there, visit)][:MAX_PICTURES]


def captions(visit: list[Drawn]) -> list[tuple[str, str]]:
    """What a gallery shows: (file, caption)."""
    return [(picture.path, f"{picture.parameters['prompt'][:60]} · {picture.parameters['seed']}") for picture in visit]


def picked(visit: list[Drawn], index: object) -> Drawn | None:
    """The picture at a gallery's index; None for an index from anywhere else, and for a file that has been swept away."""
    found = visit[index] if isinstance(index, int) and 0 <= index < len(visit) else None
    return found if found is not None and _is_there(found) else None


def _is_there(picture: Drawn) -> bool:
    return Path(picture.path).is_file()
