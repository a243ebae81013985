"""Test a detector on whole videos, and print mAP at temporal IoU beside the paper's Table 8.

    python eval/detection.py --ckpt runs/detection/best --root DATA/thumos-14
    accelerate launch --multi_gpu eval/detection.py --ckpt ...                  # videos shared out
    python eval/detection.py --predictions found.json --root DATA/thumos-14     # a file, without a model

Writes to OUT: `answers/` with a line for each video, `predictions.json` as OpenTAD and ActivityNet have it,
`result.json` and `per_class.csv`. Tested are the moving averages of the weights, as AdaTAD does. The same
command resumes a test that was stopped, also after the checkpoint moved.
"""

import argparse
import sys
from pathlib import Path

from moss_vllm.commands import is_starting
from moss_vllm.commands.model_tests import (
    add_reading,
    check_places,
    check_subject,
    choose_data,
    choose_place,
    describe_checkpoint,
    tell_split,
)
from moss_vllm.data.detection.datasets import DETECTION_DATASETS, DetectionSplit, read_detection
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import FROM_ONE
from moss_vllm.runtime.screen import Screen, say


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add, yes = parser.add_argument, "store_true"
    add("--ckpt", type=Path, help="folder that recipes/detection.py wrote: best or step-NNNNNN")
    add("--predictions", type=Path, help="score this file instead of a checkpoint")
    add("--root", type=Path, help="folder of annotation and videos (default: the checkpoint's)")
    add("--annotation", type=Path, help="the json, or its folder (default: below the root)")
    videos = "folder of videos or folders of frames, or several with ':' between (default: below the root)"
    add("--videos", help=videos)
    add("--data", choices=DETECTION_DATASETS, help="dataset (default: the checkpoint's; of a file thumos14)")
    add("--subset", help="of the json, to test on (default: the checkpoint's, or validation)")
    add("--out", type=Path, help="folder of the results (default: CKPT-test[-last][-SUBSET]; of a file none)")
    add("--overwrite", action=yes, help="drop the lines in --out and start again")
    add("--allow-missing", action=yes, help="leave out videos that are not there, and print their number")
    add("--variant", choices=("b", "l"), help="Table 8's rows to print beside (default: the checkpoint's)")
    add("--weights", help="the video encoder's weights, if they moved: a .safetensors file or a folder")
    add("--no-average", action=yes, help="test the weights of the last step, not their moving average")
    add("--batch-size", type=FROM_ONE, default=1, help="windows of a video at once")
    add_reading(parser, "videos")
    return parser


if is_starting(__name__):
    answer_help(options)

from moss_vllm.detection.predictions import read_predictions
from moss_vllm.detection.scores import (
    PAPER_TABLE_8,
    DetectionScores,
    class_table,
    save_detection_scores,
    score_detections,
    score_table,
    score_test,
)

MINI_DATA = "mini"  # as in `detection.settings`, which needs torch
OF_A_MODEL = "videos overwrite allow_missing weights no_average batch_size".split()


@errors_in_one_line()
def main(argv: list[str] | None = None) -> DetectionScores | None:
    """Test; a wrong argument or file ends it with one line and status 1. None if videos are left."""
    parser = options()
    args = parser.parse_args(argv)
    check_subject(parser, args, OF_A_MODEL)
    check_places(parser, args)
    return score_file(args) if args.predictions else test_checkpoint(args)


def score_file(args: argparse.Namespace) -> DetectionScores:
    """Score a file of predictions; no model, video or torch is loaded."""
    if args.root is None and args.annotation is None:
        raise ValueError("give --root, the folder of the annotation, or --annotation")
    split = read_detection(
        args.data or "thumos14",
        args.root or args.annotation.parent,
        "test",
        annotation=args.annotation,
        subset=args.subset,
        find_videos=False,
    )
    tell_split(split)
    names = [video.video_id for video in split.videos]
    scores = score_detections(split, read_predictions(args.predictions, split.classes, names))
    if args.out:
        about = {"data": split.dataset, "predictions": str(args.predictions.absolute())}
        save_detection_scores(scores, split, args.out, about)
    show(args.predictions.stem, scores, split, args.variant)
    if args.out:
        say(f"written to {args.out}")
    return scores


def test_checkpoint(args: argparse.Namespace) -> DetectionScores | None:
    """Test this process's share of the videos; the last process scores them all."""
    from moss_vllm.detection import checkpoint
    from moss_vllm.detection.pixels import PixelSettings
    from moss_vllm.detection.settings import open_split
    from moss_vllm.detection.testing import detect_videos
    from moss_vllm.detection.windows import WindowSettings
    from moss_vllm.runtime.precision import AUTOCAST
    from moss_vllm.training.average import tell_young
    from moss_vllm.video.cache import choose_frame_reader

    shard, place = choose_place(args)
    average = not args.no_average
    loaded = checkpoint.load(args.ckpt, weights=args.weights, device=place, average=average)
    run = loaded.run
    split = open_split(choose_data(args, run), "test")
    tell_split(split)
    if split.classes != loaded.classes:
        raise ValueError(
            f"{args.ckpt} knows {len(loaded.classes)} classes and {split.file} has {len(split.classes)}, or "
            "others; test it on the dataset it was trained on"
        )
    weights = "average" if average else "last"
    header = describe_checkpoint(args, loaded)
    which = ("" if average else "-last") + (f"-{args.subset}" if args.subset else "")
    out = args.out or args.ckpt.parent / f"{args.ckpt.name}-test{which}"
    pending = detect_videos(
        loaded.model,
        split,
        WindowSettings(**run["windows"]),
        PixelSettings(**run["pixels"]),
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
    if pending:
        say(f"{pending:,} videos are left to other processes; the last process writes the scores")
        return None
    variant = args.variant or (run["model"]["variant"] if split.dataset == "thumos14" else None)
    about = {
        "checkpoint": header["checkpoint"],
        "variant": variant,
        "data": split.dataset,
        "step": run["step"],
        "weights": weights,
        "size_px": run["pixels"]["size_px"],
    }
    scores = score_test(out, split, about)
    decay = run["settings"].get("ema_decay")
    if average and isinstance(decay, float) and (young := tell_young(decay, run["step"])):
        say(young, file=sys.stderr)
    show(f"step {run['step']}, {weights} weights", scores, split, variant)
    say(f"written to {out}")
    return scores


def show(name: str, scores: DetectionScores, split: DetectionSplit, variant: str | None) -> None:
    """Print the scores, by class too, below the paper's where it has this variant."""
    screen = Screen()
    screen.print(class_table(scores, split.classes))
    comparable = variant in PAPER_TABLE_8 and split.dataset != MINI_DATA
    screen.print(score_table(name, scores, variant=variant if comparable else None))
