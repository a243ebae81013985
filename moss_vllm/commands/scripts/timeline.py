"""Draw one video of a test over time: what happens in it, and what was found.

    python scripts/timeline.py runs/detection/test --video video_test_0000004
    python scripts/timeline.py found.json --root DATA/thumos-14 --video video_test_0000004 --out found.png
    python scripts/timeline.py runs/boundaries/test --video tdpHu69TU5w
    python scripts/timeline.py scores.json --root DATA/Kinetics-GEBD --video tdpHu69TU5w --threshold 0.5

RESULT is the folder of a test, which a script in recipes/ or eval/ wrote (OUT/test), or a file of
predictions.

Of a detector, each class has a lane: its actions above, hollow where they were missed, and its detections
below, green where they are right at a temporal IoU of 0.5, the darker the higher their score. Drawn are each
class's best detections, as many in the whole test as it has actions, three times over.

Of a boundary model, the score of each frame is drawn as a curve, with a line at each boundary that was found,
green where it is right at 0.05 of the clip, above a row of each rater's boundaries, hollow where they were
missed. scripts/report.py makes a page of all videos.
"""

from pathlib import Path
from typing import Any

from moss_vllm.commands import is_starting
from moss_vllm.data.boundaries.datasets import BOUNDARY_DATASETS
from moss_vllm.data.detection.datasets import DETECTION_DATASETS
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import SHARE
from moss_vllm.runtime.screen import say


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    add("result", type=Path, metavar="RESULT", help="folder of a test, or a file of predictions")
    add("--video", required=True, metavar="ID", help="the video's id in the annotation")
    add("--out", type=Path, metavar="PNG", help="default: timeline_ID.png beside the predictions")
    add("--root", type=Path, help="folder of videos and annotation (default: those that were tested)")
    add("--annotation", type=Path, help="the annotation file, or its folder (default: below the root)")
    data = "how they are laid out (default: as tested; of a file thumos14 or kinetics_gebd, by its form)"
    add("--data", choices=sorted({*DETECTION_DATASETS, *BOUNDARY_DATASETS}), help=data)
    threshold = "score from which a frame is a boundary (default: as tested; of a file 0.3, for tapos 0.2)"
    add("--threshold", type=SHARE, help=threshold)
    return parser


if is_starting(__name__):
    answer_help(options)

from moss_vllm.detection.average_precision import TIOU_THRESHOLDS
from moss_vllm.report.boundary_files import holds_boundaries, read_boundary_test
from moss_vllm.report.boundary_page import draw_clip
from moss_vllm.report.detection_files import read_test
from moss_vllm.report.strips import read_spread
from moss_vllm.report.timeline import draw_as_png, lay_out_video, picture_of
from moss_vllm.runtime.files import refuse_unwritable


@errors_in_one_line("nothing is written")
def main(argv: list[str] | None = None) -> Path:
    """Draw; returns the file."""
    parser = options()
    args = parser.parse_args(argv)
    where = {"data": args.data, "root": args.root, "annotation": args.annotation}
    if holds_boundaries(args.result):
        test = read_boundary_test(args.result, threshold=args.threshold, **where)
        out, told = draw_clip(test, test.video(args.video), args.out)
    elif args.threshold is not None:
        parser.error(f"--threshold is for scores of a boundary model; {args.result} has none, leave it out")
    else:
        out, told = _draw_detections(args.result, args.video, args.out, where)
    say(f"{told}; written to {out}")
    return out


def _draw_detections(
    result: Path, video_id: str, out: Path | None, where: dict[str, Any]
) -> tuple[Path, str]:
    """The file, and what was drawn in words."""
    test = read_test(result, **where)
    video = test.video(video_id)
    out = out or picture_of(video.video_id, test.folder)
    refuse_unwritable(out.parent, "the folder of --out,")
    timeline = lay_out_video(video, test.split.classes, test.match(), TIOU_THRESHOLDS)
    strip, without = read_spread(video.path, video.duration_s)
    told = f"{video.video_id}: {timeline.describe()}"
    draw_as_png(timeline, out, title=told, strip=strip)
    return out, told + without
