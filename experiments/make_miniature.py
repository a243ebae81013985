"""Build and pre-train the miniature VideoLLaMA3 on appearance, from nothing but this repository.

    python experiments/make_miniature.py --out runs/miniature

Three stages, all on sights drawn on the fly (`world/appearance.py`), whose labels never depend on motion:
seeing (the encoder learns to name what each token shows), reading (the language model learns to describe and
to answer questions, in FAVOR-Bench's and MotionBench's wording, about sights told in words), talking (both
together, on pictures and clips). Writes the weights, the processor and `miniature.json` (command, minutes,
accuracy by kind of question on held-out sights).
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from moss_vllm.data.rows import Question
from moss_vllm.evaluation.scoring import judge_favor, parse_letter
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import say


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--see", type=int, default=900, help="steps of 96 pictures")
    parser.add_argument("--read", type=int, default=600, help="steps of 24 told conversations")
    parser.add_argument("--talk", type=int, nargs="+", default=[450], help="steps of each round")
    parser.add_argument("--measured", type=int, default=200, help="held-out pictures and clips to measure on")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, IterableDataset
from transformers import VideoLlama3ForConditionalGeneration, VideoLlama3Processor

from moss_vllm.data import favor, motionbench
from moss_vllm.data.rows import CAPTION_PROMPT, Turn
from moss_vllm.data.world import appearance, scenes
from moss_vllm.data.world.scenes import Choice
from moss_vllm.runtime.files import readable
from moss_vllm.training.optim import warmup_cosine
from moss_vllm.video.clip import Clip
from moss_vllm.vlm.conversation import IGNORED
from moss_vllm.vlm.video_llama3.chat import answer_labels, collate, conversation_text, encode
from moss_vllm.vlm.video_llama3.miniature import MINIATURE_MOSS, build, build_processor, build_tokenizer

CAPTION_PROMPTS = (CAPTION_PROMPT, "Describe the video.", "What is in the video?")
HELD_OUT = 10**6  # added to the seed for sights that training never draws


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Pre-train, save, measure; returns the accuracy by kind of question, in percent."""
    args = options().parse_args(argv)

    torch.manual_seed(args.seed)
    processor = build_processor(build_tokenizer(_corpus()))
    torch.manual_seed(args.seed)
    model = build(processor.tokenizer).train()
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(processor.tokenizer)} tokens")
    started = time.monotonic()
    learn_to_see(model, processor, steps=args.see, seed=args.seed)
    learn_to_talk(model, processor, steps=args.read, seed=args.seed, told=True)
    model.model.vision_model.requires_grad_(False)
    for number, steps in enumerate(args.talk):  # each round restarts the rate, lower
        lr = 2e-3 / (1 + number)
        learn_to_talk(model, processor, steps=steps, seed=args.seed + number, told=False, lr=lr)
    minutes = (time.monotonic() - started) / 60
    return save(model, processor, args, minutes)


def save(
    model: VideoLlama3ForConditionalGeneration,
    processor: VideoLlama3Processor,
    args: argparse.Namespace,
    minutes: float,
) -> dict[str, float]:
    """Write the folder, and measure what was written."""
    model.bfloat16().save_pretrained(args.out)
    readable(*args.out.glob("*.safetensors"))
    processor.save_pretrained(args.out)
    accuracy = measure(model.float(), processor, sights=args.measured, seed=args.seed + HELD_OUT)
    talk = " ".join(map(str, args.talk))
    record = {
        "command": f"python experiments/make_miniature.py --out {args.out} --seed {args.seed} "
        f"--see {args.see} --read {args.read} --talk {talk}",
        "minutes": round(minutes, 1),
        "appearance_accuracy_percent": {kind: round(value, 1) for kind, value in sorted(accuracy.items())},
        "protocol": {"sample_fps": 2.0, "short_side_px": 84, "max_frames": 180, "compress_tokens": False},
        "moss": MINIATURE_MOSS,
    }
    (args.out / "miniature.json").write_text(json.dumps(record, indent=2) + "\n")
    say(*json.dumps(record, indent=2).split("\n"), sep="\n")
    return accuracy


