"""The pictures of one visit: each with its parameters, the newest first, kept in the visitor's own session."""

from __future__ import annotations

from typing import Any, NamedTuple

MAX_PICTURES = 24


class Drawn(NamedTuple):
    """A finished picture's file and all it takes to make it again."""

    path: str
    parameters: dict[str, Any]


def remember(visit: list[Drawn], picture: Drawn) -> list[Drawn]:
    """The visit with one picture more, at most MAX_PICTURES."""
    return [picture, *visit][:MAX_PICTURES]


def captions(visit: list[Drawn]) -> list[tuple[str, str]]:
    """What a gallery shows: (file, caption)."""
    return [(picture.path, f"{picture.parameters['prompt'][:60]} · {picture.parameters['seed']}") for picture in visit]


def picked(visit: list[Drawn], index: object) -> Drawn | None:
    """The picture at a gallery's index; None for an index from anywhere else."""
    return visit[index] if isinstance(index, int) and 0 <= index < len(visit) else None
