"""How good a model is: reconstructions, scenes read back from pixels, kernel distance of samples, and what lies near them.

Every function takes a model and pictures and returns a plain dictionary of `Estimate`s, each with its interval; `to_plain`
turns one into JSON. Seeds are explicit, so the same call gives the same figures. Kernel distances are named after their
features, EfficientNet-lite1 (the perceptual loss sees lite0), and never FID: they compare with nothing but themselves,
which is why a null and a blurred copy of the real pictures stand beside them.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from iris.data import (
    ImageDataset,
    SceneFacts,
    SceneReport,
    Scenes,
    SceneSpec,
    caption_scene,
    check_scene,
    load_dataset_by_name,
    render_scene,
    streams,
)
from iris.evaluation.drawing import (
    FEATURES,
    FEWEST,
    Features,
    QualityError,
    different_pictures,
    draw_all,
    features_by_name,
    has_scenes,
    require_enough,
    source_of,
    telling_caption,
    to_tensor,
)
from iris.evaluation.metrics import Estimate, bootstrap, kernel_distance, psnr, psnr_by_band, share, ssim
from iris.evaluation.neighbours import art_retrieval, nearest_training
from iris.nn.autoencoder import WaveletVAE
from iris.pipeline import IRISPipeline

KINDS = ("one", "relation", "many", "pair", "trio")
# What is asked of a picture of a scene. "right" is the headline: every object with its colour and shape, their number and
# their relation; "all" asks for size and background too, where the caption names them.
SCENE_FACTS: dict[str, Callable[[SceneReport], bool]] = {
    "right": lambda report: report.objects_right and report.count_right and report.relation_right,
    "all": lambda report: report.all_right,
    "colour": lambda report: report.colour_right,
    "shape": lambda report: report.shape_right,
    "count": lambda report: report.count_right,
    "relation": lambda report: report.relation_right,
}


# ---------------------------------------------------------------------------------------------------- reconstruction


def reconstruction_quality(autoencoder: WaveletVAE, dataset: ImageDataset, limit: int = 256, batch_size: int = 16,
                           features: Features | None = None) -> dict[str, Any]:
    """Reconstruction of the first `limit` different pictures, clamped to [-1, 1] as they are shown.

    {"pictures" (how many), "psnr" (dB), "ssim", "psnr_by_band": {LL, LH, HL, HH}}: medians over pictures with 95 % bootstrap intervals.
    With `features` also "kid", "kid_null" and "kid_blur": distance of the originals to their reconstructions, of one half of
    them to the other, and to themselves blurred with sigma 1 px.
    """
    seen: dict[str, list[Tensor]] = defaultdict(list)
    for images in tqdm(_batches(dataset, limit, batch_size), total=math.ceil(min(limit, len(dataset)) / batch_size), desc="reconstructing", leave=False):
        with torch.inference_mode():
            device = autoencoder.latent_mean.device
            again = autoencoder.decode(autoencoder.encode(images.to(device))).clamp(-1, 1).float().cpu()
        seen["psnr"].append(psnr(again, images))
        seen["ssim"].append(ssim(again, images))
        for band, values in psnr_by_band(again, images).items():
            seen[band].append(values)
        if features is not None:
            for name, pictures in (("real", images), ("again", again), ("blurred", gaussian_blur(images, 1.0))):
                seen[name].append(features(pictures))
    found = {name: torch.cat(parts) for name, parts in seen.items()}
    result: dict[str, Any] = {"pictures": len(found["psnr"]), "psnr": _median(found["psnr"]), "ssim": _median(found["ssim"])}
    result["psnr_by_band"] = {band: _median(found[band]) for band in ("LL", "LH", "HL", "HH")}
    if features is not None:
        result |= _beside_null(found["again"], found["real"], found["blurred"])
    return result


def _batches(dataset: ImageDataset, limit: int, batch_size: int) -> Iterator[Tensor]:
    """The first different pictures of a data set as [B, 3, H, W] in [-1, 1]."""
    items = different_pictures(dataset, limit, range(len(dataset)))
    if not items:
        raise QualityError(f"the data set {dataset.name!r} has no pictures to measure with.")
    for start in range(0, len(items), batch_size):
        yield to_tensor([item.image for item in items[start: start + batch_size]])


def _median(values: Tensor) -> Estimate:
    # Equal pictures have an infinite PSNR, and the bootstrap interpolates between values: 200 dB stands for "no error".
    return bootstrap(values.clamp(max=200.0), np.median)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Images [B, C, H, W] blurred with a Gaussian of `sigma` pixels, edges repeated."""
    reach = max(1, math.ceil(3 * sigma))
    kernel = torch.exp(-torch.arange(-reach, reach + 1, dtype=images.dtype).square() / (2 * sigma**2)).to(images.device)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    padded = torch.nn.functional.pad(images, (reach,) * 4, mode="replicate")
    across = torch.nn.functional.conv2d(padded, kernel[:, :, None], groups=images.shape[1])
    return torch.nn.functional.conv2d(across, kernel[..., None], groups=images.shape[1])


