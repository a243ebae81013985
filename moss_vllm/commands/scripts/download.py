"""Fetch what the hub holds of the data sets, and compare its counts with the published ones.

    python scripts/download.py                                # the names, and what comes from elsewhere
    python scripts/download.py favor favor_train              # FAVOR-Bench and FAVOR-Train, both into FAVOR/
    python scripts/download.py motionbench --out DATA/MotionBench
    python scripts/download.py favor --check                  # counts what is there, without a network

What is there already is not fetched again, so the same command continues a download that was stopped. The
licences are the data sets' own; a gated one needs `hf auth login`. Exit status: 0 if all counts are the
published ones, 1 if not or if a data set comes from elsewhere.
"""

import shutil
from pathlib import Path

from moss_vllm.commands import is_starting
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import say

GIB = 2**30


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="data sets; without one, all names are listed")
    add("--out", type=Path, help="folder to write (default: FAVOR or MotionBench)")
    add("--revision", help="branch, tag or commit of the hub's data set (default: its newest)")
    add("--check", action="store_true", help="count what is there, fetch nothing")
    add("--dry-run", action="store_true", help="say what would be fetched, and how large it is")
    return parser


if is_starting(__name__):
    answer_help(options)

from huggingface_hub.utils import filter_repo_objects

from moss_vllm.data.downloads import ELSEWHERE, ON_HUB, OnHub, compare_counts, elsewhere
from moss_vllm.data.hub import download, look_up


@errors_in_one_line()
def main(argv: list[str] | None = None) -> int:
    """Fetch, count, tell; returns the exit status."""
    args = options().parse_args(argv)
    known = [*ON_HUB, *ELSEWHERE]
    if unknown := [name for name in args.names if name not in known]:
        raise ValueError(f"there is no {', '.join(unknown)}; known are {', '.join(known)}")
    if not args.names:
        for name, data in ON_HUB.items():
            say(f"{name}: {data.repo_id} on the hub, {data.counts['videos']:,} videos")
        for name in ELSEWHERE:
            say(f"{name}: {elsewhere(name)}")
        return 0
    if args.out and len({ON_HUB[name].repo_id for name in args.names if name in ON_HUB}) > 1:
        raise ValueError(f"--out {args.out} is one folder, and {', '.join(args.names)} need one each")
    agree = True
    for name in args.names:
        if name in ELSEWHERE:
            say(f"{name} is not on the hub: {elsewhere(name)}")
            agree = False
            continue
        data = ON_HUB[name]
        folder = args.out or Path(data.folder)
        if not args.check:
            fetch(name, data, folder, args.revision, dry_run=args.dry_run)
        if not args.dry_run:
            agree = count(name, data, folder) and agree
    return 0 if agree else 1


def fetch(name: str, data: OnHub, folder: Path, revision: str | None, *, dry_run: bool) -> None:
    """Fetch the files that are not there.

    Raises: ValueError if the disk is too small.
    """
    info = look_up(data.repo_id, revision, sizes=True)
    files = list(
        filter_repo_objects(
            info.siblings, allow_patterns=list(data.patterns), key=lambda file: file.rfilename
        )
    )
    if not files:
        raise ValueError(
            f"{data.repo_id} at {info.sha} has none of {', '.join(data.patterns)}; name a --revision"
        )
    todo = [file for file in files if not is_there(folder / file.rfilename, file.size)]
    size = sum(file.size or 0 for file in todo)
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    say(
        f"{name}: {len(files):,} files of {data.repo_id} at {info.sha}, {len(todo):,} to fetch "
        f"({size / GIB:.2f} GiB, {free / GIB:.2f} free) into {folder}"
    )
    if dry_run:
        return
    if size > free:
        raise ValueError(f"{folder} has too little room; free some, or name another --out")
    for file in todo:  # the hub's client keeps a file that changed within a second of its download
        (folder / file.rfilename).unlink(missing_ok=True)
    download(data.repo_id, info.sha, data.patterns, folder)


def is_there(file: Path, size: int | None) -> bool:
    """Whether a file is there whole, by its size."""
    return file.is_file() and file.stat().st_size == size


def count(name: str, data: OnHub, folder: Path) -> bool:
    """Print the counts beside the published ones and what comes next; returns whether all agree."""
    lines, agree = compare_counts(data.count_in(folder), data.counts)
    say(f"{name} in {folder}:")
    for line in lines:
        say(f"  {line}")
    if not agree:
        say("  files are missing, or the hub holds others than were published; the same command goes on")
    say(f"  {data.then.replace('FOLDER', str(folder))}")
    return agree
