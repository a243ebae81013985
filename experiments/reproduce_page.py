"""Write docs/reproduce.md: every row of the paper's tables with its command, needs, costs and measurements.

    python experiments/reproduce_page.py          # from the paper's tables and benchmarks/results/

Rows of Tables 3, 4, 6 and 8 to 10 come from recipes/configs/paper_tables.yaml, what was measured here from
benchmarks/results/. Those of Tables 1, 2 and 5, and the words, stand below. tests/test_docs.py compares the
page with what this would write.
"""

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from moss_vllm.runtime.files import write_whole
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import say


def options() -> Flags:
    """The command line."""
    return Flags(__doc__)


if __name__ == "__main__":
    answer_help(options)

from paper_tables import BOUNDARY_ROWS, DETECTION_ROWS, TABLES, Row

from moss_vllm.runtime.tables import format_cell, markdown_table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reproduce.md"
RESULTS = ROOT / "benchmarks" / "results"
LEFT = ("", "row", "data", "command")  # columns of words
ROOTS = {
    "ssv1": "ssv1",
    "ssv2": "ssv2",
    "diving48": "diving48",
    "gym99": "finegym",
    "gym288": "finegym",
    "k400": "k400",
}
# Tables 1 and 2: row, --data, --variant, more flags, in the paper (top-1; of FineGym the mean over classes).
EVA = "--backbone eva02_clip_l14"
RECOGNITION: dict[str, list[tuple[str, str, str, str, float]]] = {
    "1a": [
        ("SSV1, MOSS-B, 8 frames", "ssv1", "b", "", 61.0),
        ("SSV1, MOSS-B, 16 frames", "ssv1", "b", "--frames 16", 61.8),
        ("SSV1, MOSS-L, 8 frames", "ssv1", "l", "", 63.6),
        ("SSV1, MOSS-L, 16 frames", "ssv1", "l", "--frames 16", 64.8),
        ("SSV1, MOSS-L, 16 frames, EVA-CLIP", "ssv1", "l", f"--frames 16 {EVA}", 67.3),
        ("SSV2, MOSS-B, 8 frames", "ssv2", "b", "", 71.4),
        ("SSV2, MOSS-B, 16 frames", "ssv2", "b", "--frames 16", 72.4),
        ("SSV2, MOSS-L, 16 frames", "ssv2", "l", "--frames 16", 74.4),
        ("SSV2, MOSS-L, 16 frames, EVA-CLIP", "ssv2", "l", f"--frames 16 {EVA}", 75.3),
    ],
    "1b": [
        ("Diving48, Side4Video-B", "diving48", "b", "--temporal none --start runs/k400_b_none/best", 88.6),
        ("Diving48, MOSS-B", "diving48", "b", "--start runs/k400_b/best", 91.2),
        ("Diving48, MOSS-L", "diving48", "l", "--start runs/k400_l/best", 92.7),
    ],
    "1c": [
        ("gym99, Side4Video-B", "gym99", "b", "--temporal none --start runs/k400_b_none/best", 92.3),
        ("gym99, MOSS-B", "gym99", "b", "--start runs/k400_b/best", 93.9),
        ("gym99, MOSS-L", "gym99", "l", "--start runs/k400_l/best", 94.7),
        ("gym288, Side4Video-B", "gym288", "b", "--temporal none --start runs/k400_b_none/best", 69.1),
        ("gym288, MOSS-B", "gym288", "b", "--start runs/k400_b/best", 70.2),
        ("gym288, MOSS-L", "gym288", "l", "--start runs/k400_l/best", 71.1),
    ],
    "2": [
        ("Side4Video-B, 32 frames", "k400", "b", "--temporal none --out runs/k400_b_none", 84.2),
        ("MOSS-B, 32 frames", "k400", "b", "--out runs/k400_b", 85.2),
        ("MOSS-L, 16 frames", "k400", "l", "--out runs/k400_l", 87.7),
    ],
}
# Table 8 beside the rows of "detection"; Table 9 has none that is not in "boundaries".
DETECTION_L = [("AdaTAD-L", "--variant l --temporal none", 73.5), ("AdaTAD-L + MOSS", "--variant l", 74.1)]
MINI = {"detection": "ablations-detection-mini.json", "boundaries": "ablations-boundaries-mini.json"}
RUN = "python recipes/{recipe}.py --data {data} --root DATA/{root}"
INTRO = """\
# The paper, row by row

Every row of Tables 1 to 10 that the paper's authors ran, with the command that trains and tests it. Rows that
the paper quotes from other works are not repeated. *Written by `python experiments/reproduce_page.py` from
`recipes/configs/paper_tables.yaml` and `benchmarks/results/`; `tests/test_docs.py` compares.*

**No row has run on the paper's data:** we had no GPU, weights or data sets. What was measured instead:
costs, counted on the models at their true size, and scores of the [miniature](miniature.md), which compare
rows with each other and never with the paper. "-" means not run.

## What a row needs and costs

| tables | data | weights | time |
| --- | --- | --- | --- |
| 1 to 4, 10 | [in `DATA/`](action_recognition.md#datasets) | of timm, or `--weights FILE` | not measured |
| 5 | [FAVOR, MotionBench](training.md#the-papers-run) | VideoLLaMA3-2B | 8 GPU-hours in the paper |
| 6 | none | random | three minutes on a CPU for all tables |
| 8 | [THUMOS-14](detection.md#files) | VideoMAE-B or L, or `--weights FILE` | not measured |
| 9 | [Kinetics-GEBD, TAPOS](boundaries.md#files) | ResNet-50, or `--weights FILE` | not measured |

Give each row an `--out` of its own. Several GPUs: `accelerate launch --multi_gpu` in place of `python`, with
`--precision bf16` (`fp16` for detection). The memory of a training step is in [what it costs](cost.md) and
printed by `--dry-run`.
"""