def _beside_null(found: Tensor, real: Tensor, blurred: Tensor) -> dict[str, Any]:
    """Kernel distance of what was found to the real pictures, beside those of halves of the real ones and of blurred copies."""
    require_enough(len(real))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(real)))
    first, second = real[order].chunk(2)
    # What was found, and the blurred copies, belong one by one to the real pictures; the two halves do not.
    return {"kid": kernel_distance(found, real, paired=True), "kid_null": kernel_distance(first, second),
            "kid_blur": kernel_distance(blurred, real, paired=True)}


# ---------------------------------------------------------------------------------------------------- scenes


def scene_specs(size: int, count: int, kinds: Sequence[str] = KINDS, split: str = "held_out", seed: int = 0) -> dict[str, list[SceneSpec]]:
    """`count` scenes of each kind that training never showed: one object, a relation, several alike, two or three that differ."""
    most = {kind: 3 if kind in ("many", "trio") else 2 for kind in kinds}
    sources = {kind: Scenes(size, count, seed=seed, split=split, max_objects=most[kind], kinds=(kind,)) for kind in kinds}
    return {kind: [source.spec(index) for index in range(count)] for kind, source in sources.items()}


def score_scenes(images: Sequence[Image.Image | np.ndarray], facts: Sequence[SceneSpec | SceneFacts]) -> dict[str, Estimate]:
    """Share of pictures in which each of SCENE_FACTS holds, with Wilson intervals; "relation" only where one is told, and beside it

    "sides": its share among the pictures whose objects are right and stand on the axis that was asked for. By chance half of those stand
    on their sides, so at 0.5 a model has not read who stands where.
    """
    if len(images) != len(facts):
        raise QualityError(f"{len(images)} pictures and {len(facts)} scenes; give one scene for each picture.")
    told = [spec.facts if isinstance(spec, SceneSpec) else spec for spec in facts]
    reports = [check_scene(np.asarray(image), spec) for image, spec in zip(images, told, strict=True)]
    scores = {name: share(sum(map(holds, reports)), len(reports)) for name, holds in SCENE_FACTS.items() if name != "relation"}
    related = [report for report, spec in zip(reports, told, strict=True) if spec.relation]
    for name, asked in (("relation", related), ("sides", [report for report in related if report.objects_right and report.axis_right])):
        if asked:
            scores[name] = share(sum(report.relation_right for report in asked), len(asked))
    return scores


def scene_accuracy(pipe: IRISPipeline, specs: dict[str, list[SceneSpec]] | None = None, count: int = 64, seed: int = 0,
                   batch_size: int = 16, **arguments: Any) -> dict[str, Any]:
    """Does it draw what the caption says? Held-out scenes by kind, drawn from their plainest caption and read from pixels.

    specs: kind -> scenes; by default `count` held-out ones of each of KINDS. Returns kind -> {"pictures", one Estimate for each of
    SCENE_FACTS, "ceiling"}; the ceiling is the share "right" of the true pictures after the autoencoder: what a perfect
    generator could reach with it. Scene i of every kind is drawn with seed + i; `arguments` (num_steps, ...) go to the pipeline.
    """
    results: dict[str, Any] = {}
    for kind, scenes in (specs or scene_specs(pipe.image_size, count)).items():
        prompts = [caption_scene(spec)[0] for spec in scenes]
        images = draw_all(pipe, prompts, range(seed, seed + len(scenes)), batch_size, f"scenes: {kind}", **arguments)
        results[kind] = {"pictures": len(scenes), **score_scenes(images, scenes), "ceiling": _ceiling(pipe, scenes, batch_size)}
    return results


def _ceiling(pipe: IRISPipeline, scenes: Sequence[SceneSpec], batch_size: int) -> Estimate:
    pictures: list[Image.Image] = []
    for start in range(0, len(scenes), batch_size):
        part = [Image.fromarray(render_scene(spec, pipe.image_size)) for spec in scenes[start: start + batch_size]]
        pictures += pipe.decode(pipe.encode(part))
    return score_scenes(pictures, scenes)["right"]


# ---------------------------------------------------------------------------------------------------- distance of samples


