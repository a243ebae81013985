"""Protocols: how a question is put to a model and its answer judged; printed with every score.

favor_official   FAVOR-Bench's own prompt; an output that contains the right option's text is right
letter           VideoLLaMA3's multiple-choice prompt and parser
motionbench      the question as distributed, and MotionBench's own reduction of an output to one character
likelihood       the prompt of `letter`; the option letter with the highest likelihood, nothing is generated
option_text      the benchmark's default prompt; the option whose text has the lowest mean loss per token
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from moss_vllm.data.favor import FAVOR_TASKS, favor_answer_letter, favor_letter_prompt, favor_prompt
from moss_vllm.data.motionbench import MOTIONBENCH_TASKS, motionbench_prompt
from moss_vllm.data.rows import BenchmarkVideo, Question
from moss_vllm.evaluation.scoring import judge_favor, parse_letter, polish_motionbench
from moss_vllm.video.clip import PAPER_SAMPLING, Sampling
from moss_vllm.video.frames import ANY_SIDES, FrameSize

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CLIP_FIELDS = ("sample_fps", "short_side_px", "max_pixels", "max_frames", "compress_tokens", "still")


@dataclass(frozen=True)
class Protocol:
    """How questions are put to a model and its answers judged, with the clip settings of an evaluation.

    Args:
        name: stands for `prompt` and `judge` in files.
        judge: returns whether the output is right, and the option read from it.
        max_new_tokens: of an answer; None: nothing is generated, an option is the output.
        max_pixels: sets each video's short side by its aspect, in place of `short_side_px`.
        still: the one-frame control: every frame is the middle one, at the same times.
        sides: the sizes of frames that the model takes.
        by_text: without `max_new_tokens` the output is the option whose text has the lowest mean loss per
            token, not the likeliest letter; `name` stands for it, too.
    """

    name: str
    prompt: Callable[[Question], str]
    judge: Callable[[str, Question], tuple[bool, str | None]]
    max_new_tokens: int | None
    sample_fps: float = 2.0
    short_side_px: int | None = 224
    max_pixels: int | None = None
    max_frames: int = 180
    compress_tokens: bool = True
    still: bool = False
    by_text: bool = False
    sides: FrameSize = ANY_SIDES

    def adapt(self, *preferences: Mapping[str, Any]) -> "Protocol":
        """The protocol with the clip settings in `preferences`; later ones win, None means not set."""
        clip_settings: dict[str, Any] = {}
        for one in preferences:
            new = {key: one[key] for key in CLIP_FIELDS if one.get(key) is not None}
            clip_settings |= {"max_pixels": None, **new} if "short_side_px" in new else new
        return replace(self, **clip_settings)

    @property
    def sampling(self) -> Sampling:
        """How clips are read, unless `max_pixels` sets their short side."""
        return Sampling(self.sample_fps, self.short_side_px, self.max_frames, self.sides)

    @property
    def settings(self) -> dict[str, Any]:
        """Every field except the functions, as a header has them."""
        named = ("prompt", "judge", "by_text", "sides")  # the name stands for three, the model for the last
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in named}

    def choices(self, question: Question) -> list[str]:
        """What is scored where nothing is generated: the letters, or each text once, stripped."""
        letters = list(LETTERS[: len(question.options)])
        return list(dict.fromkeys(map(str.strip, question.options))) if self.by_text else letters

    def scores_by_letter(self, question: Question, scores: Mapping[str, float]) -> dict[str, float]:
        """The scores of `choices` by the options' letters; options of one text have one score."""
        if not self.by_text:
            return dict(scores)
        return {letter: scores[text.strip()] for letter, text in zip(LETTERS, question.options, strict=False)}

    def __str__(self) -> str:
        size = f"short side {self.short_side_px} px" if self.short_side_px else "full size"
        size = f"at most {self.max_pixels:,} pixels" if self.max_pixels else size
        kept = "token compression" if self.compress_tokens else "no token compression"
        still = "; one-frame control: every frame is the middle one" if self.still else ""
        answers = f", answers of up to {self.max_new_tokens} tokens"
        if self.max_new_tokens is None:
            scored = "mean loss per token of an option's text" if self.by_text else "option likelihood"
            answers = f" ({scored}, nothing is generated)"
        clips = f"{self.sample_fps:g} fps, {size}, up to {self.max_frames} frames, {kept}"
        return f"{self.name}{answers}: {clips}{still}"


