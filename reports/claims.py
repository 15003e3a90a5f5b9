"""Every figure that the specification or the README promises, as data: what was claimed, how to judge it, where it is measured.

A sentence elsewhere that holds a number is an entry here, or it is not promised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HOLDS, FAILS, NOT_MEASURED = "holds", "does not hold", "not measured"
TRAINED = ("cpu", "release")  # profiles that train on scenes, and long enough for figures of quality
JUDGED = ("shipped", *TRAINED)  # those and the one that only measures


@dataclass(frozen=True)
class Claim:
    """One promise.

    where: dotted path into the notebook's summary.json ("accuracy.one.value"); for notebook "all", into the totals of the
    profile. relation: "at most", "below", "at least", "equals" (within `tolerance`, absolute). profiles: where it is
    promised; () means in every one. machine: what a promise about a time was made for, as the first
    words of `iris.evaluation.reading.machine` name it (a GPU before the cores).
    """

    key: str
    text: str
    source: str
    relation: str
    value: float
    notebook: str
    where: str
    unit: str = ""
    tolerance: float = 0.0
    decimals: int = 2
    profiles: tuple[str, ...] = ()
    note: str = ""
    machine: str = ""

    def number(self, value: float) -> str:
        """`value` with this claim's unit and precision."""
        exact = f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:,.{self.decimals}f}"
        return f"{exact}{self.unit if self.unit == '%' else ' ' + self.unit if self.unit else ''}"

    @property
    def claimed(self) -> str:
        """The promise in words and figures."""
        if self.relation == "equals":
            return self.number(self.value) + (f" ± {self.number(self.tolerance)}" if self.tolerance else "")
        return f"{self.relation} {self.number(self.value)}"

    def verdict(self, measured: float | None) -> str:
        """HOLDS, FAILS or NOT_MEASURED."""
        if measured is None:
            return NOT_MEASURED
        holds = {
            "at most": measured <= self.value, "below": measured < self.value, "at least": measured >= self.value,
            "equals": abs(measured - self.value) <= self.tolerance,
        }[self.relation]
        return HOLDS if holds else FAILS


def read_value(summary: Mapping[str, Any], where: str) -> float | None:
    """The number at a dotted path, or None when it is not there, null or no number; truth values count as 0 and 1."""
    value: Any = summary
    for part in where.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return float(value) if isinstance(value, (bool, int, float)) else None


SPECIFICATION, WORKBENCH = "specification", "workbench"


_DEPTH = "The specification calls unrolled parameters effective capacity. It is depth: the same weights used again, learning no more."
_MEMORY = ("Weights in fp16, and in activations what one drawing added to a process in fp32. About 505 MB of each of the specification's totals does not "
           "depend on the generator; CLIP-L's text tower takes 246 MB in fp16 and 492 MB in fp32.")


def _variants() -> list[Claim]:
    """The specification's table of three variants."""
    claims = []
    for name, parameters, memory in (("tiny", 19, 545), ("small", 47, 597), ("base", 135, 760)):
        called = f"IRIS-{name.capitalize()}"
        claims += [
            Claim(f"parameters_{name}", f"{called}: generator parameters", SPECIFICATION, "equals", parameters, "13",
                  f"variants.{name}.generator_millions", "M", round(0.03 * parameters, 2)),
            Claim(f"core_share_{name}", f"{called}: share of the parameters in the shared core", WORKBENCH, "equals", 0.66, "13",
                  f"variants.{name}.core_share", tolerance=0.03),
            Claim(f"unrolled_{name}", f"{called}: parameters unrolled over 16 iterations, as a multiple", SPECIFICATION, "equals", 10.9, "13",
                  f"variants.{name}.unrolled_16", "x", 0.5, decimals=1, note=_DEPTH),
            Claim(f"memory_{name}", f"{called}: weights with CLIP-L/14 in fp16 and activations", SPECIFICATION, "at most", memory, "13",
                  f"variants.{name}.total_megabytes", "MB", decimals=0, note=_MEMORY),
        ]
    return claims


