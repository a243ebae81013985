"""Build the miniature VideoLLaMA3 and pre-train it on appearance, with nothing but this repository.

    python experiments/make_miniature.py --out runs/miniature

Three stages, all on sights drawn on the fly (`world/appearance.py`), whose labels never depend on motion:
seeing (the encoder learns to name what each token shows), at the same time reading (the language model learns
to describe and to answer, in FAVOR-Bench's and MotionBench's wording, from tokens that name their content
without error), then talking (the language model on what the encoder sees). Writes the weights, the processor,
`pretraining.jsonl` (loss by stage) and `miniature.json` (command, minutes, accuracy by kind of question on
held-out sights). An interrupted run goes on where it was saved last, with the same command.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from moss_vllm.evaluation.scoring import judge_favor, parse_letter
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import FROM_ONE, SEEDS
from moss_vllm.runtime.screen import say

STEPS = {"seeing": 2800, "reading": 2000, "talking": 600}


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=SEEDS, default=0, help="of weights and clips")
    what = {
        "seeing": "64 pictures",
        "reading": "24 conversations about described pictures, or 12 about clips",
        "talking": "24 conversations about pictures, or 12 about clips",
    }
    for name, steps in STEPS.items():
        parser.add_argument(f"--{name}", type=FROM_ONE, default=steps, help=f"steps of {what[name]}")
    parser.add_argument("--save-every", type=FROM_ONE, default=200, help="steps between saved states")
    parser.add_argument("--measured", type=FROM_ONE, default=600, help="held-out pictures and clips measured")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
from miniature_sights import as_question, ask, corpus, to_clip
from miniature_stages import LOG, STATE, Stage, run_stages
from transformers import VideoLlama3ForConditionalGeneration, VideoLlama3Processor

from moss_vllm.data.rows import Turn
from moss_vllm.data.world import appearance
from moss_vllm.runtime.files import readable, write_whole
from moss_vllm.vlm.video_llama3.chat import collate, encode
from moss_vllm.vlm.video_llama3.miniature import MINIATURE_MOSS, build, build_processor, build_tokenizer

HELD_OUT = 10**6  # added to the seed for sights that training never draws


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Pre-train, save, measure; returns the accuracy by kind of question, in percent."""
    parser = options()
    args = parser.parse_args(argv)
    settings = {name: getattr(args, name) for name in ("seed", *STEPS)}
    claim(args.out / STATE, settings)
    torch.manual_seed(args.seed)
    processor = build_processor(build_tokenizer(corpus()))
    torch.manual_seed(args.seed)
    model = build(processor.tokenizer).train()
    model.share_memory()  # every stage trains in a process of its own
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(processor.tokenizer)} tokens")
    for together in (("seeing", "reading"), ("talking",)):
        run_stages([Stage(name, model, processor, args) for name in together], args.out)
    return save_miniature(model, processor, args)


def claim(folder: Path, settings: dict[str, int]) -> None:
    """Note the settings in the folder of unfinished work, or refuse one that was begun with others."""
    file = folder / "settings.json"
    if file.is_file() and (begun := json.loads(file.read_text())) != settings:
        raise SystemExit(f"{folder} was begun with {begun}, not {settings}; remove it or name another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(settings, indent=2) + "\n")


def save_miniature(
    model: VideoLlama3ForConditionalGeneration, processor: VideoLlama3Processor, args: argparse.Namespace
) -> dict[str, float]:
    """Write the folder, and measure the saved model."""
    lines = [json.loads(line) for line in (args.out / LOG).read_text().splitlines()]
    last = {line["stage"]: line["minutes"] for line in lines}
    model.bfloat16().save_pretrained(args.out)
    readable(*args.out.glob("*.safetensors"))
    processor.save_pretrained(args.out)
    accuracy = measure(model.float(), processor, sights=args.measured, seed=args.seed + HELD_OUT)
    steps = " ".join(f"--{name} {getattr(args, name)}" for name in STEPS)
    record = {
        "command": f"python experiments/make_miniature.py --out {args.out} --seed {args.seed} {steps}",
        "minutes": {name: round(minutes, 1) for name, minutes in last.items()},
        "appearance_accuracy_percent": {kind: round(value, 1) for kind, value in sorted(accuracy.items())},
        "protocol": {"sample_fps": 2.0, "short_side_px": 84, "max_frames": 180, "compress_tokens": False},
        "moss": MINIATURE_MOSS,
    }
    (args.out / "miniature.json").write_text(json.dumps(record, indent=2) + "\n")
    say(*json.dumps(record, indent=2).split("\n"), sep="\n")
    return accuracy


@torch.no_grad()
def measure(
    model: VideoLlama3ForConditionalGeneration, processor: VideoLlama3Processor, *, sights: int, seed: int
) -> dict[str, float]:
    """Percent right by kind of question and wording, on pictures and clips in equal parts.

    `sign` is of all questions whose answer is a sign, `no option` the percentage of answers that name none.
    """
    model.eval()
    rng = np.random.default_rng(seed)
    right: dict[str, list[bool]] = defaultdict(list)
    for index in range(sights):
        sight = appearance.draw_sight(rng, frames=8 if index % 2 else 1)
        for choice in sight.choices[:3]:
            wording = str(rng.choice(["letter", "favor"]))
            prompt = Turn(ask(choice, wording).question)
            inputs = encode(processor, to_clip(sight), [prompt], compress=False)
            batch = collate([inputs], pad_id=processor.tokenizer.pad_token_id)
            batch.pop("labels")
            ids = model.generate(**batch, max_new_tokens=32, do_sample=False)
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
