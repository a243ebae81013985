"""Training data of `experiments/make_miniature.py`: endless sights as pixels and conversations."""

from collections.abc import Iterator

if __name__ == "__main__":
    raise SystemExit("experiments/miniature_sights.py is a part of make_miniature.py, not a command")

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset
from transformers import VideoLlama3Processor

from moss_vllm.data import favor, motionbench
from moss_vllm.data.rows import CAPTION_PROMPT, Question, Turn
from moss_vllm.data.world import appearance, scenes
from moss_vllm.data.world.scenes import Choice
from moss_vllm.video.clip import Clip
from moss_vllm.vlm.conversation import IGNORED
from moss_vllm.vlm.video_llama3.chat import answer_labels, collate, conversation_text, encode

CAPTION_PROMPTS = (CAPTION_PROMPT, "Describe the video.", "What is in the video?")
# Wordings of a question, and how often each. A model this small learns to answer in an option's words and not
# with its letter (tried: at chance after 600 steps); the judges of both benchmarks accept that.
WORDINGS = {"plain": 0.3, "letter": 0.4, "favor": 0.3}


class Pictures(IterableDataset[tuple[Tensor, ...]]):
    """Endless batches of pictures with the words for the content of each 28 px cell."""

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
    """Endless batches of conversations about sights: described in words, or shown as pictures and clips."""

    def __init__(
        self, processor: VideoLlama3Processor, *, batch_size: int, seed: int, described: bool
    ) -> None:
        self.processor, self.batch_size, self.seed, self.described = processor, batch_size, seed, described

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rng = np.random.default_rng([self.seed, 2 + self.described])
        while True:
            frames = 8 if rng.random() < 0.4 else 1
            count = self.batch_size // 2 if frames == 8 and not self.described else self.batch_size
            examples = [self._example(rng, frames) for _ in range(count)]
            pad_id = self.processor.tokenizer.pad_token_id
            if not self.described:
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
        if not self.described:
            return encode(self.processor, to_clip(sight), turns, compress=False)
        text = conversation_text(turns, video_token=sight.caption)
        ids = self.processor.tokenizer(text, return_tensors="pt")["input_ids"][0]
        return {"input_ids": ids, "labels": answer_labels(ids, self.processor.tokenizer)}


def ask(choice: Choice, wording: str) -> Turn:
    """The choice as an open question, as a MotionBench question, or as a FAVOR-Bench question."""
    if wording == "plain":
        return Turn(choice.text, choice.answer)
    prompt = favor.favor_prompt if wording == "favor" else motionbench.motionbench_prompt
    return Turn(prompt(as_question(choice, wording)), choice.answer)


def as_question(choice: Choice, wording: str) -> Question:
    """The choice as the question of a benchmark row."""
    if wording == "favor":
        return Question("", choice.task, choice.text, choice.options, choice.answer, choice.text)
    letters = [chr(ord("A") + i) for i in range(len(choice.options))]
    raw = "\n".join([choice.text, *(f"{a}. {o}" for a, o in zip(letters, choice.options, strict=True))])
    return Question(
        "", choice.task, choice.text, choice.options, letters[choice.options.index(choice.answer)], raw
    )


def to_clip(sight: appearance.Sight) -> Clip:
    """The sight in the form that `read_clip` returns."""
    return Clip(sight.frames, np.arange(len(sight.frames)) / 2.0)


def corpus() -> list[str]:
    """Texts with every word of the motion world and of the benchmarks' prompts."""
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
