"""Makes a trained captioner ready to take away.

    python export.py -c last --checkpoint captioner.pt    a small checkpoint that only captions

The checkpoint loads wherever the training's own does, but no training resumes from it: it has neither
optimizer nor last weights, and the weights it has are float16.  Config, figures of all epochs and the split
stay in it.
"""

from pathlib import Path
from typing import Any

import torch

from captioner import captioner_from_state
from paths import paths_from_options
from support import command_line
from support.errors import UsageError
from support.files import require_place
from training import checkpoints

OF_TRAINING = ("last_weights", "averaged_steps")  # what no captioner needs


def captioning_state(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """What of a captioner's checkpoint captions, and what tells of its training; in float16.

    Args:
        path: the checkpoint, for messages.
        state: what it holds.
    """
    # Through the model, so that weights of other sizes are refused and tied ones stay one matrix.
    model = captioner_from_state(state, torch.device("cpu"), path=path).model.half()
    kept = {part: value for part, value in state.items() if part not in OF_TRAINING}
    return kept | {"model": model.state_dict(), "optimizer": {}, "scaler": {}}


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.Parser(description="Make a trained captioner ready to take away.")
    parser.add_argument(
        "-c", dest="checkpoint", metavar="CKPT", required=True, help="a path, a name, or `last`"
    )
    parser.add_argument(
        "--checkpoint", dest="as_checkpoint", action="store_true", required=True,
        help="write a checkpoint that only captions, in float16, to the file PLACE",
    )  # fmt: skip
    parser.add_argument("place", metavar="PLACE", type=Path, help="what to write")
    command_line.add_place_options(parser)
    options = parser.parse_args(arguments)

    folder = paths_from_options(options)["captioner_checkpoints"]
    path, state = checkpoints.load_named(folder, options.checkpoint, "captioner")
    require_place(options.place)
    if options.place.exists() and options.place.samefile(path):
        raise UsageError(
            f"{options.place} is the checkpoint itself, and training resumes from it: name another"
        )
    checkpoints.save(options.place, captioning_state(path, state))
    print(f"written: {options.place}, {options.place.stat().st_size / 1e6:.1f} MB, from {path}")


if __name__ == "__main__":
    command_line.run(main)
