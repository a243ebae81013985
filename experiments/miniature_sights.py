"""Training data of `experiments/make_miniature.py`: endless sights as pixels and conversations."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    raise SystemExit("experiments/miniature_sights.py is a part of make_miniature.py, not a command")

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from moss_vllm.data import favor, motionbench
from moss_vllm.data.rows import CAPTION_PROMPT, Question, Turn
from moss_vllm.data.world import appearance, scenes
from moss_vllm.data.world.scenes import Choice
from moss_vllm.video.clip import Clip
from moss_vllm.vlm.checkpoint import Loaded, load

if TYPE_CHECKING:
    from miniature_families import Family

CAPTION_PROMPTS = (CAPTION_PROMPT, "Describe the video.", "What is in the video?")
# Wordings of a question, and how often each. A model this small learns to answer in an option's words and not
# with its letter (tried: at chance after 600 steps); the judges of both benchmarks accept that.
WORDINGS = {"plain": 0.5, "letter": 0.25, "favor": 0.25}
CLIP_SHARE, CAPTION_SHARE, MOST_QUESTIONS = 0.35, 0.5, 5


class Sights(IterableDataset[Any]):
    """Batches number `first`, `first` + 1, ... of a stage, each drawn from its own seed.

    `make` draws one from a generator.
    """

    def __init__(self, make: Callable[[np.random.Generator], Any], seed: Sequence[int], first: int) -> None:
        self.make, self.seed, self.first = make, seed, first

    def __iter__(self) -> Iterator[Any]:
        for number in itertools.count(self.first):
            yield self.make(np.random.default_rng([*self.seed, number]))


@dataclass(frozen=True)
class Pictures:
    """Draws pictures with the words for the content of each 28 px cell."""

    family: "Family"
    processor: Any
    batch_size: int = 64

    def __call__(self, rng: np.random.Generator) -> tuple[dict[str, Tensor], Tensor]:
        """What `Family.see` is given of the pictures, and words (cells, words)."""
        sights = [appearance.draw_sight(rng, frames=1) for _ in range(self.batch_size)]
        words = cell_words(sights, self.processor)
        shown = self.family.show(self.processor, [sight.frames for sight in sights])
        return shown, words / words.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Matches:
    """Draws pictures and clips with the tokens that the first miniature makes of them.

    A step of two frames has the mean of both frames' tokens.
    """

    family: "Family"
    first: "Family"
    processor: Any
    batch_size: int = 32

    def __call__(self, rng: np.random.Generator) -> tuple[dict[str, Tensor], Tensor]:
        """What `Family.see` is given, and tokens (cells, channels): half of the steps are of clips."""
        half = self.batch_size // 2
        lengths = [1] * half + [self.family.frames] * max(1, 2 * half // self.family.frames)
        clips = [appearance.draw_sight(rng, frames=frames, fps=self.family.fps).frames for frames in lengths]
        teacher = first_miniature()
        with torch.no_grad():
            tokens = self.first.see(teacher.model, **self.first.show(teacher.processor, clips))
        steps = []
        for clip in tokens.unflatten(0, (-1, appearance.CELLS)).split(lengths):
            pairs = clip if len(clip) == 1 else clip.unflatten(0, (-1, 2)).mean(1)
            steps.append(pairs.flatten(0, 1))
        return self.family.show(self.processor, clips), torch.cat(steps)


@dataclass(frozen=True)
class Conversations:
    """Draws conversations about pictures or clips; `described`: with the words of each cell in `words`."""

    family: "Family"
    processor: Any
    described: bool
    batch_size: int = 24

    def __call__(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """A batch as from `Family.collate`."""
        family, is_clip = self.family, rng.random() < CLIP_SHARE
        frames, count = (family.frames, self.batch_size // 2) if is_clip else (1, self.batch_size)
        kinds = appearance.TOLD_APART_KINDS
        sights = [
            appearance.draw_sight(rng, frames=frames, fps=family.fps, kinds=kinds) for _ in range(count)
        ]
        examples = [
            family.encode(
                self.processor, to_clip(sight, family.fps), choose_turns(sight, rng), compress=False
            )
            for sight in sights
        ]
        batch = family.collate(examples, pad_id=self.processor.tokenizer.pad_token_id)
        return {**batch, "words": cell_words(sights, self.processor)} if self.described else batch


@cache
def first_miniature() -> Loaded:
    """The miniature VideoLLaMA3 of the package, which the others learn to see from."""
    return load("miniature")


def draw_pictures(seed: int, count: int = 64) -> list[Any]:
    """Pictures as clips of one frame, (1, H, W, 3) each."""
    rng = np.random.default_rng(seed)
    return [appearance.draw_sight(rng, frames=1).frames for _ in range(count)]


def cell_words(sights: Sequence[appearance.Sight], processor: Any) -> Tensor:
    """1 at every word for the content of a cell.

    Shape:
        (cells of all sights, words of the tokenizer).
    """
    cells = [cell for sight in sights for cell in sight.cells]
    distinct = list(set(cells))
    ids = dict(zip(distinct, processor.tokenizer(distinct)["input_ids"], strict=True))
    words = torch.zeros(len(cells), len(processor.tokenizer))
    for row, cell in zip(words, cells, strict=True):
        row[ids[cell]] = 1
    return words


def choose_turns(sight: appearance.Sight, rng: np.random.Generator) -> list[Turn]:
    """A few of a sight's questions, of each task about as many, often with its caption among them."""
    by_task: dict[str, list[Choice]] = defaultdict(list)
    for choice in sight.choices:
        by_task[choice.task].append(choice)
    turns = [Turn(str(rng.choice(CAPTION_PROMPTS)), sight.caption)] if rng.random() < CAPTION_SHARE else []
    tasks = rng.permutation(list(by_task))[:MOST_QUESTIONS]
    wordings = rng.choice(list(WORDINGS), size=len(tasks), p=list(WORDINGS.values()))
    turns += [ask(scenes.pick(rng, by_task[t]), str(w)) for t, w in zip(tasks, wordings, strict=True)]
    return [turns[i] for i in rng.permutation(len(turns))]


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


def to_clip(sight: appearance.Sight, fps: float) -> Clip:
    """The sight in the form that `read_clip` returns."""
    return Clip(sight.frames, np.arange(len(sight.frames)) / fps)


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
