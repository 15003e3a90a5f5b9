"""Captioned pictures: procedural scenes, emoji art, and anything a user brings."""

from iris.data.base import DataError, Example, ImageDataset, cache_dir
from iris.data.emoji import Emoji, emoji_packs
from iris.data.scenes import (
    SceneFacts,
    SceneReport,
    Scenes,
    SceneSpec,
    caption_scene,
    check_scene,
    parse_caption,
    render_scene,
    sample_scene,
)

__all__ = [
    "DataError",
    "Emoji",
    "Example",
    "ImageDataset",
    "SceneFacts",
    "SceneReport",
    "SceneSpec",
    "Scenes",
    "cache_dir",
    "caption_scene",
    "check_scene",
    "emoji_packs",
    "parse_caption",
    "render_scene",
    "sample_scene",
]
