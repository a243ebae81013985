"""Test a video classifier from several views, and print top-1, top-5 and the mean over classes.

    python eval/action_recog.py --ckpt runs/action_recog/best                         # the miniature
    python eval/action_recog.py --ckpt runs/ssv2/best --root DATA/ssv2 --clips 2 --crops 3
    accelerate launch --multi_gpu eval/action_recog.py --ckpt ...                     # clips shared out

The views are the checkpoint's, except for those named here; a clip's scores are the mean of its views'
softmax (the paper: 2 clips x 3 crops, Kinetics-400 4 x 3). Writes to OUT: `answers/` with a line for each
clip and its five likeliest classes, `result.json` and `per_class.csv`. The same command resumes a test that
was stopped, also after the checkpoint moved; scripts/action_groups.py compares two folders.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from moss_vllm.commands import is_starting
from moss_vllm.commands.model_tests import add_reading, check_places, choose_place, describe_checkpoint
from moss_vllm.data.actions.datasets import DATASETS
from moss_vllm.recognition.frame_choice import SAMPLINGS
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import FROM_ONE
from moss_vllm.runtime.screen import say


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add, yes = parser.add_argument, "store_true"
    add(
        "--ckpt",
        type=Path,
        required=True,
        help="folder that recipes/action_recog.py wrote: best or step-NNNNNN",
    )
    add("--root", type=Path, help="folder of the videos (default: the checkpoint's)")
    add("--annotation", type=Path, help="folder of the annotation files (default: that of the videos)")
    add("--data", choices=(*DATASETS, "mini"), help="dataset (default: the checkpoint's)")
    add("--weights", help="the image encoder's weights, if they moved: a .safetensors file")
    add("--out", type=Path, help="folder of the results (default: CKPT-test-CLIPSxCROPS)")
    add("--overwrite", action="store_true", help="drop the lines in --out and start again")
    add("--allow-missing", action=yes, help="leave out clips without a video, and print their number")
    add("--frames", type=FROM_ONE, help="frames per clip (default: the checkpoint's, as for the next three)")
    add("--sampling", choices=SAMPLINGS, help="which frames")
    add("--clips", type=FROM_ONE, help="clips per video, each in CROPS views")
    add("--crops", type=int, choices=(1, 3), help="the centre, or left, right and centre")
    add("--batch-size", type=FROM_ONE, default=8, help="videos at once")
    add_reading(parser, "videos")
    add(
        "--encoder-precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="of a frozen encoder; auto: bf16 or fp16 on a GPU that is fast at it, else as --precision",
    )
    return parser


def check(parser: Flags, args: argparse.Namespace) -> None:
    """Refuse what cannot be, before a model is opened."""
    check_places(parser, args)


if is_starting(__name__):
    answer_help(options, check)


import torch

from moss_vllm.recognition import checkpoint
from moss_vllm.recognition.scores import Accuracy, save_accuracy
from moss_vllm.recognition.settings import choose_views, open_split
from moss_vllm.recognition.testing import score_clips
from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.video.cache import choose_frame_reader

VIEWS = ("frames", "sampling", "clips", "crops")


@errors_in_one_line()
def main(argv: list[str] | None = None) -> Accuracy:
    """Test; a wrong argument or file ends it with one line and status 1."""
    parser = options()
    args = parser.parse_args(argv)
    check(parser, args)
    shard, place = choose_place(args)
    loaded = checkpoint.load(args.ckpt, weights=args.weights, device=place)
    loaded.model.set_encoder_precision(args.encoder_precision, torch.device(place))
    data, settings = args.data or loaded.run["data"], loaded.run["settings"]
    root, annotation = args.root or settings["root"], args.annotation or settings["annotation"]
    split = open_split(data, root, "test", annotation=annotation, allow_missing=args.allow_missing)
    if split.classes != loaded.classes:
        raise ValueError(
            f"{args.ckpt} knows {len(loaded.classes)} classes and {data} has {len(split.classes)}, or "
            "others; test it on the dataset it was trained on"
        )
    changes = {name: loaded.run["views"][name] for name in (*VIEWS, "size_px")}
    changes["frames"] //= loaded.model.frames_per_encoded
    changes |= {name: value for name in VIEWS if (value := getattr(args, name)) is not None}
    views = choose_views(data, loaded.run["protocol"], loaded.run["model"]["variant"], changes, loaded.model)
    out = args.out or args.ckpt.parent / f"{args.ckpt.name}-test-{views.clips}x{views.crops}"
    say(split.report(), file=sys.stderr)
    labels = json.dumps([[clip.clip_id, clip.label] for clip in split.clips])
    header = describe_checkpoint(args, loaded)
    header["data"] = hashlib.sha256(labels.encode()).hexdigest()[:16]
    accuracy = score_clips(
        loaded.model,
        split,
        views,
        out,
        header=header,
        batch_size=args.batch_size,
        workers=args.workers,
        device=place,
        dtype=AUTOCAST[args.precision],
        shard=shard,
        read=choose_frame_reader(args.cache, args.cache_gib, args.decoder),
        overwrite=args.overwrite,
    )
    if accuracy.pending:
        say(f"{accuracy.pending:,} clips are left to other processes; the last process writes the scores")
        return accuracy
    shown = f"{views.clips} clips x {views.crops} crops of {views.frames} frames"
    save_accuracy(accuracy, out, {"data": data, "step": loaded.run["step"], "views": shown})
    say(f"{data}, {shown}: {accuracy}; written to {out}")
    return accuracy
