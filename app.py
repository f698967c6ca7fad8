"""A page to try a captioner in the browser: drop or photograph an image.

    make app                                                   the weights that ship, at http://127.0.0.1:7860
    .venv/bin/python app.py -c last --host 0.0.0.0             a captioner of your own, shown to the network

It needs no data set and asks nothing of the network.  While it runs, uploads are deleted within two hours.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from image_description import answer, load_chosen, refusal
from paths import paths
from support import command_line, interrupts
from support.errors import RunError, UsageError
from support.files import read_json

N_BEST = 4  # the caption and its runners-up
CSS = """
.caption {font-size: 1.5em; padding-top: .7em}
#sheet img {padding-top: 28px}
@media (max-width: 640px) {#sheet .image-frame {display: block; overflow-x: auto}}
@media (max-width: 640px) {#sheet img {min-width: 760px}}
"""
LAUNCH = dict.fromkeys(("share", "ssr_mode", "enable_monitoring", "run_history"), False)
LAUNCH |= {"quiet": True, "prevent_thread_lock": True, "css": CSS, "footer_links": []}
LAUNCH["max_file_size"] = "100mb"  # of an upload; its pixels are limited as for caption.py


def is_of_the_page(place: Path, folders: Sequence[str | Path]) -> bool:
    """Whether a file lies in one of these folders, links followed, be it there or not.

    Whoever reaches the page can write a request by hand, and name any file of this machine in it.
    """
    return any(place.resolve().is_relative_to(Path(folder).resolve()) for folder in folders)


def page(gr, captioner, calibration):
    """The page: gradio's Blocks, one search at a time."""
    credits = read_json(paths["example_images"] / "credits.json", [])[:3]
    links = " · ".join(f"[{number}]({one['page']})" for number, one in enumerate(credits, start=1))
    with gr.Blocks(title="Image captioner", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        gr.Markdown("# Image captioner")
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="filepath", label="Image", height=360, buttons=[])
                if credits:
                    gr.Examples([[str(paths["example_images"] / one["file"])] for one in credits], image)
                    gr.Markdown(f"Example photographs {links}: {credits[0]['license']}, made smaller")
            html = gr.HTML(label="Caption", show_label=True, container=True)
        shown = {"interactive": False, "elem_id": "sheet", "buttons": ["fullscreen", "download"]}
        sheet = gr.Image(label="Where it looked for each word", **shown)
        # Not preprocessed: gradio would open the file itself, by rules of its own.
        looks = {"inputs": image, "outputs": [html, sheet], "preprocess": False, "api_name": "caption"}

        def caption(file):
            if not file:
                return "", None
            if not is_of_the_page(place := Path(file["path"]), (image.GRADIO_CACHE, paths["example_images"])):
                return refusal("only what was uploaded to this page, and its examples, are captioned")
            return answer(captioner, calibration, place)

        image.change(caption, concurrency_limit=1, **looks)
    return demo


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.Parser(description="Show a page that captions images.")
    parser.add_argument("-c", dest="checkpoint", metavar="CKPT", help="default: the weights that ship")
    command_line.add_search_options(parser)
    parser.add_argument("--host", type=command_line.address, default="127.0.0.1", help="0.0.0.0: any")
    parser.add_argument("--port", type=command_line.port, default=7860, help="default: 7860")
    command_line.add_place_options(parser)
    options = parser.parse_args(arguments)
    _, captioner, calibration = load_chosen(options)
    captioner.options = replace(captioner.options, n_best=min(N_BEST, captioner.options.num_beams))
    try:
        import gradio as gr

        demo = page(gr, captioner, calibration)
        demo.launch(server_name=options.host, server_port=options.port, **LAUNCH)
    except ImportError:
        raise UsageError("gradio is missing: `make app` installs it, and starts the page") from None
    except OSError as error:
        raise RunError(f"{options.host}, port {options.port}: {error}") from error
    print(f"{captioner.describe()}\nhttp://{options.host}:{options.port} (Ctrl-C ends it)", flush=True)
    with interrupts.at_once():
        demo.block_thread()


if __name__ == "__main__":
    command_line.run(main)
