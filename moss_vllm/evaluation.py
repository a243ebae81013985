"""Ask a model a benchmark's multiple-choice questions, judge its answers, and keep every answer on disk.

    videos -> read ahead (threads) -> batches of questions, left-padded -> generate, greedy -> store -> Result

What the scripts in eval/ have in common is here as well: their options, their default folder, how they fail.
"""

import argparse
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moss_vllm import report
from moss_vllm.answer_store import describe_run, open_store
from moss_vllm.core import MOSS
from moss_vllm.data.chat import PER_VIDEO, Turn, collate, encode
from moss_vllm.data.favor import favor_answer_letter, favor_letter_prompt, favor_prompt
from moss_vllm.data.motionbench import motionbench_prompt
from moss_vllm.data.rows import BenchmarkVideo, Question
from moss_vllm.data.video import Clip, read_clip
from moss_vllm.scoring import Judged, Score, chance_accuracy, judge_favor, parse_letter, score
from moss_vllm.vlm.checkpoint import Loaded

READERS = 2  # threads; each holds one decoded video, and as many wait decoded


@dataclass(frozen=True)
class Protocol:
    """How questions are put to a model and its answers judged; `name` stands for the two functions.

    `judge` returns whether the output is right and what was read from it. `still` is the one-frame control:
    the middle frame in place of every frame, at the same times.
    """

    name: str
    prompt: Callable[[Question], str]
    judge: Callable[[str, Question], tuple[bool, str | None]]
    max_new_tokens: int
    sample_fps: float = 2.0
    short_side_px: int | None = 224
    max_frames: int = 180
    compress_tokens: bool = True
    still: bool = False

    def adapt(self, *preferences: Mapping[str, Any]) -> "Protocol":
        """The protocol with the clip settings of `preferences`; later ones win, None stands for not set."""
        clip = ("sample_fps", "short_side_px", "max_frames", "compress_tokens", "still")
        wanted = {key: one[key] for one in preferences for key in clip if one.get(key) is not None}
        return replace(self, **wanted)

    @property
    def settings(self) -> dict[str, Any]:
        """Every field but the functions."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("prompt", "judge")}

    def __str__(self) -> str:
        size = f"short side {self.short_side_px} px" if self.short_side_px else "full size"
        kept = "token compression" if self.compress_tokens else "no token compression"
        still = "; one-frame control: every frame is the middle one" if self.still else ""
        return f"{self.name}: {self.sample_fps:g} fps, {size}, up to {self.max_frames} frames, {kept}{still}"


def judge_motionbench(output: str, question: Question) -> tuple[bool, str | None]:
    """Right is the answer's letter."""
    letter = parse_letter(output, question.options)
    return letter is not None and letter == question.answer, letter


def judge_favor_letter(output: str, question: Question) -> tuple[bool, str | None]:
    """Right is the letter of the answer's text."""
    letter = parse_letter(output, question.options)
    return letter == favor_answer_letter(question), letter


def judge_favor_text(output: str, question: Question) -> tuple[bool, str | None]:
    """Right as FAVOR-Bench's own script judges; read are the options named, without those inside others."""
    named = [option.strip() for option in question.options if option.strip().lower() in output.lower()]
    whole = [option for option in named if not any(option != other and option in other for other in named)]
    correct = question.answer is not None and judge_favor(output, question.answer, question.options)
    return correct, "; ".join(whole) or None


MOTIONBENCH_PROTOCOLS = {"letter": Protocol("letter", motionbench_prompt, judge_motionbench, 16)}
FAVOR_PROTOCOLS = {
    "favor_official": Protocol("favor_official", favor_prompt, judge_favor_text, 256),
    "letter": Protocol("letter", favor_letter_prompt, judge_favor_letter, 16),
}


