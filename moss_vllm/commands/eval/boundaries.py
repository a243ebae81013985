"""Test a boundary model, and print F1 at relative distances beside the paper's Table 9.

    python eval/boundaries.py --ckpt runs/boundaries/best --root DATA/Kinetics-GEBD
    accelerate launch --multi_gpu eval/boundaries.py --ckpt ...                     # clips shared out
    python eval/boundaries.py --predictions found.json --root DATA/Kinetics-GEBD    # a file, without a model

Writes to OUT: `answers/` with a line for each clip, `scores.json` with the score of every frame,
`predictions.json` in seconds as the challenge has it, `result.json`, `per_clip.csv`, `page.html` and a
picture of one clip over time. The same command resumes a test that was stopped, also after the checkpoint
moved; with another --threshold it scores the same lines again. A file of predictions, json or pickle, has
seconds, or scores of frames as EfficientGEBD's `model_pred_dict_epoch09.pkl`.
"""

import argparse
import sys
from pathlib import Path

from moss_vllm.boundaries.f1 import F1_RULES
from moss_vllm.boundaries.peaks import PEAK_RULES, THRESHOLDS
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
from moss_vllm.data.boundaries.datasets import BOUNDARY_DATASETS, BoundarySplit, read_boundaries
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import SHARE
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.runtime.spelling import command

OF_A_MODEL = ("videos", "overwrite", "allow_missing")  # flags that only a test with a model reads


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add, yes = parser.add_argument, "store_true"
    add("--ckpt", type=Path, help="folder that recipes/boundaries.py wrote: best or step-NNNNNN")
    add("--predictions", type=Path, help="score this file instead of a checkpoint")
    add("--root", type=Path, help="folder of annotation and clips (default: the checkpoint's)")
    add("--annotation", type=Path, help="the annotation file, or its folder (default: below the root)")
    videos = "folder of clips, or several with ':' between (default: below the root)"
    add("--videos", help=videos)
    data = "dataset (default: the checkpoint's; of a file kinetics_gebd)"
    add("--data", choices=BOUNDARY_DATASETS, help=data)
    add("--subset", help="of the json, to test on (default: the checkpoint's, or validation)")
    add("--out", type=Path, help="folder of the results (default: CKPT-test[-SUBSET]; of a file none)")
    add("--overwrite", action=yes, help="drop the lines in --out and start again")
    add("--allow-missing", action=yes, help="test without clips that are not there; they count as missed")
    threshold = "score from which a frame is a boundary (default: the run's; of a file 0.3, for tapos 0.2)"
    add("--threshold", type=SHARE, help=threshold)
    peaks = "which frame of an even run is its middle (default: efficientgebd)"
    add("--peaks", choices=PEAK_RULES, help=peaks)
    rule = "of F1; all but official as in the tables of their authors"
    add("--rule", choices=tuple(F1_RULES), default="official", help=rule)
    add_reading(parser, "clips")
    return parser


if is_starting(__name__):
    answer_help(options)

from moss_vllm.boundaries.predictions import FrameScores, as_boundaries, read_entries
from moss_vllm.boundaries.scores import (
    BoundaryScores,
    save_boundary_scores,
    score_boundaries,
    score_table,
    score_test,
    tell_peaks,
)
from moss_vllm.data.world.boundaries import BOUNDARIES_ROOT

MINI_DATA = "mini"


@errors_in_one_line()
def main(argv: list[str] | None = None) -> BoundaryScores | None:
    """Test; a wrong argument or file ends it with one line and status 1. None if clips are left."""
    parser = options()
    args = parser.parse_args(argv)
    check_subject(parser, args, OF_A_MODEL)
    check_places(parser, args)
    if args.predictions:
        return score_file(args, sys.argv[1:] if argv is None else argv)
    return test_checkpoint(args)


