"""Captioned pictures: procedural scenes, emoji art, and anything a user brings."""

from iris.data.base import DataError, Example, ImageDataset, cache_dir
from iris.data.emoji import Emoji, emoji_packs
from iris.data.folder import ImageFolder
from iris.data.images import open_image
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
from iris.data.sources import HUB_ENTRIES, Mixture, emoji_of, load_dataset_by_name, streams
from iris.data.uploads import Unpacked, unpack_zip

__all__ = [
    "DataError",
    "Emoji",
    "Example",
    "HUB_ENTRIES",
    "ImageDataset",
    "ImageFolder",
    "Mixture",
    "SceneFacts",
    "SceneReport",
    "SceneSpec",
    "Scenes",
    "Unpacked",
    "cache_dir",
    "emoji_of",
    "caption_scene",
    "check_scene",
    "emoji_packs",
    "load_dataset_by_name",
    "open_image",
    "parse_caption",
    "render_scene",
    "sample_scene",
    "streams",
    "unpack_zip",
]