class Pictures(IterableDataset[tuple[Tensor, ...]]):
    """Endless batches of pictures with, for each 28 px cell, the words of what is in it."""

    def __init__(self, processor: VideoLlama3Processor, *, batch_size: int, seed: int) -> None:
        self.processor, self.batch_size, self.seed = processor, batch_size, seed

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        rng = np.random.default_rng([self.seed, 1])
        while True:
            sights = [appearance.draw_sight(rng, frames=1) for _ in range(self.batch_size)]
            pixels = self.processor.video_processor(
                [sight.frames for sight in sights],
                do_resize=False,
                use_token_compression=False,
                return_tensors="pt",
            )
            cells = [cell for sight in sights for cell in sight.cells]
            words = torch.zeros(len(cells), len(self.processor.tokenizer))
            for row, cell in zip(words, cells, strict=True):
                row[self.processor.tokenizer(cell)["input_ids"]] = 1
            words /= words.sum(-1, keepdim=True)
            yield (
                *(pixels[key] for key in ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")),
                words,
            )


class Sights(IterableDataset[dict[str, Tensor]]):
    """Endless batches of conversations about sights: told in words, or shown as pictures and clips."""

    def __init__(self, processor: VideoLlama3Processor, *, batch_size: int, seed: int, told: bool) -> None:
        self.processor, self.batch_size, self.seed, self.told = processor, batch_size, seed, told

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rng = np.random.default_rng([self.seed, 2 + self.told])
        while True:
            frames = 8 if rng.random() < 0.4 else 1
            count = self.batch_size // 2 if frames == 8 and not self.told else self.batch_size
            examples = [self._example(rng, frames) for _ in range(count)]
            pad_id = self.processor.tokenizer.pad_token_id
            if not self.told:
                yield collate(examples, pad_id=pad_id)
            else:
                padded = pad_sequence(
                    [e["input_ids"] for e in examples], batch_first=True, padding_value=pad_id
                )
                labels = pad_sequence(
                    [e["labels"] for e in examples], batch_first=True, padding_value=IGNORED
                )
                yield {"input_ids": padded, "labels": labels}

    def _example(self, rng: np.random.Generator, frames: int) -> dict[str, Tensor]:
        sight = appearance.draw_sight(rng, frames=frames)
        turns = [Turn(str(rng.choice(CAPTION_PROMPTS)), sight.caption)] if rng.random() < 0.4 else []
        wordings = rng.choice(list(WORDINGS), size=3, p=list(WORDINGS.values()))
        turns += [ask(choice, str(wording)) for choice, wording in zip(sight.choices, wordings, strict=False)]
        turns = [turns[i] for i in rng.permutation(len(turns))]
        if not self.told:
            return encode(self.processor, to_clip(sight), turns, compress=False)
        text = conversation_text(turns, video_token=sight.caption)
        ids = self.processor.tokenizer(text, return_tensors="pt")["input_ids"][0]
        return {"input_ids": ids, "labels": answer_labels(ids, self.processor.tokenizer)}


# How a choice is put, and how often. A model this small learns to answer in an option's words, not its letter
# (tried: at chance after 600 steps); the judges of both benchmarks accept that.
WORDINGS = {"plain": 0.3, "letter": 0.4, "favor": 0.3}


def ask(choice: Choice, wording: str) -> Turn:
    """The choice as an open question, as a MotionBench question, or as a FAVOR-Bench question."""
    if wording == "plain":
        return Turn(choice.text, choice.answer)
    prompt = favor.favor_prompt if wording == "favor" else motionbench.motionbench_prompt
    return Turn(prompt(as_question(choice, wording)), choice.answer)


def as_question(choice: Choice, wording: str) -> Question:
    """The choice as a benchmark row would carry it."""
    if wording == "favor":
        return Question("", choice.task, choice.text, choice.options, choice.answer, choice.text)
    letters = [chr(ord("A") + i) for i in range(len(choice.options))]
    raw = "\n".join([choice.text, *(f"{a}. {o}" for a, o in zip(letters, choice.options, strict=True))])
    return Question(
        "", choice.task, choice.text, choice.options, letters[choice.options.index(choice.answer)], raw
    )


def to_clip(sight: appearance.Sight) -> Clip:
    """The sight as `read_clip` would return it."""
    return Clip(sight.frames, np.arange(len(sight.frames)) / 2.0)


@torch.no_grad()
def measure(
    model: VideoLlama3ForConditionalGeneration, processor: VideoLlama3Processor, *, sights: int, seed: int
) -> dict[str, float]:
    """Percent right by kind of question and wording, on pictures and clips in equal parts."""
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
            said = processor.tokenizer.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            question = as_question(choice, wording)
            if wording == "favor":
                correct = judge_favor(said, choice.answer, choice.options)
            else:
                correct = parse_letter(said, choice.options) == question.answer
            for kind in ("all", choice.task, wording, "clips" if index % 2 else "pictures"):
                right[kind].append(correct)
    return {kind: 100 * sum(values) / len(values) for kind, values in right.items()}


def learn_to_see(
    model: VideoLlama3ForConditionalGeneration, processor: VideoLlama3Processor, *, steps: int, seed: int
) -> None:
    """Train encoder and projector: each token to point at the embeddings of the words for what it shows."""
    tower, projector = model.model.vision_model, model.model.projector
    embeddings = model.get_input_embeddings().weight.detach()

    def loss(batch: tuple[Tensor, ...]) -> Tensor:
        pixels, grid_thw, merge_sizes, words = batch
        seen = projector(tower(pixels, grid_thw, merge_sizes).last_hidden_state) @ embeddings.T
        return -(words * F.log_softmax(seen, dim=-1)).sum(-1).mean()

    matrices = [p for p in tower.encoder.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in (*tower.parameters(), *projector.parameters()) if id(p) not in chosen]
    _descend(
        "seeing", loss, others, matrices, Pictures(processor, batch_size=96, seed=seed), steps=steps, lr=2e-3
    )


def learn_to_talk(
    model: VideoLlama3ForConditionalGeneration,
    processor: VideoLlama3Processor,
    *,
    steps: int,
    seed: int,
    told: bool,
    lr: float = 2e-3,
) -> None:
    """Train the language model on conversations about sights told in words, or about what is shown."""
    core = model.model

    def loss(batch: dict[str, Tensor]) -> Tensor:
        labels = batch.pop("labels")[:, 1:]
        hidden = (core.language_model(batch["input_ids"]) if told else core(**batch)).last_hidden_state
        said = labels != IGNORED
        each = F.cross_entropy(model.lm_head(hidden[:, :-1][said]), labels[said], reduction="none")
        # Every answer counts the same: a letter would drown among the words of captions.
        weights = answer_weights(labels)[said]
        return (each * weights).sum() / weights.sum()

    matrices = [p for p in core.language_model.layers.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    trained = core.language_model.layers if told else nn.ModuleList([core.language_model, core.projector])
    others = [p for p in trained.parameters() if id(p) not in chosen]
    sights = Sights(processor, batch_size=24, seed=seed, told=told)
    _descend("reading" if told else "talking", loss, others, matrices, sights, steps=steps, lr=lr)


def answer_weights(labels: Tensor) -> Tensor:
    """1 / length of the answer at each of its tokens, 0 elsewhere.

    Shape:
        (B, S) -> (B, S).
    """
    said = labels != IGNORED
    starts = said & ~F.pad(said, (1, 0))[:, :-1]
    answer = starts.long().cumsum(-1) * said
    lengths = torch.zeros(len(labels), int(answer.max()) + 1).scatter_add_(1, answer, said.float())
    return said / lengths.gather(1, answer).clamp_min(1)


def _descend(
    name: str,
    loss: Callable[[Any], Tensor],
    others: list[nn.Parameter],
    matrices: list[nn.Parameter],
    data: IterableDataset[Any],
    *,
    steps: int,
    lr: float,
) -> None:
    """AdamW on `others`, Muon on `matrices`; linear warm-up, cosine to zero."""
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    ]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=10 * lr, weight_decay=0.05))
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    batches = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4))
    columns: list[Any] = [TextColumn(name), BarColumn(), TextColumn("{task.completed}/{task.total}")]
    with Progress(*columns, TextColumn("{task.fields[loss]}"), TimeRemainingColumn()) as progress:
        task, mean = progress.add_task("", total=steps, loss=""), 0.0
        for step in range(steps):
            factor = warmup_cosine(step, total=steps, warmup=max(1, steps // 20))
            for group, rate in groups:
                group["lr"] = rate * factor
            value = loss(next(batches))
            value.backward()
            torch.nn.utils.clip_grad_norm_([*others, *matrices], 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            mean = value.item() if step == 0 else 0.98 * mean + 0.02 * value.item()
            progress.update(task, advance=1, loss=f"loss {mean:.3f}")
            if step % 100 == 99:
                progress.console.print(f"{name} {step + 1}: loss {mean:.3f}")


def _corpus() -> list[str]:
    """Text with every word the world and the benchmarks' prompts use."""
    rng = np.random.default_rng(0)
    texts = list(CAPTION_PROMPTS)
    for _ in range(400):
        sight = appearance.draw_sight(rng, frames=8)
        scene = scenes.draw_scene_plan(rng)
        choices = [
            *sight.choices,
            *scenes.motionbench_choices(scene, rng),
            *scenes.favor_choices(scene, rng),
        ]
        texts += [sight.caption, scenes.caption(scene, rng)]
        for choice in choices:
            turns = [ask(choice, wording) for wording in WORDINGS]
            texts += [text for turn in turns for text in (turn.question, str(turn.answer))]
    texts += [f"Time {t / 10:.1f}s:,\n" for t in range(100)]
    return texts


if __name__ == "__main__":
    main()
