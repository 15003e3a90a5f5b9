"""The page hands on what it is asked: each setting reaches the picture, and a public server is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from demo_server import nano_pipeline
from PIL import Image

from demo.app import create_demo, launch_options, main
from demo.drawing import drawing_stream
from demo.editing import REDRAW, REPAINT, REWORD, editing_stream, plan_edit
from demo.model import LoadedModel
from demo.request import GenerationRequest
from demo.settings import fill
from demo.tabs.between import Way, filming
from demo.tabs.inside import silencing_stream
from iris import editing
from iris.nn.mixer import GRFM
from iris.pipeline import IRISPipeline

REQUEST = GenerationRequest("a red circle", "blue", 3, 3, 4, 2.0)
OTHERS = {"prompt": "two green stars", "negative_prompt": "", "seed": 4, "num_steps": 2, "num_iterations": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def nano() -> IRISPipeline:
    return nano_pipeline()


def drawn(pipeline: IRISPipeline, request: GenerationRequest) -> np.ndarray:
    return np.asarray(list(drawing_stream(LoadedModel(pipeline))(request, False))[-1].image)


@pytest.mark.parametrize("name", OTHERS)
def test_every_setting_of_a_request_changes_the_picture(nano: IRISPipeline, name: str) -> None:
    """As the pipeline itself, asked in its own words, would draw it."""
    changed = replace(REQUEST, **{name: OTHERS[name]})
    picture = drawn(nano, changed)
    assert not np.array_equal(picture, drawn(nano, REQUEST))
    own = {**vars(REQUEST), name: OTHERS[name]}
    own["negative_prompt"] = own["negative_prompt"] or None
    np.testing.assert_array_equal(picture, np.asarray(nano(**own).images[0]))


def test_filling_the_fields_draws_the_same_request_again(nano: IRISPipeline) -> None:
    for request in (REQUEST, replace(REQUEST, num_iterations="auto"), replace(REQUEST, **OTHERS)):
        negative, seed, randomise, steps, iterations, auto, guidance, _ = fill(LoadedModel(nano), request)
        assert (negative, seed["value"], randomise, steps, auto, guidance) == (
            request.negative_prompt, request.seed, False, request.num_steps, request.num_iterations == "auto", request.guidance_scale)
        assert auto or iterations["value"] == request.num_iterations


def test_a_way_ends_at_its_other_prompt_and_seed(nano: IRISPipeline) -> None:
    for prompt, seed in (("two green stars", 9), ("a red circle", 9), ("two green stars", 3)):
        film = list(filming(LoadedModel(nano))(Way(REQUEST, prompt, seed, 3)))[-1]
        for frame, end in ((0, REQUEST), (-1, replace(REQUEST, prompt=prompt, seed=seed))):
            assert np.abs(np.asarray(film.frames[frame], np.int16) - drawn(nano, end)).max() <= 1  # one batch against one picture alone


def test_an_edit_hands_on_picture_words_strength_and_mask(nano: IRISPipeline) -> None:
    image, mask = Image.fromarray(drawn(nano, replace(REQUEST, seed=11))), np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    settings = {**REQUEST.arguments()}
    prompt = settings.pop("prompt")
    expected = {REDRAW: lambda strength: editing.image_to_image(nano, image, prompt, strength, **settings),
                REWORD: lambda strength: editing.flow_edit(nano, image, "a blue bird", prompt, strength, **settings),
                REPAINT: lambda strength: editing.inpaint(nano, image, mask, prompt, strength, **settings)}
    for mode, own in expected.items():
        pictures = []
        for strength in (0.5, 0.9):
            job = plan_edit(mode, REQUEST, image, strength, mask, "a blue bird")
            pictures.append(np.asarray(list(editing_stream(LoadedModel(nano))(job))[-1].image))
            np.testing.assert_array_equal(pictures[-1], np.asarray(list(own(strength))[-1].images[0]))
        assert not np.array_equal(*pictures), mode
    reworded = [np.asarray(list(editing_stream(LoadedModel(nano))(plan_edit(REWORD, REQUEST, image, 0.9, None, words)))[-1].image) for words in ("a blue bird", "red apple")]
    assert not np.array_equal(*reworded)


def test_a_silenced_path_adds_nothing(nano: IRISPipeline) -> None:
    """Seen from outside: the same network with that path's answer made zero by a hook."""
    moments = list(silencing_stream(LoadedModel(nano))(REQUEST))
    shares = [moment for moment in moments if isinstance(moment, float)]
    assert shares == sorted(shares) and len(shares) == 4 * REQUEST.num_steps and shares[-1] == 1.0  # Stop is heard after each step
    shown = {moment[0]: np.asarray(moment[1]) for moment in moments if not isinstance(moment, float)}
    np.testing.assert_array_equal(shown[""], drawn(nano, REQUEST))
    assert len(shown) == 4 and len({picture.tobytes() for picture in shown.values()}) == 4
    original = GRFM.paths
    for position, name in enumerate(("Fourier", "recurrence", "spatial")):
        def without(self, x, record=False, position=position):
            gate, spatial, paths, zeroed = original(self, x, record)
            return gate, spatial, tuple(path * (index != position) for index, path in enumerate(paths)), zeroed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GRFM, "paths", without)
            expected = drawn(nano, REQUEST)
        assert np.abs(shown[name].astype(np.int16) - expected).max() <= 1, name


# --- a server for everybody ------------------------------------------------------------------------------------------


def test_a_public_server_limits_its_visitors_and_behind_a_spaces_proxy_knows_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    at_home, alone = launch_options("127.0.0.1", 7860), launch_options("0.0.0.0", 7860, public=True)
    monkeypatch.setenv("SPACE_ID", "someone/iris")
    space = launch_options("0.0.0.0", 7860, public=True)
    assert "app_kwargs" not in at_home and at_home["max_file_size"] != alone["max_file_size"]
    limits = [options["app_kwargs"]["middleware"] for options in (alone, space)]
    assert limits[0] and [each.kwargs.get("proxies") for each in limits[0]] != [each.kwargs.get("proxies") for each in limits[1]]


def test_a_public_page_neither_trains_nor_changes_the_model(nano: IRISPipeline) -> None:
    ids = [{block.elem_id for block in create_demo(nano, public=public).blocks.values()} for public in (False, True)]
    assert {"train-go", "choice"} <= ids[0] and not {"train-go", "choice"} & ids[1]


@pytest.mark.parametrize("flags", [["--share"], ["--public"]])
def test_tools_that_know_no_visitors_are_not_offered_in_public(flags: list[str]) -> None:
    with pytest.raises(SystemExit, match="--mcp is for a server of your own"):
        main([*flags, "--mcp"])
