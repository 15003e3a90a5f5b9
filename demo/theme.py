"""The page's looks: one calm theme in light and dark, system fonts only, so that no request leaves the machine.

Colours: warm greys for the room, one iris violet for what can be pressed. Text on its ground keeps a contrast of at
least 4.5 : 1 in both modes.
"""

from __future__ import annotations

import gradio as gr
from gradio.themes.utils import colors, sizes

IRIS = colors.Color(
    name="iris", c50="#f5f3fd", c100="#ebe7fb", c200="#d8d0f7", c300="#bcb0f0", c400="#9d8be6", c500="#7d66d9", c600="#6349c4",
    c700="#523aa6", c800="#433086", c900="#372a6a", c950="#221a45",
)
STONE = colors.Color(
    name="stone", c50="#faf9f7", c100="#f3f1ee", c200="#e6e3de", c300="#d3cfc9", c400="#a39e99", c500="#75706d", c600="#57534f",
    c700="#3d3a39", c800="#282628", c900="#1c1b1e", c950="#141316",
)
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Liberation Sans", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Consolas", "Liberation Mono", "monospace")


def iris_theme() -> gr.themes.Base:
    """The Gradio theme; `launch(theme=...)` takes it."""
    theme = gr.themes.Base(
        primary_hue=IRIS, secondary_hue=IRIS, neutral_hue=STONE, radius_size=sizes.radius_lg, text_size=sizes.text_md,
        spacing_size=sizes.spacing_md, font=SANS, font_mono=MONO,
    )
    return theme.set(
        body_background_fill="*neutral_50", body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900", body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="white", background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100", background_fill_secondary_dark="*neutral_800",
        border_color_primary="*neutral_200", border_color_primary_dark="*neutral_700",
        block_background_fill="white", block_background_fill_dark="*neutral_900",
        block_border_width="1px", block_border_color="*neutral_200", block_border_color_dark="*neutral_800",
        block_shadow="none", block_shadow_dark="none", block_radius="14px", container_radius="14px",
        block_label_background_fill="transparent", block_label_background_fill_dark="transparent",
        block_label_text_color="*neutral_600", block_label_text_color_dark="*neutral_400",
        block_label_border_width="0px", block_label_border_width_dark="0px", block_label_shadow="none",
        block_title_text_color="*neutral_700", block_title_text_color_dark="*neutral_300", block_title_text_weight="500",
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_400",
        input_background_fill="white", input_background_fill_dark="*neutral_900",
        input_border_color="*neutral_300", input_border_color_dark="*neutral_700", input_border_width="1px",
        input_border_color_focus="*primary_500", input_border_color_focus_dark="*primary_400",
        input_placeholder_color="*neutral_500", input_placeholder_color_dark="*neutral_400",
        input_shadow="none", input_shadow_focus="0 0 0 3px *primary_100", input_shadow_focus_dark="0 0 0 3px *primary_900",
        input_radius="12px", button_large_radius="12px", button_medium_radius="12px", button_small_radius="999px",
        button_primary_background_fill="*primary_600", button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700", button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white", button_primary_text_color_dark="white",
        button_secondary_background_fill="white", button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover="*neutral_100", button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300", button_secondary_border_color_dark="*neutral_700",
        button_secondary_text_color="*neutral_800", button_secondary_text_color_dark="*neutral_100", button_border_width="1px",
        button_primary_border_color="transparent", button_primary_border_color_dark="transparent",
        button_primary_shadow="none", button_secondary_shadow="none", button_transform_hover="none", button_transform_active="none",
        slider_color="*primary_500", slider_color_dark="*primary_400", color_accent="*primary_600", color_accent_soft="*primary_50",
        checkbox_background_color_selected="*primary_600", checkbox_background_color_selected_dark="*primary_500",
        checkbox_label_background_fill="transparent", checkbox_label_background_fill_dark="transparent",
        checkbox_label_border_width="0px", checkbox_label_padding="4px 0", loader_color="*primary_500",
        link_text_color="*primary_700", link_text_color_dark="*primary_300",
    )


