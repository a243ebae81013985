"""One HTML page of a training run, an evaluation, a detector's or boundary model's test, or of several runs.

    python scripts/report.py runs/favor_lora                      # curves, answers over time, settings
    python scripts/report.py runs/eval/motionbench/favor_lora     # scores, choices, every question
    python scripts/report.py runs/detection/test                  # scores, classes, every video over time
    python scripts/report.py runs/boundaries/test                 # scores, and clips over time
    python scripts/report.py runs/a runs/b runs/eval/motionbench/*   # runs and evaluations side by side
    python scripts/report.py FOLDER --out report.html             # instead of FOLDER/page.html

The page needs no other file and no network: open it in a browser, or send it by mail. A run that is under
way or was killed is shown up to its last step; the page names files that are missing or cannot be read.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from moss_vllm.commands import is_starting
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import FROM_ZERO
from moss_vllm.runtime.screen import say


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    folder_help = "the --out of a script in recipes/ or eval/; several come side by side on one page"
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help=folder_help)
    out = "the .html file to write (default: FOLDER/page.html; of several, side-by-side.html above them)"
    parser.add_argument("--out", type=Path, help=out)
    strips = "show frames of N videos, what went wrong first; 0 shows none (default: 200, at most 10 MB)"
    parser.add_argument("--strips", type=FROM_ZERO, metavar="N", help=strips)
    return parser


if is_starting(__name__):
    answer_help(options)

from moss_vllm.report.boundary_files import holds_boundaries, read_boundary_test
from moss_vllm.report.detection_files import holds_detections, read_test
from moss_vllm.report.html import choose_file, write_page
from moss_vllm.report.run_files import read_run_files
from moss_vllm.runtime.line_store import holds_answers


@errors_in_one_line("nothing is written")
def main(argv: list[str] | None = None) -> Path:
    """Write the page; returns its file."""
    args = options().parse_args(argv)
    folders, out = [folder.expanduser() for folder in args.folders], args.out and args.out.expanduser()
    if len(folders) > 1:
        out = _page_of_several(folders, out, args.strips)
    else:
        make = _page_of_answers if holds_answers(folders[0]) else _page_of_a_run
        make = _page_of_detections if holds_detections(folders[0]) else make
        make = _page_of_boundaries if holds_boundaries(folders[0]) else make
        out = make(folders[0], out, args.strips)
    say(f"{out} is written ({out.stat().st_size / 1e3:,.0f} kB); open it in a browser")
    return out


def _page_of_a_run(folder: Path, out: Path | None, strips: int | None) -> Path:
    from moss_vllm.report.run_page import run_page

    run = read_run_files(folder)
    if strips is not None:
        raise ValueError(f"--strips is for the answers of an evaluation; {folder} holds a training run")
    out = choose_file(folder, out)
    write_page(run_page(run), out)
    return out


def _page_of_several(folders: Sequence[Path], out: Path | None, strips: int | None) -> Path:
    from moss_vllm.report.runs_page import SIDE_BY_SIDE, runs_page

    for folder in folders:
        if holds_detections(folder) or holds_boundaries(folder):
            told = "side by side are training runs, and evaluations of a Video-LLM"
            raise ValueError(f"{folder} holds the test of a detector or boundary model; {told}")
    if strips is not None:
        raise ValueError("--strips is for the answers of one evaluation; name one folder, or leave it out")
    if len(set(one := [folder.resolve() for folder in folders])) < len(one):
        raise ValueError("a folder is named twice; name each once")
    out = choose_file(folders[0], out or Path(os.path.commonpath(one)) / SIDE_BY_SIDE)
    write_page(runs_page(folders), out)
    return out


def _page_of_detections(folder: Path, out: Path | None, strips: int | None) -> Path:
    from moss_vllm.report.detection_page import detection_page

    out = choose_file(folder, out)
    write_page(detection_page(read_test(folder), strips), out)
    return out


def _page_of_boundaries(folder: Path, out: Path | None, strips: int | None) -> Path:
    from moss_vllm.report.boundary_page import boundary_page

    out = choose_file(folder, out)
    write_page(boundary_page(read_boundary_test(folder), strips), out)
    return out


def _page_of_answers(folder: Path, out: Path | None, strips: int | None) -> Path:
    # These import torch and transformers, which takes seconds.
    from moss_vllm.report.answer_files import read_results
    from moss_vllm.report.answers_page import answers_page

    out = choose_file(folder, out)
    write_page(answers_page(read_results(folder), strips), out)
    return out
