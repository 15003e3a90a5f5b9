"""Train: pictures, a size and some minutes; a process of its own trains, and this page only looks at its folder."""

import html
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from demo import training
from demo.chart import Line, line_chart
from demo.model import LoadedModel, ModelError
from demo.pictures import Shown, row_html
from demo.request import RequestError
from demo.serving import sentences
from demo.settings import PRIVATE
from demo.status import status_html
from iris.data import unpack_zip

NOTE = (
    '<p class="note">A small model of your own, from a pack or from your pictures: a zip with NAME.png beside NAME.txt (the caption), or '
    "with a metadata.csv (file_name, text). It goes on when you close this page; the model then stands in the list on the Model tab.</p>"
)
SECONDS = 3.0
UPLOADED = "My own zip"


def build_tab(model: LoadedModel, tab: gr.Tab) -> None:
    """The tab's components and events inside the current Blocks."""
    gr.HTML(NOTE, elem_classes="plain")
    with gr.Row(elem_classes="work even"):
        with gr.Column(scale=1, min_width=300):
            pack = gr.Radio([*training.packs(), UPLOADED], value=next(iter(training.PACKS)), label="Pictures", elem_id="pack", elem_classes="effort")
            archive = gr.File(file_types=[".zip"], label="A zip of captioned pictures", height=130, visible=False, elem_id="archive")
            preset = gr.Radio(training.PRESETS, value="nano", label="Size", info="nano draws 32 pixels, micro 64.", elem_id="train-preset", elem_classes="effort")
            minutes = gr.Slider(*training.MINUTES, 5, step=1, label="Minutes at most", buttons=[], elem_id="minutes")
            onward = gr.Checkbox(False, label="Go on from the loaded model", info="Only when it has the chosen size.", elem_id="onward")
            with gr.Row(elem_classes="actions"):
                go = gr.Button("Train", variant="primary", min_width=110, elem_id="train-go")
                stop = gr.Button("Stop training", min_width=110, elem_id="train-stop")
        with gr.Column(scale=1, min_width=300):
            shown = gr.HTML("", elem_id="training", elem_classes="plain")
    clock = gr.Timer(SECONDS, active=False)
    pack.change(lambda name: gr.update(visible=name == UPLOADED), pack, archive, **PRIVATE)
    begun = go.click(_train_event(model), [pack, archive, preset, minutes, onward], [shown, clock], api_visibility="private", show_progress="hidden")
    for start in (tab.select, clock.tick, begun.then):
        start(look, None, [shown, clock], **PRIVATE)
    stop.click(_stop, None, [shown, clock], **PRIVATE)


def _train_event(model: LoadedModel) -> Callable[..., Iterator[tuple]]:
    @sentences
    def train(pack: str, archive: str | None, preset: str, minutes: float, onward: bool) -> Iterator[tuple]:
        if model.public:
            raise ModelError("This page is shared, so nothing is trained here. Run it at home: python -m demo.app.")
        if training.running_job() is not None:
            raise RequestError("A training is running already; wait for its end, or stop it.")
        folder = training.new_folder()
        data = _pictures(pack, archive, folder)
        init = str(model.folder) if onward and model.folder is not None else ""
        training.start_job(training.plan_job(data, preset, minutes, init), folder)
        yield look()

    return train


def _pictures(pack: str, archive: str | None, folder: Path) -> str:
    """The data source that was chosen; an uploaded archive is unpacked into the job's folder. Raises RequestError or DataError."""
    if pack != UPLOADED:
        return training.PACKS.get(pack, "")
    if not archive:
        raise RequestError("Upload a zip of captioned pictures first.")
    unpacked = unpack_zip(archive, folder / "pictures")
    if unpacked.passed_over:
        gr.Warning(unpacked.passed_over)
    return f"folder:{unpacked.folder}"


def _stop() -> tuple[str, Any]:
    folder = training.running_job()
    if folder is not None:
        training.stop_job(folder)
    return look()


def look() -> tuple[str, Any]:
    """The newest job as it stands, and whether to look again."""
    folder = training.latest_job()
    if folder is None:
        return status_html("Nothing was trained here yet."), gr.Timer(active=False)
    state = training.read_state(folder)
    return job_html(folder, state), gr.Timer(active=state.is_alive)


def job_html(folder: Path, state: training.JobState) -> str:
    """Status, loss by stage and the newest samples."""
    parts = [status_html(html.escape(state.message), [html.escape(folder.name)])]
    for stage, rows in training.stage_rows(folder).items():
        last = rows[-1]
        told = f"step {last['step']:,}, {last.get('images_per_second') or 0:.0f} pictures a second"
        held_out = _column(rows, "held_out_loss")
        if held_out:
            told += f", held-out loss (orange) {held_out[0][1]:.3f} at first, {held_out[-1][1]:.3f} now"
        lines = [Line(_column(rows, "loss"), "training"), Line(held_out, "held")]
        parts.append(f'<p class="section">{stage}</p>{line_chart(lines, f"Loss of stage {stage} by step", "step", "loss")}<p class="note">{told}</p>')
    files = training.sample_files(folder)
    if files:
        pictures, said = [Image.open(file) for file in files], training.sample_captions(folder)
        parts.append('<p class="section">Samples on the way</p>' + row_html([Shown(picture, html.escape(caption[:80])) for picture, caption in zip_longest(pictures, said[:len(pictures)], fillvalue="")], pictures[0].width))
    return "".join(parts)


def _column(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have one."""
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]