def page() -> str:
    """The page as it should be."""
    return "\n".join(
        [
            INTRO,
            "## Table 1: motion-centric benchmarks",
            "",
            "Top-1 in percent, of FineGym the mean over classes; a run's last test takes Table 7's views.",
            "MOSS-L with 8 frames on SSV2 is in Table 3. Tables 1b and 1c start from Table 2's checkpoints.",
            "",
            *recognition(["1a", "1b", "1c"]),
            "",
            "## Table 2: Kinetics-400",
            "",
            *recognition(["2"]),
            "",
            "## Table 3: efficiency",
            "",
            *costs("3", "ssv2"),
            "",
            "## Table 4: which orders, and how they are made",
            "",
            ABLATIONS,
            *(line for part in "abcd" for line in [f"**4{part}**", "", *ablation(f"4{part}"), ""]),
            "## Table 5: Video-LLMs",
            "",
            *video_llm(),
            "",
            "## Table 6: sizes",
            "",
            *costs("6", None),
            "",
            "## Table 7: how classifiers are trained",
            "",
            "Table 7 has settings, no results. They are in `recipes/configs/action_recog.yaml` and",
            "`moss_vllm/recognition/dataset_views.py`, are the commands' defaults, and are printed by",
            "`python recipes/action_recog.py --data ssv2 --root DATA/ssv2 --variant b --dry-run`.",
            "",
            "## Table 8: detection in time",
            "",
            *others("detection", DETECTION_ROWS, [("thumos14", "thumos-14")]),
            "",
            "## Table 9: event boundaries",
            "",
            *others("boundaries", BOUNDARY_ROWS, [("kinetics_gebd", "Kinetics-GEBD"), ("tapos", "TAPOS")]),
            "",
            "## Table 10: windows, places, modules, hosts, encoders",
            "",
            "As Table 4.",
            "",
            *(line for part in "abcde" for line in [f"**10{part}**", "", *ablation(f"10{part}"), ""]),
        ]
    )


ABLATIONS = """\
A row's command trains and tests it on Something-Something V1; for Diving48 replace the last four words by
`--data diving48 --root DATA/diving48`, which takes 32 frames. `--seeds 3` repeats it; a table's name without
`--rows` runs all of its rows. FLOPs and TP are the paper's / ours (`python experiments/efficiency.py`).
"mini" is top-1 on the miniature's clips, mean and spread of three seeds, chance 8.3
([how to read it](action_recognition.md#measured-on-the-miniature)).
"""


def recognition(parts: Iterable[str]) -> list[str]:
    """Rows of Tables 1 and 2."""
    rows = []
    for part in parts:
        for name, data, variant, flags, score in RECOGNITION[part]:
            run = f"{RUN.format(recipe='action_recog', data=data, root=ROOTS[data])} --variant {variant}"
            rows.append([part, name, f"{score}", "-", code(f"{run} {flags}")])
    return markdown_table(["", "row", "paper", "here", "command"], rows, left=LEFT)


def costs(name: str, data: str | None) -> list[str]:
    """Table 3 or 6: FLOPs and parameters counted here, beside the paper's."""
    counted = {row["name"]: row for row in results("efficiency.json")[name]}
    rows = []
    for row in TABLES[name]:
        flags = " ".join(["--variant", row.set.get("variant", "s"), *as_flags(row.set, but=("variant",))])
        run = f"{RUN.format(recipe='action_recog', data=data, root=data)} {flags}"
        score = [f"{row.ssv2}", "-"] if data else []
        run = ["-" if row.ladder else code(run)] if data else []
        rows.append([row.name, *score, *beside(row, counted), *run])
    head = ["row", "FLOPs, G", "TP, M"]
    if data:
        head = ["row", "SSV2, paper", "here", "FLOPs, G", "TP, M", "command"]
    words = f"FLOPs and TP, the paper's / ours: `python experiments/efficiency.py --table {name}`."
    if data:
        words += "\nSide4Video's own ladder beside ViT-L is wider than those here: that row has costs alone."
    return [words, "", *markdown_table(head, rows, left=LEFT)]