@dataclass
class Result:
    """What a run found; `records` are the store's lines of the questions asked, in the order of the data."""

    header: dict[str, Any]
    run: dict[str, Any]
    protocol: Protocol
    tasks: Mapping[str, str]
    records: list[dict[str, Any]]
    chance: dict[str, float]
    seconds: float
    resumed: int
    notes: list[str] = field(default_factory=list)

    @property
    def judged(self) -> list[Judged]:
        """Every question asked whose answer is public."""
        scored = [record for record in self.records if record["answer"] is not None]
        return [Judged(r["uid"], r["task"], r["correct"], r["parsed"] is not None) for r in scored]

    @property
    def score(self) -> Score | None:
        """Counts and percent; None where no question asked has a public answer."""
        return score(self.judged, self.tasks) if self.judged else None

    @property
    def partial(self) -> str:
        """How many of the questions were asked, if not all."""
        asked, total = len(self.records), self.header["questions"]
        return f"partial: {asked} of {total} questions" if asked < total else ""

    def table(self, benchmark: str) -> report.Table:
        """The benchmark's part of Table 5: the paper's rows, chance, this model, number of questions."""
        notes = [f"protocol {self.protocol}", *self.notes]
        return report.benchmark_table(
            benchmark, self.header["checkpoint"], self.score, self.chance, partial=self.partial, notes=notes
        )

    def save(self, out: Path, benchmark: str) -> None:
        """Write `result.json` (unrounded) and `table.md`."""
        found = self.score
        counts = {} if found is None else {k: getattr(found, k) for k in ("correct", "answered", "total")}
        told = {
            "benchmark": benchmark,
            **self.header,
            "asked": len(self.records),
            "partial": self.partial or None,
            "accuracy_percent": {} if found is None else found.accuracy,
            "counts": counts,
            "chance_percent": self.chance,
            "seconds": self.seconds,
            "answered_by_earlier_runs": self.resumed,
            "notes": self.notes,
            "run": self.run,
        }
        out.mkdir(parents=True, exist_ok=True)
        (out / "result.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        (out / "table.md").write_text(self.table(benchmark).markdown(), encoding="utf-8")


def evaluate(
    loaded: Loaded,
    videos: Sequence[BenchmarkVideo],
    tasks: Mapping[str, str],
    protocol: Protocol,
    *,
    store: Path,
    batch_size: int = 8,
    limit: int | None = None,
    overwrite: bool = False,
    read: Callable[..., Clip] = read_clip,
) -> Result:
    """Answer the questions that `store` has no answer to, `limit` of the data's questions at most.

    `read` has the arguments and the result of `read_clip`; `FrameCache.read` is another such function.

    Raises: ValueError for a number below 1, no question, or a store of another run; BadVideo for a video that
    cannot be read, after the answers to earlier batches were stored.
    """
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    questions = [question for video in videos for question in video.questions]
    if not questions:
        raise ValueError("no question to ask; check that the reader returned any")
    asked = questions[:limit]
    header = describe_run(loaded, questions, settings=protocol.settings, prompt=protocol.prompt)
    answered = open_store(store, header, overwrite=overwrite)
    if moss := next((module for module in loaded.model.modules() if isinstance(module, MOSS)), None):
        print(moss.path(), file=sys.stderr)
    resumed, started = sum(question.uid in answered for question in asked), time.monotonic()
    left = {question.uid for question in asked} - answered.keys()
    batches = report.show_progress(_batches(loaded, videos, left, protocol, batch_size, read), len(left))
    with open(store, "a", encoding="utf-8") as file, closing(batches):
        for batch in batches:
            outputs = _generate(loaded, [example for _, _, example in batch], protocol.max_new_tokens)
            for (video, question, _), output in zip(batch, outputs, strict=True):
                correct, parsed = protocol.judge(output, question)
                answered[question.uid] = {
                    "uid": question.uid,
                    "video_id": video.video_id,
                    "task": question.task,
                    "prompt": protocol.prompt(question),
                    "output": output,
                    "parsed": parsed,
                    "answer": question.answer,
                    "correct": None if question.answer is None else correct,
                    "protocol": protocol.name,
                }
                file.write(json.dumps(answered[question.uid]) + "\n")
            file.flush()
    scored = [question for question in asked if question.answer is not None]
    return Result(
        header=header,
        run=loaded.run,
        protocol=protocol,
        tasks=tasks,
        records=[answered[question.uid] for question in asked],
        chance=chance_accuracy(scored) if scored else {},
        seconds=time.monotonic() - started,
        resumed=resumed,
    )


Asked = tuple[BenchmarkVideo, Question, dict[str, Tensor]]


def _batches(
    loaded: Loaded,
    videos: Sequence[BenchmarkVideo],
    left: set[str],
    protocol: Protocol,
    size: int,
    read: Callable[..., Clip],
) -> Iterator[list[Asked]]:
    """Questions `left` to ask, encoded, in batches that go across videos."""
    encoding = threading.Lock()  # a fast tokenizer must not be set up by two threads at once

    def read_video(video: BenchmarkVideo) -> list[Asked]:
        clip = read(
            video.path,
            sample_fps=protocol.sample_fps,
            short_side_px=protocol.short_side_px,
            max_frames=protocol.max_frames,
        )
        clip = hold_middle_frame(clip) if protocol.still else clip
        examples: list[Asked] = []
        for question in (question for question in video.questions if question.uid in left):
            with encoding:
                turns = [Turn(protocol.prompt(question))]
                example = encode(loaded.processor, clip, turns, compress=protocol.compress_tokens)
            if examples:  # the same pictures: hold them once
                example |= {key: examples[0][2][key] for key in PER_VIDEO}
            examples.append((video, question, example))
        return examples

    pending: list[Asked] = []
    for examples in _read_ahead(read_video, [v for v in videos if any(q.uid in left for q in v.questions)]):
        pending += examples
        while len(pending) >= size:
            yield pending[:size]
            pending = pending[size:]
    if pending:
        yield pending


def _read_ahead(
    read: Callable[[BenchmarkVideo], list[Asked]], videos: Iterable[BenchmarkVideo]
) -> Iterator[list[Asked]]:
    """`read` each video in threads while the caller generates; order is kept, an error comes at its place."""
    pool, waiting = ThreadPoolExecutor(READERS, "read"), deque[Future[list[Asked]]]()
    try:
        for video in videos:
            waiting.append(pool.submit(read, video))
            if len(waiting) > 2 * READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def hold_middle_frame(clip: Clip) -> Clip:
    """The clip with its middle frame in place of every frame."""
    middle = clip.frames[len(clip.frames) // 2]
    return Clip(np.repeat(middle[None], len(clip.frames), axis=0), clip.frame_times_s)


@torch.inference_mode()
def _generate(loaded: Loaded, examples: list[dict[str, Tensor]], max_new_tokens: int) -> list[str]:
    model: Any = loaded.model
    tokenizer = loaded.processor.tokenizer
    batch = collate(examples, pad_id=tokenizer.pad_token_id, left=True)
    device = next(loaded.model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
    # A released checkpoint's own settings may sample or penalise repetition; those unused would be warned of.
    unused = {"temperature": None, "top_p": None, "top_k": None}
    greedy = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, **unused}
    with loaded.autocast():
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, **greedy)
    return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def add_options(parser: argparse.ArgumentParser, protocols: Mapping[str, Protocol]) -> None:
    """Options every benchmark's script has beside `--data`; the first of `protocols` is the default."""
    add, usual = parser.add_argument, next(iter(protocols))
    add("--annotation", type=Path, help="another annotation file (default: the one found in --data)")
    ckpt = "checkpoint folder, base model folder, hub id, or miniature (the default)"
    add("--ckpt", default="miniature", help=ckpt)
    out = "folder of the results (default: runs/eval/SCRIPT/NAME[-STEP][-PROTOCOL][-still])"
    add("--out", type=Path, help=out)
    cache = "folder of decoded clips that is read and filled (see scripts/cache_frames.py)"
    add("--cache", type=Path, help=cache)
    add("--overwrite", action="store_true", help="drop the answers in --out and start again")
    add("--batch-size", type=int, default=8, help="questions answered at once (default: 8)")
    add("--limit", type=int, help="ask the first N questions only; the table says it is partial")
    protocol = f"prompt and rule of judging (default: {usual})"
    add("--protocol", choices=protocols, default=usual, help=protocol)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help=f"as torch names it (here: {device})")
    group = parser.add_argument_group("clips", "default: as the checkpoint was trained, else as in the paper")
    add, yes_no = group.add_argument, argparse.BooleanOptionalAction
    add("--sample-fps", type=float, help="frames per second (paper: 2)")
    add("--short-side", type=int, dest="short_side_px", help="pixels (paper: 224)")
    add("--max-frames", type=int, help="thin longer clips evenly to as many (180)")
    add("--compress", action=yes_no, dest="compress_tokens", help="drop unchanged patches (yes)")
    add("--still", action="store_true", help="one-frame control: every frame is the middle one")


def choose_folder(
    args: argparse.Namespace, script: str, name: str, protocols: Mapping[str, Protocol]
) -> Path:
    """`--out`, or runs/eval/SCRIPT/NAME[-step-NNNNNN][-PROTOCOL][-still]; PROTOCOL if not the default."""
    if args.out:
        return args.out
    parts, ckpt = [Path(name).name], Path(args.ckpt).resolve().name
    parts += [ckpt] if ckpt.startswith("step-") else []  # a run's checkpoints all have the run's name
    parts += [args.protocol] if args.protocol != next(iter(protocols)) else []
    parts += ["still"] if args.still else []
    return Path("runs/eval", script, "-".join(parts))