def sample_kid(pipe: IRISPipeline, dataset: ImageDataset, count: int = 512, features: Features | None = None, seed: int = 0,
               batch_size: int = 16, **arguments: Any) -> dict[str, Any]:
    """Kernel distance of pictures drawn from the captions of `dataset` to its own pictures.

    {"pictures" (different ones), "kid", "kid_null", "kid_blur"}; see `reconstruction_quality` for the two that stand beside it. The `telling_caption` of
    each item is drawn with seed + i; `arguments` (num_steps, num_iterations, ...) go to the pipeline.
    """
    if not len(dataset):
        raise QualityError(f"the data set {dataset.name!r} has no pictures to compare with.")
    chosen = random.Random(seed).sample(range(len(dataset)), min(count, len(dataset)))
    items = different_pictures(dataset, count, [*chosen, *sorted(set(range(len(dataset))) - set(chosen))])
    number = len(items)
    require_enough(number)
    features = features or features_by_name()
    images = draw_all(pipe, [telling_caption(item) for item in items], range(seed, seed + number), batch_size, "samples", **arguments)
    seen: dict[str, list[Tensor]] = defaultdict(list)
    for start in range(0, number, batch_size):
        real = to_tensor([item.image for item in items[start: start + batch_size]])
        for name, pictures in (("drawn", to_tensor(images[start: start + batch_size])), ("real", real), ("blurred", gaussian_blur(real, 1.0))):
            seen[name].append(features(pictures))
    return {"pictures": number, **_beside_null(*(torch.cat(seen[name]) for name in ("drawn", "real", "blurred")))}


# ---------------------------------------------------------------------------------------------------- all of it


def measure_quality(pipe: IRISPipeline, data: str = "", scenes: int = 64, pictures: int = 256, samples: int = 512, retrieved: int = 64,
                    copies: int = 64, seed: int = 0, batch_size: int = 16, **arguments: Any) -> dict[str, Any]:
    """Every figure of quality that this model and this computer allow, by section; each section is left out when its count is 0.

    data: a source as `load_dataset_by_name` takes it, by default the one named in the model's metadata, or scenes. Sections:
    "reconstruction" (with kernel distances), "scenes" (when the data has scenes), "samples", "retrieval_train" and
    "retrieval_held_out_pairs" (of one style "retrieval_held_out"; when it has emoji), and "copies". What could not be measured stands under "not_measured" with the reason.
    """
    source = source_of(pipe, data)
    size = pipe.image_size
    features: Features | None = None
    missing: dict[str, str] = {}
    try:
        features = features_by_name(batch_size=batch_size)
    except QualityError as error:
        missing = {name: str(error) for name in ("samples", "retrieval")}

    @contextmanager
    def whatever_is_missing(section: str) -> Iterator[None]:
        """A section that cannot be measured, as with a folder of few pictures, costs none of the others."""
        try:
            yield
        except QualityError as error:
            missing[section] = str(error)

    common = {"seed": seed, "batch_size": batch_size, **arguments}
    result: dict[str, Any] = {"model": pipe.config.name, "model_hash": pipe.metadata.get("hash", ""), "data": source, "features": FEATURES if features else None, "seed": seed,
                              "counts": {"scenes": scenes, "pictures": pictures, "samples": samples, "retrieved": retrieved, "copies": copies},
                              "parameters": {**vars(pipe.defaults), **{name: value for name, value in arguments.items() if value is not None}}}
    if pictures:
        held_out = load_dataset_by_name(source, size, "held_out", pictures)
        enough = min(pictures, len(held_out)) >= FEWEST
        result["reconstruction"] = reconstruction_quality(pipe.autoencoder, held_out, pictures, batch_size, features if enough else None)
    if scenes and has_scenes(source):
        result["scenes"] = scene_accuracy(pipe, count=scenes, **common)
    if samples and features:
        with whatever_is_missing("samples"):
            result["samples"] = sample_kid(pipe, load_dataset_by_name(source, size, "held_out", samples if streams(source) else None), samples, features, **common)
    if features:
        with whatever_is_missing("retrieval"):
            result |= {f"retrieval_{split}": found for split, found in art_retrieval(pipe, source, retrieved, features, **common).items()}
    if copies:
        with whatever_is_missing("copies"):
            result["copies"] = nearest_training(pipe, source, copies, **common)[1]
    return result | ({"not_measured": missing} if missing else {})


def to_plain(value: Any) -> Any:
    """Nested results as JSON data: an Estimate becomes {"value", "interval"}, a number that is not finite null."""
    if isinstance(value, Estimate):
        return to_plain(value.to_dict())
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