def ablation(name: str) -> list[str]:
    """A part of Table 4 or 10."""
    counted = {row["name"]: row for row in results("efficiency.json")[name]}
    mini = scores_of_mini("ablations-mini.json", f"table{name}")
    rows = []
    for row in TABLES[name]:
        run = ["python", "experiments/ablate.py", f"table{name}", "--rows", row.name]
        run = code(f"{shlex.join(run)} --data ssv1 --root DATA/ssv1")
        cost = beside(row, counted)
        rows.append([row.name, f"{row.ssv1}", f"{row.d48}", *cost, mini.get(row.name, "-"), run])
    return markdown_table(["row", "SSV1", "D48", "FLOPs, G", "TP, M", "mini", "command"], rows, left=LEFT)


def others(task: str, listed: Sequence[Row], data: Sequence[tuple[str, str]]) -> list[str]:
    """Table 8 or 9."""
    mini = scores_of_mini(MINI[task], task)
    rows = []
    for row in listed:
        for name, root in data:
            flags = " ".join(as_flags(row.set))
            run = f"{RUN.format(recipe=task, data=name, root=root)} {flags}"
            score = getattr(row, name)
            paper = "not in the paper" if score is None else f"{score}"
            rows.append([row.name, name, paper, mini.get(row.name, "-"), code(run)])
    if task == "detection":
        run = RUN.format(recipe=task, data="thumos14", root="thumos-14")
        rows += [
            [name, "thumos14", f"{score}", "-", code(f"{run} {flags}")] for name, flags, score in DETECTION_L
        ]
    words = {
        "detection": "Average mAP. The paper has `--size-px 224`; the default is AdaTAD's own 160.\n"
        '"mini" is the [miniature](detection.md#the-miniature).',
        "boundaries": 'F1@0.05; "mini" is the [miniature](boundaries.md#the-miniature).',
    }[task]
    together = f"All rows on the miniature: `python experiments/ablate.py {task} --data mini --seeds 3`."
    heads = ["row", "data", "paper", "mini", "command"]
    return [words, together, "", *markdown_table(heads, rows, left=LEFT)]


def video_llm() -> list[str]:
    """Table 5, with the motion world in place of the benchmarks."""
    measured = results("miniature.json")["mean_and_spread"]
    shown = {"base": "miniature", "+ train": "+ train", "+ train + MOSS": "+ train + MOSS"}
    paper = {"base": (42.2, 50.2), "+ train": (45.5, 51.4), "+ train + MOSS": (46.6, 54.2)}
    config = "recipes/configs/favor_videollama3_2b.yaml"
    run = f"python recipes/favor_lora.py --config {config} --data FAVOR/prepared/kept.json"
    run += " --model VideoLLaMA3-2B-native"
    commands = {
        "base": "-",
        "+ train": code(f"{run} --no-use-moss --out runs/plain"),
        "+ train + MOSS": code(run),
    }
    rows = []
    for name, key in shown.items():
        world = [
            format_cell(tuple(measured[key][benchmark]["option_text"]["all"]))
            for benchmark in ("FAVOR-Bench", "MotionBench-Dev")
        ]
        rows.append([name, *(f"{score}" for score in paper[name]), *world, commands[name]])
    words = """\
[The paper's run](training.md#the-papers-run) has every step before and after; `eval/favor_bench.py` and
`eval/motionbench.py` score a row. The last two columns are `make reproduce`: the miniature on the motion
world, by option_text, three seeds, chance 20.0 and 25.4."""
    head = ["row", "FAVOR, paper", "MotionBench, paper", "FAVOR, mini", "MotionBench, mini", "command"]
    return [words, "", *markdown_table(head, rows, left=LEFT)]


def results(file: str) -> Any:
    """A file of benchmarks/results/."""
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def scores_of_mini(file: str, name: str) -> dict[str, str]:
    """Mean and spread of a table's rows on the miniature; empty if they were not run."""
    if not (RESULTS / file).is_file():
        return {}
    rows = results(file)["tables"].get(name, [])
    return {row["name"]: format_cell(tuple(row["accuracy"]["all"])) for row in rows if "accuracy" in row}


def as_flags(settings: dict[str, Any], but: Sequence[str] = ()) -> list[str]:
    """The recipe's flags of a row."""
    flags = []
    for name, value in settings.items():
        if name not in but:
            flags += [f"--{name.replace('_', '-')}", *([] if value is True else [shlex.quote(str(value))])]
    return flags


def beside(row: Row, counted: dict[str, Any]) -> list[str]:
    """FLOPs and TP, the paper's / ours, to a decimal as most of the paper's are."""
    ours = counted.get(row.name, {})
    return [
        f"{row.paper[unit]} / {ours[unit]:,.1f}" if unit in ours else row.paper[unit]
        for unit in ("FLOPs", "TP")
    ]


def code(text: str) -> str:
    """Inline code."""
    return f"`{text.strip()}`"


def main(argv: list[str] | None = None) -> None:
    """Write the page."""
    options().parse_args(argv)
    write_whole(PAGE, page())
    say(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
