"""What a 16-bit image encoder changes: the tokens that a ladder taps, and the scores of a trained one.

    python experiments/encoder_precision.py                            # 10 minutes on two cores
    python experiments/encoder_precision.py --seeds 1 --epochs 1       # a try

Trains the miniature's ladder beside its float32 encoder, as the recipe does, over several seeds. Its best
checkpoint is then tested with the encoder in each number format, the ladder in float32. Shown are top-1, the
share of clips with another likeliest class than in float32, and the error of the tapped tokens relative to
their norm, also that of a CLIP ViT-B/16 with random weights on noise.
"""

import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import FROM_ONE
from moss_vllm.runtime.screen import Screen, say

RESULTS = Path("benchmarks/results/encoder-precision.json")


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("--seeds", type=FROM_ONE, default=3, help="trainings, from seed 0")
    parser.add_argument("--epochs", type=FROM_ONE, default=4, help="of each training")
    parser.add_argument("--cache", type=Path, help="folder of decoded clips, read and filled")
    parser.add_argument("--json", type=Path, default=RESULTS, help="the results")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
from measuring import load_recipe, prepare_json, write_json
from torch import Tensor

from moss_vllm.encoders.image import open_encoder
from moss_vllm.recognition import checkpoint
from moss_vllm.recognition.batches import ActionTestSet
from moss_vllm.recognition.settings import choose_views, open_split
from moss_vllm.recognition.testing import score_clips
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.precision import DTYPES
from moss_vllm.runtime.tables import Table, mean_and_spread
from moss_vllm.runtime.versions import versions
from moss_vllm.video.cache import choose_frame_reader

RECIPE = Path(__file__).parent.parent / "recipes" / "action_recog.py"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, test, print and write the json; returns its content."""
    parser = options()
    args = parser.parse_args(argv)
    prepare_json(parser, args.json)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            say(f"seed {seed}, {seed + 1} of {args.seeds}", flush=True)
            found.append(train_and_test(Path(folder) / str(seed), seed, args))
    rows = {name: {"test": mean_and_spread([one[name] for one in found])} for name in DTYPES}
    clip = open_encoder("clip_b16", layers=(2, 4, 6, 8, 10, 12), weights="random")
    torch.manual_seed(0)
    noise = torch.randn(2, 3, 224, 224)
    for name in DTYPES:
        rows[name]["CLIP ViT-B/16"] = {"error (%)": round(token_error(clip, noise, name), 3)}
    columns = {"test": list(found[0]["fp32"]), "CLIP ViT-B/16": ["error (%)"]}
    notes = [f"± is the sample sd over {args.seeds} seeds; the encoder alone is in the format of the row"]
    console = Screen(width=130)
    console.print(Table("the frozen encoder's number format", columns, rows, notes))
    record = {
        "command": shlex.join(
            ["python", "experiments/encoder_precision.py", *(sys.argv[1:] if argv is None else argv)]
        ),
        "versions": versions(),
        "seeds": found,
        "clip_b16_error_percent": {name: rows[name]["CLIP ViT-B/16"]["error (%)"] for name in DTYPES},
    }
    write_json(args.json, record, console)
    return record


def train_and_test(folder: Path, seed: int, args: Any) -> dict[str, dict[str, float]]:
    """Top-1, changed answers and error of tokens by number format, all in percent."""
    words = ["--seed", str(seed), "--epochs", str(args.epochs), "--out", str(folder), "--tracker", "none"]
    words += ["--encoder-precision", "fp32", *(["--cache", str(args.cache)] if args.cache else [])]
    load_recipe(RECIPE).main(words)
    loaded = checkpoint.load(folder / "best")
    split, model = open_split("mini", None, "test"), loaded.model
    views = choose_views("mini", loaded.run["protocol"], loaded.run["model"]["variant"], {}, model)
    read = choose_frame_reader(str(args.cache) if args.cache else None, None, "auto")
    few: Any = [ActionTestSet(split, views, read=read)[index][1] for index in range(8)]
    found: dict[str, dict[str, float]] = {}
    outputs: dict[str, list[str]] = {}
    for name in DTYPES:
        model.set_encoder_precision(name, torch.device("cpu"))
        accuracy = score_clips(model, split, views, folder / name, header={"checkpoint": "best"}, read=read)
        outputs[name] = [row["output"] for row in accuracy.rows]
        changed = [one != other for one, other in zip(outputs[name], outputs["fp32"], strict=True)]
        found[name] = {
            "top-1 (%)": accuracy.top1,
            "changed (%)": 100 * statistics.fmean(changed),
            "error (%)": token_error(model.encoder, torch.cat(few).flatten(0, 1), name),
        }
    return found


@torch.no_grad()
def token_error(encoder: Any, frames: Tensor, name: str) -> float:
    """Norm of the change of all tapped tokens relative to their norm in float32, in percent."""
    taps = {}
    for dtype in ("fp32", name):
        encoder.dtype = DTYPES[dtype]
        taps[dtype] = torch.stack(encoder(frames))
    return float(100 * (taps[name] - taps["fp32"]).norm() / taps["fp32"].norm())


if __name__ == "__main__":
    with errors_in_one_line():
        main()