_HALF = ("IRIS-Tiny's core has one token for 2 x 2 latents: 64 at 256 px, 256 at 512 px, 1,024 at 1,024 px; the architectures beside it work on all of them. Medians over five rounds or more, in a "
         "random order each; the text's keys and values count in a picture.")


def _speed() -> list[Claim]:
    """IRIS-Tiny beside other architectures of its size, ratios of one run."""
    def claim(key: str, text: str, relation: str, value: float, where: str) -> Claim:
        return Claim(f"speed_{key}", text, WORKBENCH, relation, value, "13", f"speed.{where}.value", "x", profiles=("shipped",), note=_HALF)

    at_256 = "IRIS-Tiny at 256 px"
    return [
        claim("pixart", f"{at_256}: a picture of 4 x 4 over one of PixArt-47M", "at most", 0.65, "picture.over_pixart.iris x4"),
        claim("unet_int8", f"{at_256}: a picture of 4 x 4 in int8 over one of a U-Net of 54 M", "at most", 0.9, "picture.over_unet.iris int8 x4"),
        claim("pixart_int8", f"{at_256}: a picture of 4 x 8 in int8 over one of PixArt-47M", "at most", 0.8, "picture.over_pixart.iris int8 x8"),
        *(claim(f"mixer_{tokens}", f"A GRFM layer of IRIS-Tiny's width over an attention layer, {tokens:,} tokens", "at most", value, f"mixer.{tokens}.over_attention.grfm")
          for tokens, value in ((256, 1.1), (1024, 0.7), (4096, 0.45))),
        claim("sana_4096", "IRIS-Tiny at 1,024 px: 64 x 64 latents at 4 iterations over SANA-46M's", "at most", 1.0, "growth.4096.over_sana.iris x4"),
        claim("decoder", f"{at_256}: decoder over TAESD's", "at most", 0.15, "codec.decode.over_taesd_decode.iris decode"),
        claim("encoder", f"{at_256}: encoder over TAESD's", "at most", 0.2, "codec.encode.over_taesd_encode.iris encode"),
        claim("training", f"{at_256}: a training step of PixArt-47M, over one at 8 iterations with 4 differentiated", "at least", 0.85, "training.over_iris_x8.pixart"),
    ]


