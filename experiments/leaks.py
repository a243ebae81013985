"""Does anything but motion tell the answers? Small classifiers on all that shows none, beside chance.

    python experiments/leaks.py --json leaks.json                   # about 20 minutes on one idle core
    python experiments/leaks.py --tasks "mini order" "FAVOR AS"     # some of the tasks
    python experiments/leaks.py --probes text                       # a minute: questions and options alone

Draws training scenes and other test scenes of the motion world (both formats), of the mini actions and of the
motion segments. For each task it trains probes that choose one of a question's options, and counts how often
they are right:

    one frame     the first, the middle or the last frame alone; the first and the last, or all of them, each
                  seen alone, their votes added. The probe knows which moment it sees.
    file          frames and duration; bytes, also of the header, of a real file
    text          the question and its options, with what these share with each other; the place, the length
                  or the frequency of the options alone
    two times     the first and the last frame side by side, or the mean of all frames. Both show motion:
                  where a thing went, or along which line. They are no leak, and not counted; they show that
                  the probes can see.

A probe of the first three kinds is a leak if it is above chance by more than 5 points and by more than its
95 % interval; the exit status is then 1. Two controls check the probes: in "control place" the start of a
thing is tied to its action, in "control options" wrong options are made from the right one. If these planted
leaks are not found, the probes are too weak, the command says so, and the exit status is 1 too.
"""

import os
import platform
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import FROM_ONE, SEEDS
from moss_vllm.runtime.screen import Screen, say

PROBES = {
    "one frame": ("first", "middle", "last", "first + last", "all"),
    "file": ("frames", "bytes"),
    "text": ("words", "place", "length", "frequency"),
    "two times": ("first, last", "mean"),
}


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="some of the tasks (default: all)")
    kinds = [f"'{kind}'" for kind in PROBES]
    parser.add_argument(
        "--probes",
        nargs="+",
        default=list(PROBES),
        choices=list(PROBES),
        metavar="KIND",
        help=f"of {', '.join(kinds)} (default: all)",
    )
    parser.add_argument("--train", type=FROM_ONE, default=3000, help="training questions of each task")
    parser.add_argument("--test", type=FROM_ONE, default=1000, help="test questions of each task")
    parser.add_argument("--files", type=FROM_ONE, default=1000, help="of each, questions with a real file")
    parser.add_argument("--epochs", type=FROM_ONE, default=12, help="passes of each probe over its questions")
    parser.add_argument("--seed", type=SEEDS, default=0, help="seed of scenes and probes")
    parser.add_argument("--json", type=Path, help="file to write every number to")
    return parser


if __name__ == "__main__":
    answer_help(options)

import numpy as np
import torch
from leak_probes import Asked, Eye, Numbers, Probe, Words, choose, fit, habits
from leak_scenes import SOURCES, TASKS, Draw, draw_questions, draw_segments, measure_files, render
from measuring import prepare_json, write_json
from torch import Tensor, nn

from moss_vllm.evaluation.scoring import wilson_interval
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.tables import Cell, Table
from moss_vllm.runtime.versions import versions

MOST_POINTS = 5.0
CONTROLS = {"control place": "first", "control options": "words"}
NOT_COUNTED = PROBES["two times"]


def probe_source(source: Draw, tasks: Sequence[str], args: Any, part: int) -> dict[str, dict[str, Any]]:
    """The result of every probe on every task of one source of clips."""
    sides = [
        draw_questions(source, tasks, count, (args.seed, part, side))
        for side, count in enumerate((args.train, args.test))
    ]
    pictures = {"one frame", "two times"} & set(args.probes)
    frames = [render(side.clips) for side in sides] if pictures else []
    files = []
    for side in sides if "file" in args.probes and source is not draw_segments else ():
        wanted = sorted({a.clip for asked in side.questions.values() for a in asked[: args.files]})
        files.append(measure_files(side.clips, wanted))
    found, shown = {}, dict.fromkeys(tasks)
    for task in show_progress(shown, len(shown), "tasks probed"):
        trained, tested = (side.questions[task] for side in sides)
        right = probe_task(trained, tested, frames, files, args)
        chance = 100 * float(np.mean([1 / len(asked.options) for asked in tested]))
        scores = {name: judge(values, chance, name in NOT_COUNTED) for name, values in right.items()}
        found[task] = {"chance": chance, "trained": len(trained), "tested": len(tested), "probes": scores}
        best = max(scores, key=lambda name: (name not in NOT_COUNTED, scores[name]["accuracy"]))
        say(
            f"{task}: chance {chance:.1f} %, best probe '{best}' {scores[best]['accuracy']:.1f} %", flush=True
        )
    return found


def judge(right: Sequence[bool], chance: float, not_counted: bool = False) -> dict[str, Any]:
    """Accuracy in percent with its 95 % interval, and whether it is a leak."""
    accuracy, (low, high) = 100 * float(np.mean(right)), wilson_interval(sum(right), len(right))
    leak = accuracy > chance + MOST_POINTS and low > chance and not not_counted
    return {"accuracy": accuracy, "interval": (low, high), "leak": bool(leak)}


