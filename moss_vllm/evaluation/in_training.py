"""Ask a model questions of a benchmark while it is in training; scores go to evals.jsonl."""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel

from moss_vllm.data.favor import BENCH_FILES, read_favor_bench
from moss_vllm.data.motionbench import META_FILES, read_motionbench
from moss_vllm.data.rows import BadRow, BenchmarkVideo
from moss_vllm.evaluation.asking import Reading, evaluate, fit_protocol
from moss_vllm.evaluation.protocols import FAVOR_BENCH, MOTIONBENCH, Benchmark
from moss_vllm.evaluation.questions import digest_data, find_unreadable, look_over
from moss_vllm.evaluation.tracked_samples import TrackedSamples
from moss_vllm.runtime.screen import say
from moss_vllm.training import engines
from moss_vllm.video.clip import Clip, read_clip
from moss_vllm.vlm.checkpoint import Loaded

SAMPLES = 8  # answers in each line of evals.jsonl; evals/ has all


class Checkup:
    """Asks the model in training; every process calls it, the first one asks while the others wait.

    Args:
        accelerator, model, processor: the run's.
        clip_settings: the run's, as run.json has them.
        data: a MotionBench or FAVOR-Bench folder.
        out: the run's folder.
        read: see `Reading`.

    Raises:
        ValueError: an engine that shards the model, which one process alone cannot ask.
        BadRow: a folder without an annotation of either benchmark, or with one that cannot be used.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: PeftModel,
        processor: Any,
        clip_settings: Mapping[str, Any],
        data: Path,
        out: Path,
        *,
        read: Callable[..., Clip] = read_clip,
    ) -> None:
        engine = engines.name(accelerator)
        if engine.startswith("FSDP") or engine.endswith("ZeRO-3"):
            raise ValueError(
                f"{engine} shards the model, so it cannot be asked in training; drop --eval-data and "
                "evaluate the checkpoints with eval/motionbench.py, or use DDP or ZeRO-2"
            )
        self.accelerator, self.model, self.processor, self.out = accelerator, model, processor, out
        self.read = read
        self.benchmark, self.videos = open_benchmark(data)
        self.tracked = TrackedSamples(accelerator, {video.video_id: video.path for video in self.videos})
        usual = next(iter(self.benchmark.protocols.values()))
        self.protocol = fit_protocol(usual.adapt(clip_settings), processor)

    def choose(self, count: int) -> None:
        """Keep `count` of the questions, evenly spread over the file.

        Raises: ValueError naming each of their videos that cannot be read, before the first step.
        """
        every = [question.uid for video in self.videos for question in video.questions]
        count = min(count, len(every))
        kept = {every[number * len(every) // count] for number in range(count)}
        chosen = [tuple(q for q in video.questions if q.uid in kept) for video in self.videos]
        self.videos = [
            dataclasses.replace(video, questions=questions)
            for video, questions in zip(self.videos, chosen, strict=True)
            if questions
        ]
        if bad := find_unreadable(self.videos):
            counted = f"{len(bad)} of the {len(self.videos)} videos to ask about"
            raise ValueError(f"{'; '.join(bad.values())} ({counted})")

    def digest(self) -> str:
        """A digest of the chosen questions with their prompts and answers."""
        return digest_data([q for video in self.videos for q in video.questions], self.protocol.prompt)

    def __call__(self, step: int) -> None:
        """Ask, print, log, and add a line to evals.jsonl."""
        if self.accelerator.is_main_process:
            loaded = Loaded(self.model.eval(), self.processor, "in training", {})
            questions = look_over(self.benchmark, self.videos, self.protocol.prompt, allow_missing=True)
            out = self.out / "evals" / f"step-{step:06d}"
            result = evaluate(
                loaded, questions, self.protocol, out=out, overwrite=True, reading=Reading(self.read)
            )
            for video_id, reason in result.failed.items():  # no reason to stop a run
                say(f"step {step}: {video_id} counts as wrong: {reason}", file=sys.stderr)
            score = result.score
            assert score is not None  # `open_benchmark` reads questions with public answers only
            line: dict[str, Any] = {
                "step": step,
                "benchmark": self.benchmark.name,
                "protocol": self.protocol.name,
                "accuracy": score.accuracy,
                "chance": result.chance,
                "failed": result.failed,
                "counts": {key: getattr(score, key) for key in ("correct", "answered", "total")},
                "samples": self._samples(result.records),
            }
            with (self.out / "evals.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            right, count, chance = score.accuracy["all"], score.total["all"], result.chance["all"]
            say(
                f"step {step}: {self.benchmark.name} {right:.1f} % of {count} questions (chance {chance:.1f})"
            )
            self.accelerator.log({f"eval/{task}": value for task, value in score.accuracy.items()}, step=step)
            self.tracked.log(line["samples"], step)
        self.accelerator.wait_for_everyone()

    def _samples(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same few questions each time."""
        options = {question.uid: question for video in self.videos for question in video.questions}
        return [
            {
                "video": record["video_id"],
                "question": options[record["uid"]].text,
                "options": list(options[record["uid"]].options),
                **{key: record[key] for key in ("answer", "output", "correct")},
            }
            for record in records[:: max(1, len(records) // SAMPLES)][:SAMPLES]
        ]


def open_benchmark(data: Path) -> tuple[Benchmark, list[BenchmarkVideo]]:
    """The benchmark whose files are in the folder, and its questions with public answers.

    Raises: BadRow for a folder with neither benchmark's files, or an annotation that cannot be used.
    """
    if any((data / name).is_file() for name in META_FILES):
        return MOTIONBENCH, read_motionbench(data, data)
    if any((data / name).is_file() for name in BENCH_FILES):
        return FAVOR_BENCH, read_favor_bench(data, data)
    names = ", ".join((*META_FILES, *BENCH_FILES))
    raise BadRow(str(data), "folder", f"holds none of {names}", "pass a MotionBench or FAVOR-Bench folder")