CSS = """
.gradio-container { max-width: 1040px !important; width: 100% !important; margin: 0 auto !important; padding: 0 !important; }
.gradio-container .main.fillable { max-width: none !important; padding: 20px 24px !important; }
.gradio-container main.contain { padding: 0 !important; }
.gradio-container :focus-visible { outline: 2px solid var(--primary-500) !important; outline-offset: 2px; }
.dark .tab-container button.selected { color: var(--primary-300); }
.dark .tab-container button.selected::after { background: var(--primary-400); }
.dark input[type="range"] { --neutral-200: var(--neutral-700); }
.dark input { color-scheme: dark; }

/* head */
#head { padding: 0 2px; }
#head h1 { font-size: 1.5rem; font-weight: 650; letter-spacing: .14em; margin: 0; color: var(--body-text-color); }
#head h1 i { font-style: normal; color: var(--primary-600); }
.dark #head h1 i { color: var(--primary-400); }
#head p { margin: 2px 0 0; color: var(--body-text-color-subdued); }
.block.plain .html-container { padding: 0 !important; }

.ask .form { background: transparent; border: 0; gap: 8px; overflow: visible; border-radius: 0; }
.effort:not(.block) { overflow: visible; }

/* prompt row: text grows, buttons keep their size */
.ask { align-items: stretch; gap: 8px; }
.ask input { font-size: 1.05rem !important; padding: 11px 14px !important; min-height: 48px; border-radius: 12px !important;
  border: 1px solid var(--input-border-color) !important; }
.ask input:focus { border-color: var(--input-border-color-focus) !important; }
.ask .block { border: 0 !important; background: transparent !important; padding: 0 !important; overflow: visible !important; }
#examples { overflow: visible; }
#examples .gallery { gap: 8px; padding: 0; border: 0; }
#examples .gallery-item { border-radius: 999px; padding: 3px 12px; border: 1px solid var(--border-color-primary); background: transparent;
  color: var(--body-text-color-subdued); }
#examples .gallery-item:hover { color: var(--body-text-color); background: var(--background-fill-secondary); }

/* the picture: a fixed square, so that nothing jumps; 448 px is seven times 64 */
.work { gap: 28px; }
.work > .column:first-child { flex: 1 1 450px; max-width: 450px; }
.picture { aspect-ratio: 1; width: 100% !important; background: var(--background-fill-secondary) !important; }
.picture .image-container, .picture .image-frame, .picture button.image-frame { width: 100%; height: 100%; }
.picture img { width: 100% !important; height: 100% !important; object-fit: contain; border-radius: 0; }
.pixels img { image-rendering: pixelated; }

/* status line */
.status { min-height: 4.1em; }
.status p { margin: 0; font-variant-numeric: tabular-nums; line-height: 1.5; }
.status .facts { color: var(--body-text-color-subdued); }
.status .bar { height: 4px; border-radius: 2px; background: var(--border-color-primary); overflow: hidden; margin: 4px 0 10px; }
.status .bar.off { visibility: hidden; }
.status .bar span { display: block; height: 100%; border-radius: 2px; background: var(--primary-500); }
.actions { gap: 8px; }
.actions.four { display: grid; grid-template-columns: 1fr 1fr; }
.quiet .form { border: 0; }
.seed-row { align-items: center; }
.gradio-container input[type="range"]::-webkit-slider-thumb { box-shadow: 0 0 0 1px var(--neutral-400), 0 1px 3px #0003; }

@media (max-width: 640px) {
  .gradio-container .main.fillable { padding: 14px 16px !important; }
  .work { gap: 12px; }
  .work > .column:first-child { max-width: none; }
  .status { min-height: 3.2em; }
  .seed-row .form { flex-wrap: wrap; }
  .seed-row .form > * { flex: 1 1 100% !important; }
}

/* filmstrip: one column an iteration; labels stay while it scrolls */
.film { contain: inline-size; }
.film-note, .film .legend { color: var(--body-text-color-subdued); }
.film .legend { display: flex; flex-wrap: wrap; gap: 6px 28px; font-size: .875rem; margin: 0 0 12px; }
.film .legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 5px 0 12px; }
.film .legend i.ramp { width: 84px; margin: 0 8px; vertical-align: baseline; }
.film .legend b { font-weight: 500; font-variant-numeric: tabular-nums; }
.film details { border: 1px solid var(--border-color-primary); border-radius: 14px; background: var(--block-background-fill); margin-bottom: 10px; }
.film-note { max-width: 60em; margin: 0 0 10px; }
.film summary { cursor: pointer; padding: 12px 16px; font-weight: 550; }
.film summary small { font-weight: 400; color: var(--body-text-color-subdued); margin-left: 8px; font-size: .875rem; }
.film .grid { display: grid; grid-template-columns: 76px repeat(var(--n), minmax(34px, 112px)); column-gap: 0; row-gap: 5px;
  align-items: center; overflow-x: auto; padding: 2px 16px 16px; font-size: .8125rem; font-variant-numeric: tabular-nums; }
.film .legend > span, .film .paths > span { white-space: nowrap; }
.film .label { grid-column: 1; position: sticky; left: -16px; padding-left: 16px; margin-left: -16px; z-index: 1; align-self: stretch;
  display: flex; align-items: center; background: var(--block-background-fill); color: var(--body-text-color-subdued); }
.film .number { text-align: center; color: var(--body-text-color-subdued); }
.film .strip { grid-column: 2 / span var(--n); width: 100%; height: auto; display: block; image-rendering: pixelated; margin: 0; }
.film .share { display: flex; height: 6px; margin: 0 1px 7px; border-radius: 3px; overflow: hidden; background: var(--border-color-primary); }
.film .share i { display: block; height: 100%; }
.film .change { display: flex; flex-direction: column; align-items: center; gap: 3px; }
.film .change i { display: flex; align-items: flex-end; width: calc(100% - 8px); height: 34px; }
.film .change b { display: block; width: 100%; border-radius: 2px 2px 0 0; background: var(--primary-500); }
.film .change.settled b { background: var(--neutral-400); }

@media (max-width: 640px) {
  .film .legend > span.paths { white-space: normal; }
  .film .legend i { margin-left: 6px; }
  .film .legend i.ramp { width: 44px; margin: 0 4px; }
  .film .grid { grid-template-columns: 52px repeat(var(--n), minmax(31px, 112px)); padding: 2px 8px 12px; font-size: .75rem; }
  .film .label { left: -8px; padding-left: 8px; margin-left: -8px; }
  .film .change { font-size: .6875rem; }
}

/* a choice of a few words as one bar */
.effort .wrap { display: flex; flex-wrap: wrap; gap: 4px; }
.effort .wrap label { position: relative; flex: 1 1 0; justify-content: center; padding: 7px 6px !important; border: 1px solid var(--border-color-primary) !important;
  border-radius: 10px; cursor: pointer; white-space: nowrap; background: transparent; font-weight: 450; }
.effort .wrap label.selected { background: var(--primary-50); border-color: var(--primary-400) !important; color: var(--primary-800); }
.dark .effort .wrap label.selected { background: var(--primary-950); border-color: var(--primary-500) !important; color: var(--primary-200); }
.effort .wrap label input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: pointer; }
.effort .wrap label:focus-within { outline: 2px solid var(--primary-500); outline-offset: 2px; }
.effort .wrap label span { margin-left: 0 !important; }
.block.effort { overflow: visible !important; }
.note { color: var(--body-text-color-subdued); margin: 0; max-width: 60em; }
.actions button { white-space: nowrap; }

/* this visit: small pictures in a row, words only for screen readers */
#visit, #visit > .styler { border: 0 !important; background: transparent !important; gap: 8px !important; overflow: visible; }
#visit .block, #visit .gallery-container, #visit .grid-wrap { border: 0 !important; background: transparent !important; padding: 0 !important;
  outline-offset: -2px; overflow: visible !important; }
#visit .grid-wrap { height: auto !important; min-height: 0 !important; max-height: 260px; overflow-y: auto !important; }
#visit .grid-container { grid-template-columns: repeat(auto-fill, 72px) !important; gap: 8px !important; padding: 4px !important; margin: 0 !important;
  align-items: start; }
#visit .thumbnail-item, #visit .grid-container button { aspect-ratio: 1; width: 72px; height: 72px !important; }
#visit .caption-label, #visit label[data-testid="block-label"] { display: none; }
#visit::before { content: "This visit"; font-weight: 550; }
.plain h3 { font-size: 1rem; font-weight: 550; margin: 6px 0 8px; }
#visit .thumbnail-item, #visit .grid-container button, #visit img { border-radius: 10px !important; }
#again { max-width: 240px; }

/* pictures in a row; a curve; two sliders that move a sheet of frames */
.shots { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 12px; }
.shots.small { grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)); gap: 10px; }
.shots figure, .scrub figure { margin: 0; min-width: 0; }
.shots img, .to-come, .scrub .frame { width: 100%; aspect-ratio: 1; display: block; margin: 0; border-radius: 10px; }
.shots.pixels img, .scrub.pixels .frame, .shots.small img { image-rendering: pixelated; }
.to-come { background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.shots figcaption, .scrub figcaption { font-size: .875rem; line-height: 1.4; margin-top: 5px; font-variant-numeric: tabular-nums; }
.shots small, .scrub small { display: block; color: var(--body-text-color-subdued); font-size: .8125rem; }
.scrub { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 14px 28px; border: 1px solid var(--border-color-primary); border-radius: 14px;
  background: var(--block-background-fill); padding: 16px; align-items: start; }
.scrub .views { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; grid-row: 1 / span 2; }
.scrub .frame { background-size: calc(100% * var(--n)) calc(100% * var(--m)); background-repeat: no-repeat;
  background-position: calc(100% * var(--i) / max(var(--n) - 1, 1)) calc(100% * var(--s) / max(var(--m) - 1, 1)); }
.scrub .sliders { display: grid; gap: 10px; align-content: start; }
.scrub label { display: grid; grid-template-columns: 5.2em 1fr 2.2em; gap: 10px; align-items: center; font-variant-numeric: tabular-nums; }
.scrub input[type="range"] { width: 100%; accent-color: var(--primary-500); }
.scrub input[type="range"]::-webkit-slider-thumb { border-radius: 50%; }
.scrub output { text-align: right; }
.chart { width: 100%; height: auto; display: block; overflow: visible; }
.chart text { font-size: 11px; fill: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.chart .grid { stroke: var(--border-color-primary); stroke-width: 1; }
.chart .level { stroke: var(--body-text-color-subdued); stroke-dasharray: 4 4; stroke-width: 1; }
.chart polyline { fill: none; stroke: var(--primary-500); stroke-width: 2; stroke-linejoin: round; }
.chart circle { fill: var(--primary-500); stroke: var(--block-background-fill); stroke-width: 1.5; }
.chart .held polyline { stroke: #D55E00; } .chart .held circle { fill: #D55E00; }
.chart .ranges polyline { stroke: var(--line); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); gap: 12px 28px; }
.pair figure { margin: 0; }
.pair figcaption { font-size: .875rem; margin-top: 5px; }
.pair small { display: block; color: var(--body-text-color-subdued); font-size: .8125rem; }
.chart .line.step { opacity: calc(1 - .82 * min(1, max(var(--s) - var(--k), var(--k) - var(--s)))); }
.chart .cursor { stroke: var(--body-text-color); stroke-width: 1; opacity: .55; transform: translateX(calc(var(--w) * var(--i))); }

/* words about the model */
.section { font-weight: 550; margin: 14px 0 6px; }
h2.name { font-size: 1.15rem; font-weight: 600; margin: 0 0 2px; }
.choose { align-items: end; }
.paper { max-width: 62em; overflow-x: auto; border-radius: 0 !important; }
.paper table { font-size: .875rem; display: table !important; border: 0 !important; width: auto; overflow: visible !important; }
.paper .scroll { overflow-x: auto; margin: 8px 0; }
.paper pre, .paper code { white-space: pre-wrap !important; overflow-wrap: anywhere; }
.paper th, .paper td { border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; padding: 5px 14px 5px 0 !important;
  overflow-wrap: normal; word-break: normal; }
.paper .token { color: inherit !important; background: none !important; }
.paper tr { border: 0 !important; }
.paper h1 { font-size: 1.3rem !important; } .paper h2 { font-size: 1.1rem !important; }
.paper img { border-radius: 8px; background: white; max-width: 100%; height: auto; }

@media (max-width: 640px) {
  .scrub { grid-template-columns: minmax(0, 1fr); padding: 12px; }
  .scrub .views { grid-row: auto; gap: 10px; }
  .shots { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .shots.small { grid-template-columns: repeat(4, minmax(0, 1fr)); }
}

/* editing */
.work.even > .column, .work.even > .column:first-child { flex: 1 1 300px; max-width: none; }
.work.even .picture { max-width: 470px; }
.moving { width: 100%; max-width: 450px; aspect-ratio: 1; display: block; border-radius: 14px; margin: 0; }
.moving.pixels { image-rendering: pixelated; }
.moving.empty { background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.frames { display: flex; flex-wrap: wrap; gap: 2px; margin-top: 8px; max-width: 450px; }
.frames img { width: 52px; height: 52px; margin: 0; border-radius: 4px; }

footer { opacity: .85; }
"""