def score_file(args: argparse.Namespace, words: list[str]) -> BoundaryScores:
    """Score a file of predictions; no model or clip is loaded.

    Args:
        words: of the command line.
    """
    data = args.data or "kinetics_gebd"
    root = args.root or (args.annotation.parent if args.annotation else None)
    if root is None and data != MINI_DATA:
        raise ValueError("give --root, the folder of the annotation, or --annotation")
    split = read_boundaries(
        data,
        root or BOUNDARIES_ROOT,
        "test",
        annotation=args.annotation,
        subset=args.subset,
        find_videos=False,
    )
    tell_split(split)
    entries = read_entries(args.predictions)
    threshold, peaks = args.threshold, args.peaks or PEAK_RULES[0]
    if any(isinstance(one, FrameScores) for one in entries.values()):
        threshold = THRESHOLDS[split.dataset] if threshold is None else threshold
    elif args.peaks:
        raise ValueError(
            f"{args.predictions} has boundaries in seconds, which --peaks does not change; leave it out"
        )
    found = as_boundaries(entries, split, str(args.predictions), threshold=threshold, rule=peaks)
    scores = score_boundaries(split, found, rule=args.rule)
    if threshold is not None:
        scores = tell_peaks(scores, threshold, peaks)
    if args.out:
        about = {"data": data, "predictions": str(args.predictions.absolute())}
        about |= {"threshold": threshold, "peaks": peaks} if threshold is not None else {}
        save_boundary_scores(scores, split, args.out, about)
    Screen().print(score_table(args.predictions.stem, scores, data))
    if args.out:
        show_views(args.out, split)
    else:
        say("for a page and pictures:", command("eval/boundaries.py", *words, "--out", args.predictions.stem))
    return scores


def test_checkpoint(args: argparse.Namespace) -> BoundaryScores | None:
    """Test this process's share of the clips; the last process scores them all."""
    from moss_vllm.boundaries import checkpoint
    from moss_vllm.boundaries.settings import open_split
    from moss_vllm.boundaries.testing import find_boundaries
    from moss_vllm.runtime.precision import AUTOCAST
    from moss_vllm.video.cache import choose_frame_reader

    shard, place = choose_place(args)
    loaded = checkpoint.load(args.ckpt, device=place)
    run = loaded.run
    where = choose_data(args, run)
    split = open_split(where, "test")
    tell_split(split)
    threshold = run["settings"].get("threshold") if args.threshold is None else args.threshold
    threshold = THRESHOLDS[split.dataset] if threshold is None else threshold
    header = describe_checkpoint(args, loaded)
    which = f"-{args.subset}" if args.subset else ""
    out = args.out or args.ckpt.parent / f"{args.ckpt.name}-test{which}"
    pending = find_boundaries(
        loaded.model,
        split,
        loaded.clips,
        out,
        header=header,
        workers=args.workers,
        device=place,
        dtype=AUTOCAST[args.precision],
        shard=shard,
        read=choose_frame_reader(args.cache, args.cache_gib, args.decoder),
        overwrite=args.overwrite,
    )
    if pending:
        say(f"{pending:,} clips are left to other processes; the last process writes the scores")
        return None
    about = {"checkpoint": header["checkpoint"], "data": where.data, "step": run["step"]}
    peaks = args.peaks or PEAK_RULES[0]
    scores = score_test(out, split, about, threshold=threshold, peaks=peaks, rule=args.rule)
    Screen().print(score_table(f"step {run['step']}", scores, where.data))
    show_views(out, split)
    return scores


def show_views(out: Path, split: BoundarySplit) -> None:
    """Write the page and the picture of one clip; print where they lie, and what may follow."""
    from moss_vllm.report.boundary_page import write_views

    page, picture = write_views(out)
    say(f"written to {out}: {page.name}, and {picture.name}, the clip with most mistakes; any other clip:")
    others = (video.video_id for video in split.annotated if video.video_id not in picture.name)
    say(command("scripts/timeline.py", out, "--video", next(others, split.annotated[0].video_id)))
    if (out / "scores.json").is_file():
        where = {"--data": split.arguments["data"], "--root": split.arguments["root"]}
        where |= {f"--{name}": split.arguments[name] for name in ("annotation", "subset")}
        words = [word for flag, value in where.items() if value for word in (flag, value)]
        say("another threshold, without a model:")
        say(command("eval/boundaries.py", "--predictions", out / "scores.json", *words, "--threshold", 0.5))
