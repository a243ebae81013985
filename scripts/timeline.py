"""Draw one video of a detection test over time: what happens in it, and what was found.

    python scripts/timeline.py runs/detection/test --video video_test_0000004
    python scripts/timeline.py found.json --root DATA/thumos-14 --video video_test_0000004 --out found.png

RESULT is the folder of a test, which eval/detection.py or recipes/detection.py (OUT/test) wrote, or a file of
predictions in OpenTAD's format. A lane for each class has its actions above, hollow where they were missed,
and its detections below, green where they are right at a temporal IoU of 0.5, the darker the higher their
score. Drawn are each class's best detections, as many in the whole test as it has actions, three times over.
scripts/report.py makes a page of all videos.
"""

from pathlib import Path

from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.flags import Flags, answer_help
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
    add("--data", help="how they are laid out: thumos14 or json (default: as tested, or thumos14)")
    return parser


if __name__ == "__main__":
    answer_help(options)

from moss_vllm.data.detection.datasets import DetectionVideo
from moss_vllm.detection.average_precision import TIOU_THRESHOLDS
from moss_vllm.report.detection_files import read_test
from moss_vllm.report.timeline import draw_as_png, lay_out
from moss_vllm.runtime.files import refuse_unwritable
from moss_vllm.video.clip import Clip, Sampling, read_clip
from moss_vllm.video.frames import BadVideo

FRAMES, SHORT_SIDE_PX = 9, 168


@errors_in_one_line("nothing is written")
def main(argv: list[str] | None = None) -> Path:
    """Draw; returns the file."""
    args = options().parse_args(argv)
    test = read_test(args.result, data=args.data, root=args.root, annotation=args.annotation)
    video = test.video(args.video)
    out = args.out or test.folder / f"timeline_{video.video_id}.png"
    refuse_unwritable(out.parent, "the folder of --out,")
    timeline = lay_out(video, test.split.classes, test.match(), TIOU_THRESHOLDS)
    strip, without = read_strip(video)
    told = f"{video.video_id}: {timeline.describe()}"
    draw_as_png(timeline, out, title=told, strip=strip)
    say(f"{told}{without}; written to {out}")
    return out


def read_strip(video: DetectionVideo) -> tuple[Clip | None, str]:
    """Frames spread over the video; or none, and why."""
    if not video.path:
        return None, "; without frames, as the video is not there"
    try:
        sampling = Sampling(FRAMES / max(video.duration_s, 1.0), SHORT_SIDE_PX, FRAMES)
        return read_clip(video.path, sampling), ""
    except (BadVideo, OSError) as error:
        return None, f"; without frames: {error}"


if __name__ == "__main__":
    main()