def probe_task(
    trained: Sequence[Asked],
    tested: Sequence[Asked],
    frames: Sequence[Tensor],
    files: Sequence[tuple[Tensor, Tensor]],
    args: Any,
) -> dict[str, list[bool]]:
    """Whether each probe is right on each test question."""
    words = Words(trained)
    texts = [words.encode(asked) for asked in (trained, tested)]
    rights = [torch.tensor([a.right for a in asked]) for asked in (trained, tested)]
    clips = [torch.tensor([a.clip for a in asked]) for asked in (trained, tested)]

    def run(see: nn.Module | None, looks: Sequence[Any], moments: int = 1, most: int | None = None) -> Tensor:
        """Log-probabilities (moments, N, O) of a new probe, at the test questions."""
        (content, relations, shown), (content_, relations_, shown_) = texts
        text, text_ = (content, content_)
        if see is None:
            text, text_ = torch.cat([content, relations], -1), torch.cat([content_, relations_], -1)
        probe = Probe(text.shape[-1], see, moments if moments > 1 else 0)
        how: dict[str, Any] = {"moments": moments, "seed": args.seed}
        how |= {"epochs": args.epochs * (3 if most or see is None else 1)}
        fit(probe, text[:most], shown[:most], rights[0][:most], clips[0][:most], looks[0], **how)
        return choose(probe, text_[:most], shown_[:most], clips[1][:most], looks[1], moments)

    def right(scores: Tensor) -> list[bool]:
        """Whether the likeliest option is the right one."""
        return (scores.argmax(-1) == rights[1][: len(scores)]).tolist()

    torch.manual_seed(args.seed)
    found: dict[str, list[bool]] = {}
    if "one frame" in args.probes:
        moments = frames[0].shape[1]
        alone = run(Eye(3), [lambda c, m, f=f: pixels(f[c, m]) for f in frames], moments)
        votes = (alone[0], alone[moments // 2], alone[-1], alone[0] + alone[-1], alone.sum(0))
        found |= {name: right(vote) for name, vote in zip(PROBES["one frame"], votes, strict=True)}
    for place, name in enumerate(PROBES["file"] if files else ()):
        scaled = standardise([side[place] for side in files], clips, args.files)
        looks = [lambda c, m, values=values: values[c] for values in scaled]
        found[name] = right(run(Numbers(scaled[0].shape[1]), looks, most=args.files)[0])
    if "text" in args.probes:
        found["words"] = right(run(None, [lambda c, m: c] * 2)[0])
        found |= habits(trained, tested)
    if "two times" in args.probes:
        both = run(Eye(6), [lambda c, m, f=f: pixels(f[c][:, [0, -1]].flatten(1, 2)) for f in frames])
        mean = run(Eye(3), [lambda c, m, f=f: pixels(f[c].float().mean(1)) for f in frames])
        found |= {name: right(scores[0]) for name, scores in zip(NOT_COUNTED, (both, mean), strict=True)}
    return found


def pixels(frames: Tensor) -> Tensor:
    """From -1 to 1."""
    return frames.float() / 127.5 - 1


def standardise(sides: Sequence[Tensor], clips: Sequence[Tensor], most: int) -> list[Tensor]:
    """Numbers of clips with the mean and spread of the training clips; a constant becomes 0."""
    known = sides[0][clips[0][:most]]
    mean, spread = known.mean(0), known.std(0)
    return [torch.where(spread > 1e-6, (side - mean) / spread.clamp(min=1e-6), 0.0) for side in sides]


def leaks_of(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The leaks, each in a sentence."""
    return [
        f"{task}: {name} has {score['accuracy']:.1f} % ({score['interval'][0]:.1f} to "
        f"{score['interval'][1]:.1f}), chance is {result['chance']:.1f}"
        for task, result in found.items()
        if task not in CONTROLS
        for name, score in result["probes"].items()
        if score["leak"]
    ]


def missed_controls(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Planted leaks that the probes did not find."""
    scores = {task: found[task]["probes"].get(name) for task, name in CONTROLS.items()}
    return [task for task, score in scores.items() if score and not score["leak"]]


def make_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Accuracy of every probe beside chance."""
    rows: dict[str, dict[str, dict[str, Cell]]] = {}
    for task, result in found.items():
        cells = {name: score["accuracy"] for name, score in result["probes"].items()}
        rows[task] = {"": {"chance": result["chance"]}}
        rows[task] |= {k: {n: cells[n] for n in names if n in cells} for k, names in PROBES.items()}
    notes = [
        "'first + last' and 'all' add the votes of frames that are seen one by one",
        "two times: the probe compares frames, and so sees motion; not counted",
    ]
    return Table("Right answers of probes (%)", {"": ["chance"], **PROBES}, rows, notes)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Probe the tasks; returns what `--json` writes."""
    parser = options()
    args = parser.parse_args(argv)
    if unknown := [task for task in args.tasks or () if task not in TASKS]:
        parser.error(f"argument --tasks: invalid choice: {unknown[0]!r} (choose from {', '.join(TASKS)})")
    prepare_json(parser, args.json)
    by_source = defaultdict[Draw, list[str]](list)
    for task in [*CONTROLS, *(args.tasks or TASKS)]:
        by_source[SOURCES[task.split()[0]]].append(task)
    found: dict[str, dict[str, Any]] = {}
    for part, (source, tasks) in enumerate(by_source.items()):
        found |= probe_source(source, tasks, args, part)
    console = Screen(width=150)
    console.print(make_table(found))
    leaks, missed = leaks_of(found), missed_controls(found)
    say(*(leaks or ["no leak"]), sep="\n")
    if missed:
        say(f"the probes are too weak: the planted {', '.join(missed)} was not found; train on more")
    command = list(sys.argv[1:] if argv is None else argv)
    written = {
        "command": shlex.join(["python", "experiments/leaks.py", *command]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": versions(),
        "tasks": found,
        "leaks": leaks,
        "missed_controls": missed,
    }
    write_json(args.json, written, console)
    return written


if __name__ == "__main__":
    with errors_in_one_line("nothing was kept; run it again"):
        result = main()
        raise SystemExit(1 if result["leaks"] or result["missed_controls"] else 0)