def judge_letter(output: str, question: Question) -> tuple[bool, str | None]:
    """MotionBench: the letter in the output must be the answer's."""
    letter = parse_letter(output, question.options)
    return letter is not None and letter == question.answer, letter


def judge_motionbench(output: str, question: Question) -> tuple[bool, str | None]:
    """MotionBench's own rule: the character that the output is reduced to must be the answer's letter."""
    letter = polish_motionbench(output)
    return letter == question.answer, letter if letter in list(LETTERS[: len(question.options)]) else None


def judge_favor_letter(output: str, question: Question) -> tuple[bool, str | None]:
    """FAVOR-Bench: the letter in the output must be that of the answer's text."""
    letter = parse_letter(output, question.options)
    return letter is not None and letter == favor_answer_letter(question), letter


def judge_favor_text(output: str, question: Question) -> tuple[bool, str | None]:
    """FAVOR-Bench's own rule; all options in the output are read, except those inside longer ones."""
    named = [option.strip() for option in question.options if option.strip().lower() in output.lower()]
    whole = [option for option in named if not any(option != other and option in other for other in named)]
    correct = question.answer is not None and judge_favor(output, question.answer, question.options)
    return correct, "; ".join(whole) or None


def judge_option(output: str, question: Question) -> tuple[bool, str | None]:
    """MotionBench: the letter of the first option with this text must be the answer's."""
    letter = LETTERS[[option.strip() for option in question.options].index(output)]
    return letter == question.answer, letter


def judge_favor_option(output: str, question: Question) -> tuple[bool, str | None]:
    """FAVOR-Bench: its own rule for an output that is an option's text, without blanks around texts."""
    answer, options = question.answer, [option.strip() for option in question.options]
    return answer is not None and judge_favor(output, answer.strip(), options), output


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's name in Table 5, its tasks (code -> name), its protocols; the first is the default."""

    name: str
    tasks: Mapping[str, str]
    protocols: Mapping[str, Protocol]


MOTIONBENCH = Benchmark(
    "MotionBench-Dev",
    MOTIONBENCH_TASKS,
    {
        "letter": Protocol("letter", motionbench_prompt, judge_letter, 16),
        "motionbench": Protocol("motionbench", motionbench_prompt, judge_motionbench, 16),
        "likelihood": Protocol("likelihood", motionbench_prompt, judge_letter, None),
        "option_text": Protocol("option_text", motionbench_prompt, judge_option, None, by_text=True),
    },
)
FAVOR_BENCH = Benchmark(
    "FAVOR-Bench",
    FAVOR_TASKS,
    {
        "favor_official": Protocol("favor_official", favor_prompt, judge_favor_text, 256),
        "letter": Protocol("letter", favor_letter_prompt, judge_favor_letter, 16),
        "likelihood": Protocol("likelihood", favor_letter_prompt, judge_favor_letter, None),
        "option_text": Protocol("option_text", favor_prompt, judge_favor_option, None, by_text=True),
    },
)


BENCHMARKS = {benchmark.name: benchmark for benchmark in (FAVOR_BENCH, MOTIONBENCH)}


@dataclass(frozen=True)
class Questions:
    """A benchmark's questions and which of them to ask; `look_over` fills in the videos that fail.

    Args:
        limit: the number of questions to ask, in the order of the data; None: all.
        allow_missing: count questions about failed videos as wrong.
        failed: why videos cannot be read, by their ids.
    """

    benchmark: Benchmark
    videos: Sequence[BenchmarkVideo]
    limit: int | None = None
    allow_missing: bool = False
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def every(self) -> list[Question]:
        """Every question of the data, asked or not."""
        return [question for video in self.videos for question in video.questions]


def restore_protocol(settings: Mapping[str, Any], benchmark: Benchmark = MOTIONBENCH) -> Protocol:
    """The protocol whose `settings` a header has; fields that this version does not know are dropped.

    Prompt and judge are those of the benchmark's protocol of that name, or of its default one.
    """
    usual = benchmark.protocols.get(settings["name"]) or next(iter(benchmark.protocols.values()))
    names = {f.name for f in fields(Protocol)} - {"sides"}
    return replace(usual, **{key: settings[key] for key in settings if key in names})


# Clip settings by name: the paper's (Sec. 4.5), and those of FAVOR-Bench's script for its example model.
CLIP_SETTINGS: dict[str, dict[str, Any]] = {
    "paper": PAPER_SAMPLING.settings,
    "favor_official": {"sample_fps": 1.0, "max_pixels": 360 * 420, "max_frames": 180},
}
