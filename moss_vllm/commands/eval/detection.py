"""Test a detector on whole videos, and print mAP at temporal IoU beside the paper's Table 8.

    python eval/detection.py --ckpt runs/detection/best --root DATA/thumos-14
    accelerate launch --multi_gpu eval/detection.py --ckpt ...                  # videos shared out
    python eval/detection.py --predictions found.json --root DATA/thumos-14     # a file, without a model

Writes to OUT: `answers/` with a line for each video, `predictions.json` as OpenTAD and ActivityNet have it,
`result.json` and `per_class.csv`. Tested are the moving averages of the weights, as AdaTAD does. The same
command resumes a test that was stopped, also after the checkpoint moved.
"""

import argparse
import os
import sys
from pathlib import Path

from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import refuse_unwritable
from moss_vllm.runtime.flags import PRECISIONS, Flags, answer_help, choose_device, refuse_unwritable_out
from moss_vllm.runtime.line_store import Shard
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.video.decoders import DECODERS


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
    add("--data", help="thumos14, json or mini (default: the checkpoint's; of a file thumos14)")
    add("--subset", help="of the json, to test on (default: the checkpoint's, or validation)")
    add("--out", type=Path, help="folder of the results (default: CKPT-test[-last][-SUBSET]; of a file none)")
    add("--overwrite", action=yes, help="drop the lines in --out and start again")
    add("--allow-missing", action=yes, help="leave out videos that are not there, and print their number")
    add("--variant", help="b or l, of Table 8's rows to print beside (default: the checkpoint's)")
    add("--weights", help="the video encoder's weights, if they moved: a .safetensors file or a folder")
    add("--no-average", action=yes, help="test the weights of the last step, not their moving average")
    add("--batch-size", type=int, default=1, help="windows of a video at once (default: %(default)s)")
    add("--workers", type=int, default=2, help="processes that read videos (default: %(default)s)")
    add("--cache", type=Path, help="folder of decoded frames, read and filled")
    add("--cache-gib", type=float, help="add to --cache up to this size (default: no limit)")
    add("--decoder", choices=DECODERS, default="auto", help="what reads video files; auto is PyAV")
    add("--device", help="a device of torch, such as cuda:1 or cpu (default: a GPU where there is one)")
    add("--precision", choices=PRECISIONS, default="fp32", help="number format of the arithmetic")
    return parser


if __name__ == "__main__":
    answer_help(options)

from moss_vllm.data.detection.datasets import DetectionSplit, read_detection
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

WHERE = ("data", "root", "annotation", "videos", "subset")
OF_A_MODEL = "videos overwrite allow_missing weights no_average batch_size workers".split()
OF_A_MODEL += "cache cache_gib decoder device precision".split()


@errors_in_one_line()
def main(argv: list[str] | None = None) -> DetectionScores | None:
    """Test; a wrong argument or file ends it with one line and status 1. None if videos are left."""
    parser = options()
    args = parser.parse_args(argv)
    if (args.ckpt is None) == (args.predictions is None):
        parser.error("give --ckpt, to test a checkpoint, or --predictions, to score a file")
    if args.predictions:
        parser.refuse_given(OF_A_MODEL, "with --predictions, which is scored without a model")
    if args.batch_size < 1 or args.workers < 0:
        parser.error("--batch-size takes 1 or more, --workers 0 or more")
    if args.cache_gib is not None and args.cache is None:
        parser.error("--cache-gib limits what is added to --cache, which is not given; leave it out")
    if args.variant not in (None, *PAPER_TABLE_8):
        parser.error(f"--variant is {args.variant!r}; Table 8 has {', '.join(PAPER_TABLE_8)}")
    if args.ckpt or args.out:
        refuse_unwritable_out(args.out, args.ckpt.parent if args.ckpt else Path())
    if args.cache:
        refuse_unwritable(args.cache, "--cache")
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
    tell(split)
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
    from moss_vllm.runtime.provenance import describe_environment
    from moss_vllm.training.average import tell_young
    from moss_vllm.video.cache import choose_frame_reader

    choose_device(args)
    shard, place = Shard.from_environment(), args.device
    if shard.processes > 1 and args.device == "cuda":
        place = f"cuda:{os.environ['LOCAL_RANK']}"
    average = not args.no_average
    loaded = checkpoint.load(args.ckpt, weights=args.weights, device=place, average=average)
    run = loaded.run
    if missing := [name for name in ("settings", "step", "command") if name not in run]:
        raise ValueError(f"{args.ckpt}: its record has no {', '.join(missing)}; use a whole checkpoint")
    given = {name: value for name in WHERE if (value := getattr(args, name)) is not None}
    where = {**run["settings"], "data": run["data"], "allow_missing": args.allow_missing}
    where |= {"annotation": None, "videos": None} if args.root else {}  # those of the other root
    split = open_split(argparse.Namespace(**where | given), "test")
    tell(split)
    if split.classes != loaded.classes:
        raise ValueError(
            f"{args.ckpt} knows {len(loaded.classes)} classes and {split.file} has {len(split.classes)}, or "
            "others; test it on the dataset it was trained on"
        )
    weights = "average" if average else "last"
    header = {
        "checkpoint": str(args.ckpt.absolute()),
        "model_settings": loaded.settings_digest(),
        "environment": describe_environment(loaded.model),
        "run": {"step": run["step"], "command": run["command"]},
    }
    header |= {} if args.decoder in ("auto", "pyav") else {"decoder": args.decoder}  # others differ in pixels
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


def tell(split: DetectionSplit) -> None:
    """Print what was read, and what is odd about it."""
    say(split.report(), *split.notes, sep="\n", file=sys.stderr)


def show(name: str, scores: DetectionScores, split: DetectionSplit, variant: str | None) -> None:
    """Print the scores, by class too, below the paper's where it has this variant."""
    screen = Screen()
    screen.print(class_table(scores, split.classes))
    screen.print(score_table(name, scores, variant=variant if variant in PAPER_TABLE_8 else None))


if __name__ == "__main__":
    main()
