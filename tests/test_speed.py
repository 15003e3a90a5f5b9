"""Laws of the stopwatch: known durations come out, ratios are taken round by round, peers are what they are called. Nothing is timed."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise

import pytest
import torch
from typer.testing import CliRunner

from iris.evaluation import peers, speed
from iris.evaluation.__main__ import app

needs_diffusers = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")


class Clock:
    """A clock that calls move by hand; a matrix product moves nothing, so one tick is added at every reading."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.5
        return self.now

    def work(self, seconds: float):
        def call() -> None:
            self.now += seconds
        return call


def test_known_durations_come_out_in_units_of_the_matrix_product() -> None:
    clock = Clock()
    rounds = speed.interleave({"short": clock.work(1.5), "long": clock.work(9.5)}, 5, clock)
    assert rounds.eq("short").value == 4.0 and rounds.eq("long").value == 20.0   # (duration + tick) over the product's one tick
    assert rounds.ratio("long", "short") == speed.Spread(5.0, (5.0, 5.0))
    assert len(rounds.seconds["short"]) == 5
    found = json.loads(json.dumps(rounds.to_dict("short"), allow_nan=False))
    assert found["over_short"]["long"]["value"] == 5.0 and "short" not in found["over_short"]


def test_no_call_has_the_same_one_before_it_in_every_round() -> None:
    """What ran before decides what the caches hold; in a fixed order the call after the matrix product would always start cold."""
    called: list[str] = []
    speed.interleave({name: lambda name=name: called.append(name) for name in "abc"}, 40)
    assert all(sorted(called[start: start + 3]) == ["a", "b", "c"] for start in range(0, len(called), 3)) and len(called) == 3 * 41
    pairs = {(before, after) for before, after in pairwise(called) if before != after}
    assert pairs == {(before, after) for before in "abc" for after in "abc" if before != after}


def test_a_ratio_does_not_mix_rounds() -> None:
    rounds = speed.Rounds({"a": [1.0, 10.0, 100.0], "b": [2.0, 20.0, 200.0], speed.EQ: [1.0, 1.0, 1.0]})
    assert rounds.ratio("a", "b") == speed.Spread(0.5, (0.5, 0.5))


def test_spread_is_median_and_quartiles() -> None:
    assert speed.spread([4.0, 0.0, 3.0, 1.0, 2.0]) == speed.Spread(2.0, (1.0, 3.0))


def test_parts_of_a_small_model_are_measured_and_others_threads_and_random_numbers_stay() -> None:
    torch.manual_seed(3)
    before = torch.get_num_threads()
    found = speed.measure_speed("nano", [], ["forward", "picture", "training", "codec", "ceiling"], repeats=1, threads=1)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1)) and torch.get_num_threads() == before
    assert set(found["forward"]["eq"]) == {"iris x4", "iris x8", "iris int8 x4", "iris int8 x8"}
    rates, seconds = found["training"]["images_per_second"], found["training"]["milliseconds"]
    assert rates["iris x8"] == pytest.approx(found["training"]["batch"] / seconds["iris x8"] * 1e3)
    for part in found["ceiling"].values():
        assert part["share"] == pytest.approx(part["gflop"] / (2 * 1.024**3) / part["eq"]["value"])


@needs_diffusers
@pytest.mark.parametrize(("name", "low", "high"), [("pixart", 44e6, 48e6), ("sana", 42e6, 47e6), ("dit", 39e6, 41e6), ("unet", 50e6, 55e6)])
def test_peers_have_the_size_of_their_name_and_map_latents_to_latents(name: str, low: float, high: float) -> None:
    peer = peers.build_peer(name)
    assert low < sum(parameter.numel() for parameter in peer.module.parameters()) < high
    z = torch.randn(1, *peer.shape)
    with torch.inference_mode():
        assert peer.velocity(z, torch.full((1,), 500.0)).shape == z.shape


@needs_diffusers
@pytest.mark.parametrize("name", ["pixart", "sana", "dit", "unet"])
def test_a_larger_picture_is_the_same_network_with_more_tokens(name: str) -> None:
    with torch.device("meta"):
        small, large = peers.build_peer(name, 16), peers.build_peer(name, 64)
        assert large.shape[-1] == 4 * small.shape[-1]
        assert large.velocity(torch.randn(1, *large.shape), torch.full((1,), 500.0)).shape[1:] == large.shape
    shapes = [{key: value.shape for key, value in peer.module.named_parameters()} for peer in (small, large)]
    assert shapes[0] == shapes[1]


@needs_diffusers
def test_taesd_is_the_small_autoencoder() -> None:
    taesd = peers.build_taesd()
    assert 2.3e6 < sum(parameter.numel() for parameter in taesd.parameters()) < 2.6e6


@pytest.mark.parametrize(("arguments", "said"), [
    (["--against", "nobody"], "there is no peer 'nobody'"), (["--parts", "nothing"], "'nothing' is not known"), (["--model", "huge"], "'huge' is not known"),
    (["--clock", "sun"], "'sun' is not known")])
def test_a_wrong_word_is_answered_by_one_sentence(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["speed", *arguments])
    assert done.exit_code == 2 and said in done.output and "Traceback" not in done.output


def test_without_diffusers_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(peers.PeerError, match="pip install"):
        speed.measure_speed("nano", ["pixart"], ["forward"], repeats=1)