CLAIMS: tuple[Claim, ...] = (
    # The specification's verified properties.
    Claim("haar_round_trip", "Haar DWT and back: largest error", SPECIFICATION, "below", 1e-5, "01", "haar_round_trip_error"),
    Claim("compression", "WaveletVAE at 256 px: values in the picture over values in the latent", SPECIFICATION, "equals", 48, "13",
          "variants.tiny.compression", "x", decimals=0),
    Claim("latent_side", "WaveletVAE at 256 px: side of the latent grid", SPECIFICATION, "equals", 16, "13", "variants.tiny.latent_side", decimals=0),
    *_variants(),
    Claim("layers", "Effective layers of the four-layer core at 8 iterations", SPECIFICATION, "equals", 32, "13", "variants.tiny.layers_at_8",
          decimals=0),
    Claim("unrolled_8", "IRIS-Small unrolled at 8 iterations", SPECIFICATION, "equals", 270, "13", "variants.small.unrolled_millions_8", "M", 13.5,
          decimals=0),
    Claim("unrolled_16", "IRIS-Small unrolled at 16 iterations", SPECIFICATION, "equals", 524, "13", "variants.small.unrolled_millions_16", "M", 26.2,
          decimals=0),
    Claim("process_memory", "IRIS-Tiny: peak memory of a whole process that draws", SPECIFICATION, "below", 3072, "13",
          "variants.tiny.process_megabytes", "MB", decimals=0, note="fp32 on a CPU, interpreter and libraries included, text encoder left out."),
    Claim("gradients", "GRFM: weights of the generator that get no gradient", SPECIFICATION, "equals", 0, "11", "weights_without_gradient", decimals=0),
    Claim("depths", "One set of weights draws at every depth from 1 to 32: depths that failed", SPECIFICATION, "equals", 0, "12", "depths_failed",
          decimals=0),
    Claim("t4_hours", "All notebooks on a free T4", SPECIFICATION, "at most", 3, "all", "hours", "h", profiles=("t4",), machine="Tesla T4"),
    # What the workbench itself promises.
    Claim("velocity_at_start", "Largest velocity of an untrained generator", WORKBENCH, "equals", 0, "13", "velocity_at_start"),
    Claim("weight_identity", "The specification's loss weight against the unweighted loss at logit mean 1: largest relative gap", WORKBENCH,
          "at most", 1e-3, "03", "weight_identity_gap", decimals=3,
          note="t/(1-t) times LogitNormal(0,1) equals e^(1/2) times LogitNormal(1,1): on the velocity loss the weight counts twice."),
    Claim("scenes_psnr", "VAE on held-out scenes: median PSNR", WORKBENCH, "at least", 30, "01", "scenes_psnr", "dB", decimals=1, profiles=TRAINED),
    Claim("one_object", "One object, held-out captions: right shape and colour", WORKBENCH, "at least", 90, "10", "accuracy_percent.one", "%",
          decimals=0, profiles=JUDGED),
    Claim("two_objects", "Two objects and a relation, held-out captions: all right", WORKBENCH, "at least", 60, "10", "accuracy_percent.relation", "%",
          decimals=0, profiles=JUDGED),
    Claim("retrieval", "Emoji drawn from training captions: concept among the five nearest of all art of its style", WORKBENCH, "at least", 85, "10",
          "retrieval_percent.train", "%", decimals=0, profiles=("emoji",)),
    Claim("retrieval_pairs", "The same for concepts trained in another style only, as a share of what real art reaches", WORKBENCH, "at least", 60, "10",
          "retrieval_percent.of_ceiling", "%", decimals=0, profiles=("emoji",)),
    Claim("relation_gain", "Relations drawn right at 8 iterations more than at 2, each step from zero", WORKBENCH, "at least", 10, "12", "gained.relation_gain_points", "points",
          decimals=0, profiles=("shipped",)),
    Claim("auto_share", "Automatic depth: core passes over those of the cheapest fixed depth of as many steps, scenes as right and pictures as near to real ones", WORKBENCH, "at most", 80, "12",
          "gained.auto_share_percent", "%", decimals=0, profiles=("shipped",),
          note="A fixed depth counts that draws at least as many right of the same captions and seeds. Until 2026-11-28 every one within the interval of the best counted, which the fewest pictures "
               "make the widest; by that rule the share of automatic depth would be 95 % in this model (reports/LOG.md)."),
    Claim("carried_saves", "A carried state at equal quality over 8 steps: core passes saved", WORKBENCH, "at least", 25, "12", "gained.carried_saves_percent",
          "%", decimals=0, profiles=("shipped",)),
    *_speed(),
    Claim("one_step", "Student's one-step error over its teacher's", WORKBENCH, "at most", 0.5, "05", "one_step_ratio", profiles=TRAINED),
    Claim("smoke_minutes", "The smoke profile on two CPU cores", WORKBENCH, "below", 8, "all", "minutes", "min", decimals=1, profiles=("smoke",), machine="2 CPU cores"),
    Claim("cpu_hours", "The cpu profile on two CPU cores", WORKBENCH, "below", 2.5, "all", "hours", "h", profiles=("cpu",), machine="2 CPU cores"),
)


def check_claims(claims: tuple[Claim, ...] = CLAIMS) -> None:
    """ValueError when two claims share a key or a relation is unknown: a test and the runner call it."""
    keys = [claim.key for claim in claims]
    if len(set(keys)) != len(keys):
        raise ValueError("two claims have the same key.")
    for claim in claims:
        claim.verdict(0.0)


def measure(claims: tuple[Claim, ...], profile: str, summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Key -> measured value, for the claims that are promised for `profile` and that its summaries (by notebook number) hold.

    A promise about one kind of machine is answered by a summary whose "machines" are all of it.
    """
    measured = {}
    for claim in claims:
        if not claim.profiles or profile in claim.profiles:
            value = read_value(summaries.get(claim.notebook, {}), claim.where)
            machines = summaries.get(claim.notebook, {}).get("machines", [])
            if value is not None and (not claim.machine or (machines and all(machine.startswith(f"{claim.machine},") for machine in machines))):
                measured[claim.key] = value
    return measured
