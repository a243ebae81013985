"""Build a miniature and pre-train it on appearance, with nothing but this repository.

    python experiments/make_miniature.py --out runs/miniature                          # a VideoLLaMA3
    python experiments/make_miniature.py --family qwen2_5_vl --out runs/miniature_qwen

All on sights drawn on the fly (`world/appearance.py`), whose labels never depend on motion. The VideoLLaMA3
in three stages: seeing (the encoder learns to name what each token shows), at the same time reading (the
language model learns to describe and to answer, in FAVOR-Bench's and MotionBench's wording, from tokens that
name their content without error), then talking (the language model on what the encoder sees). The Qwen2.5-VL
begins with the weights of the VideoLLaMA3 in the package, rewritten (`miniature_take_over.py`), and has one:
matching (encoder and merger learn to make the same tokens, in windows and of two frames).

Writes the weights, the processor, `pretraining.jsonl` (loss by stage) and `miniature.json` (command, minutes,
accuracy by kind of question on held-out sights). An interrupted run goes on where it was saved last, with the
same command.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from moss_vllm.evaluation.scoring import judge_favor, parse_letter
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import FROM_ONE, SEEDS
from moss_vllm.runtime.screen import say

STEPS = {  # by family and stage
    "video_llama_3": {"seeing": 2800, "reading": 2000, "talking": 600},
    "qwen2_5_vl": {"matching": 3000},
}
STAGES = {
    "seeing": "64 pictures",
    "reading": "24 conversations about described pictures, or 12 about clips",
    "matching": "32 steps of time of pictures and clips",
    "talking": "24 conversations about pictures, or 12 about clips",
}


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--family", choices=list(STEPS), default="video_llama_3", help="what is made")
    parser.add_argument("--seed", type=SEEDS, default=0, help="of weights and clips")
    for name, what in STAGES.items():
        usual = ", ".join(f"{steps[name]} of {family}" for family, steps in STEPS.items() if name in steps)
        parser.add_argument(f"--{name}", type=FROM_ONE, help=f"steps of {what} (default: {usual})")
    parser.add_argument("--save-every", type=FROM_ONE, default=200, help="steps between saved states")
    parser.add_argument("--measured", type=FROM_ONE, default=600, help="held-out pictures and clips measured")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
from miniature_families import FAMILIES, Family
from miniature_sights import as_question, ask, to_clip
from miniature_stages import LOG, STATE, Stage, run_stages

from moss_vllm.data.rows import Turn
from moss_vllm.data.world import appearance
from moss_vllm.runtime.files import readable, write_whole

HELD_OUT = 10**6  # added to the seed for sights that training never draws


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Pre-train, save, measure; returns the accuracy by kind of question, in percent."""
    parser = options()
    args = complete(parser, parser.parse_args(argv))
    family = FAMILIES[args.family]
    settings = {name: getattr(args, name) for name in ("family", "seed", *STEPS[args.family])}
    claim(args.out / STATE, settings)
    model, processor = family.begin(args.seed)
    model.train().share_memory()  # every stage trains in a process of its own
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(processor.tokenizer)} tokens")
    for together in family.together:
        run_stages([Stage(name, model, processor, args) for name in together], args.out)
    return save_miniature(model, processor, args)


def complete(parser: Flags, args: argparse.Namespace) -> argparse.Namespace:
    """The settings with the family's usual steps; stages that it does not have are refused."""
    steps = STEPS[args.family]
    parser.refuse_given([name for name in STAGES if name not in steps], f"with --family {args.family}")
    usual = {name: number for name, number in steps.items() if getattr(args, name) is None}
    return argparse.Namespace(**{**vars(args), **usual})


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Note the settings in the folder of unfinished work, or refuse one that was begun with others."""
    file = folder / "settings.json"
    if file.is_file() and (begun := json.loads(file.read_text())) != settings:
        raise SystemExit(f"{folder} was begun with {begun}, not {settings}; remove it or name another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(settings, indent=2) + "\n")


def save_miniature(model: Any, processor: Any, args: argparse.Namespace) -> dict[str, float]:
    """Write the folder, and measure the saved model."""
    family = FAMILIES[args.family]
    lines = [json.loads(line) for line in (args.out / LOG).read_text().splitlines()]
    last = {line["stage"]: line["minutes"] for line in lines}
    model.bfloat16().save_pretrained(args.out)
    readable(*args.out.glob("*.safetensors"))
    processor.save_pretrained(args.out)
    accuracy = measure(model.float(), processor, family, sights=args.measured, seed=args.seed + HELD_OUT)
    steps = " ".join(f"--{name} {getattr(args, name)}" for name in STEPS[args.family])
    command = f"python experiments/make_miniature.py --family {args.family} --out {args.out}"
    record = {
        "command": f"{command} --seed {args.seed} {steps} --measured {args.measured}",
        "minutes": {name: round(minutes, 1) for name, minutes in last.items()},
        "appearance_accuracy_percent": {kind: round(value, 1) for kind, value in sorted(accuracy.items())},
        "protocol": dict(family.protocol),
        "moss": dict(family.moss),
    }
    (args.out / "miniature.json").write_text(json.dumps(record, indent=2) + "\n")
    say(*json.dumps(record, indent=2).split("\n"), sep="\n")
    return accuracy


@torch.no_grad()
def measure(model: Any, processor: Any, family: Family, *, sights: int, seed: int) -> dict[str, float]:
    """Percent right by kind of question and wording, on pictures and clips in equal parts.

    `sign` is of all questions whose answer is a sign, `no option` the percentage of answers that name none.
    """
    model.eval()
    rng = np.random.default_rng(seed)
    right: dict[str, list[bool]] = defaultdict(list)
    for index in range(sights):
        sight = appearance.draw_sight(rng, frames=family.frames if index % 2 else 1, fps=family.fps)
        for choice in sight.choices[:3]:
            wording = str(rng.choice(["letter", "favor"]))
            prompt = Turn(ask(choice, wording).question)
            inputs = family.encode(processor, to_clip(sight, family.fps), [prompt], compress=False)
            batch = family.collate([inputs], pad_id=processor.tokenizer.pad_token_id)
            batch.pop("labels")
            ids = model.generate(**family.place(model, batch), max_new_tokens=32, do_sample=False)
            answer = processor.tokenizer.decode(
                ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True
            )
            question = as_question(choice, wording)
            if wording == "favor":
                correct = judge_favor(answer, choice.answer, choice.options)
            else:
                correct = parse_letter(answer, choice.options) == question.answer
            looks = choice.task if choice.task in appearance.LOOKS else "sign"
            for kind in {"all", choice.task, looks, wording, "clips" if index % 2 else "pictures"}:
                right[kind].append(correct)
            right["no option"].append(answer.strip() not in choice.options)
    return {kind: 100 * sum(values) / len(values) for kind, values in right.items()}


if __name__ == "__main__":
    main()
