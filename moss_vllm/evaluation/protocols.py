"""How a benchmark's question is put to a model and its answer judged; printed with every score.

favor_official   FAVOR-Bench's own prompt; right is an output with the right option's text in it
letter           VideoLLaMA3's multiple-choice prompt and parser
motionbench      the question as distributed and MotionBench's own reduction to one character
likelihood       no text is generated: the likeliest option letter after the prompt of `letter`
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from moss_vllm.data.favor import FAVOR_TASKS, favor_answer_letter, favor_letter_prompt, favor_prompt
from moss_vllm.data.motionbench import MOTIONBENCH_TASKS, motionbench_prompt
from moss_vllm.data.rows import Question
from moss_vllm.evaluation.scoring import judge_favor, parse_letter, polish_motionbench
from moss_vllm.video.clip import PAPER_SAMPLING, Sampling

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CLIP_FIELDS = ("sample_fps", "short_side_px", "max_pixels", "max_frames", "compress_tokens", "still")


@dataclass(frozen=True)
class Protocol:
    """How questions are put to a model and its answers judged; `name` stands for the two functions.

    `judge` returns whether the output is right and what was read from it. `max_new_tokens` is None where the
    likeliest option letter is the output. `max_pixels` sets each video's short side by its own aspect, and
    `short_side_px` is not used then. `still` is the one-frame control: the middle frame in place of every
    frame, at the same times.
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

    def adapt(self, *preferences: Mapping[str, Any]) -> "Protocol":
        """The protocol with the clip settings of `preferences`; later ones win, None stands for not set."""
        wanted: dict[str, Any] = {}
        for one in preferences:
            given = {key: one[key] for key in CLIP_FIELDS if one.get(key) is not None}
            wanted |= {"max_pixels": None, **given} if "short_side_px" in given else given
        return replace(self, **wanted)

    @property
    def sampling(self) -> Sampling:
        """How clips are read; the short side is another where `max_pixels` sets it."""
        return Sampling(self.sample_fps, self.short_side_px, self.max_frames)

    @property
    def settings(self) -> dict[str, Any]:
        """Every field but the functions."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("prompt", "judge")}

    def __str__(self) -> str:
        size = f"short side {self.short_side_px} px" if self.short_side_px else "full size"
        size = f"at most {self.max_pixels:,} pixels" if self.max_pixels else size
        kept = "token compression" if self.compress_tokens else "no token compression"
        still = "; one-frame control: every frame is the middle one" if self.still else ""
        how = f", answers of up to {self.max_new_tokens} tokens"
        how = " (option likelihood, nothing is generated)" if self.max_new_tokens is None else how
        clips = f"{self.sample_fps:g} fps, {size}, up to {self.max_frames} frames, {kept}"
        return f"{self.name}{how}: {clips}{still}"


def judge_letter(output: str, question: Question) -> tuple[bool, str | None]:
    """MotionBench: right is the answer's letter."""
    letter = parse_letter(output, question.options)
    return letter is not None and letter == question.answer, letter


def judge_motionbench(output: str, question: Question) -> tuple[bool, str | None]:
    """MotionBench's own way: the character it reduces an output to is the answer's letter."""
    letter = polish_motionbench(output)
    return letter == question.answer, letter if letter in list(LETTERS[: len(question.options)]) else None


def judge_favor_letter(output: str, question: Question) -> tuple[bool, str | None]:
    """FAVOR-Bench: right is the letter of the answer's text."""
    letter = parse_letter(output, question.options)
    return letter is not None and letter == favor_answer_letter(question), letter


def judge_favor_text(output: str, question: Question) -> tuple[bool, str | None]:
    """Right as FAVOR-Bench's own script judges; read are the options named, without those inside others."""
    named = [option.strip() for option in question.options if option.strip().lower() in output.lower()]
    whole = [option for option in named if not any(option != other and option in other for other in named)]
    correct = question.answer is not None and judge_favor(output, question.answer, question.options)
    return correct, "; ".join(whole) or None


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
    },
)
FAVOR_BENCH = Benchmark(
    "FAVOR-Bench",
    FAVOR_TASKS,
    {
        "favor_official": Protocol("favor_official", favor_prompt, judge_favor_text, 256),
        "letter": Protocol("letter", favor_letter_prompt, judge_favor_letter, 16),
        "likelihood": Protocol("likelihood", favor_letter_prompt, judge_favor_letter, None),
    },
)


def restore(settings: Mapping[str, Any], benchmark: Benchmark = MOTIONBENCH) -> Protocol:
    """The protocol behind the `settings` of a stored header; fields this version does not have are left out.

    Its functions are those of the benchmark's protocol of that name, where there is one.
    """
    usual = benchmark.protocols.get(settings["name"]) or next(iter(benchmark.protocols.values()))
    known = {field.name for field in fields(Protocol)}
    return replace(usual, **{key: settings[key] for key in settings if key in known})


# By name: the paper's (Sec. 4.5), and what FAVOR-Bench's own script gives its example model.
CLIPS: dict[str, dict[str, Any]] = {
    "paper": asdict(PAPER_SAMPLING),
    "favor_official": {"sample_fps": 1.0, "max_pixels": 360 * 420, "max_frames": 180},
}
