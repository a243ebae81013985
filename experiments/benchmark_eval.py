"""Questions per second: all questions of a video from one cache, against one question at a time.

    python experiments/benchmark_eval.py                            # the miniature on the CPU, 3 minutes
    python experiments/benchmark_eval.py --shape 2b --device cuda   # the paper's size, random weights, a GPU

Both ways run in this process, in turns, on the same model and the same files of the motion world, with
FAVOR-Bench's 4.6 questions per video, from decoding to text, and their answers are compared. One at a time
means a loop over questions: read the video, run the processor, `generate`. Shown are medians over the repeats
with their extremes, the time of each stage, and memory. Where the motion world is not drawn yet, its part of
FAVOR-Bench alone is drawn, for this run: the same videos and questions in less time.
"""

import argparse
import gc
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from moss_vllm.data.rows import BenchmarkVideo, Question
from moss_vllm.data.world.benchmarks import DEFAULT_ROOT, WorldSize, ensure_world
from moss_vllm.evaluation.protocols import FAVOR_BENCH, Protocol
from moss_vllm.runtime.files import whole_file
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.memory import process_peak_bytes
from moss_vllm.runtime.screen import Screen, say


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    add("--shape", choices=("2b", "7b"), help="random weights of this shape; without, --ckpt")
    add("--ckpt", default="miniature", help="checkpoint or base (default: the miniature)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: %(default)s)")
    add("--video-count", type=int, default=50, help="videos asked about (default: %(default)s)")
    add("--repeats", type=int, default=3, help="repeats of each way (default: %(default)s)")
    add("--protocol", choices=FAVOR_BENCH.protocols, default="letter", help="default: %(default)s")
    add("--sample-fps", type=float, help="frames per second (default: the checkpoint's, else 2)")
    add("--short-side-px", type=int, help="pixels (default: the checkpoint's, else 224)")
    add("--threads", type=int, default=1, help="CPU threads that compute (default: %(default)s)")
    add("--json", type=Path, help="write the results here")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
from measuring import cpu_name

from moss_vllm.core import MOSS
from moss_vllm.core.encoder import stss_path
from moss_vllm.core.presets import VIDEO_LLM
from moss_vllm.data.favor import read_favor_bench
from moss_vllm.data.rows import Turn
from moss_vllm.evaluation.asking import evaluate, read_as
from moss_vllm.evaluation.generation import GREEDY
from moss_vllm.evaluation.questions import look_over
from moss_vllm.runtime.versions import versions
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.attention import choose_attention
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.checkpoint import Loaded
from moss_vllm.vlm.processor import load_processor
from moss_vllm.vlm.sizes import build_shape
from moss_vllm.vlm.video_llama3.chat import collate, encode

MOST_QUESTIONS_A_VIDEO = 5
QUESTIONS_A_VIDEO = (
    5,
    4,
    5,
    4,
    MOST_QUESTIONS_A_VIDEO,
)  # on average 4.6: FAVOR-Bench's 8,184 questions of 1,776 videos
STAGES = ("decode", "encode", "prefill", "answer")
CLAIM = 4.0


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and, if asked, write json; returns what is written."""
    parser = options()
    args = parser.parse_args(argv)
    if min(args.video_count, args.repeats, args.threads) < 1:
        parser.error("--video-count, --repeats and --threads take 1 or more")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU, and torch finds none; leave it out to run on the CPU")
    torch.set_num_threads(args.threads)
    loaded, load_before = open_model(args), os.getloadavg()[0]
    chosen = FAVOR_BENCH.protocols[args.protocol]
    protocol = chosen.adapt(
        loaded.run.get("protocol", {}), {"short_side_px": args.short_side_px, "sample_fps": args.sample_fps}
    )
    ways: dict[str, list[dict[str, Any]]] = {"one at a time": [], "engine": []}
    with tempfile.TemporaryDirectory() as folder:
        videos = make_questions(args.video_count, find_world(args.video_count, Path(folder)))
        measure(loaded, videos[:2], protocol)  # warms up threads, kernels and caches
        for turn in range(args.repeats):
            for way, runs in measure(loaded, videos, protocol).items():
                ways[way].append(runs)
                say(f"{turn + 1} of {args.repeats}, {way}: {runs['seconds']:.1f} s", file=sys.stderr)
    pairs = list(zip(ways["one at a time"], ways["engine"], strict=True))
    question_count = sum(len(video.questions) for video in videos)
    same = min(sum(map(str.__eq__, one.pop("texts"), all_.pop("texts"))) for one, all_ in pairs)
    ratios = [one["seconds"] / together["seconds"] for one, together in pairs]
    record = {
        "command": shlex.join(
            ["python", "experiments/benchmark_eval.py", *(sys.argv[1:] if argv is None else argv)]
        ),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, {args.threads} thread(s) of them used to compute",
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else "not run on a GPU",
        "model": args.shape or loaded.name,
        "protocol": protocol.settings,
        "stss": ": ".join(stss_path(torch.device(args.device), VIDEO_LLM.window)),
        "versions": versions(),
        "load_average_before": load_before,
        "videos": len(videos),
        "questions": question_count,
        "identical_answers": same,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "claim": {"text": f"at least {CLAIM:g}x questions/s", "holds": min(ratios) >= CLAIM},
        "ways": ways,
    }
    show(record)
    if args.json:
        with whole_file(args.json) as part:
            part.write_text(json.dumps(record, indent=1) + "\n")
    return record


def open_model(args: argparse.Namespace) -> Loaded:
    """The checkpoint, or random weights of a shape with the miniature's processor; always with MOSS."""
    if args.shape is None:
        dtype = torch.bfloat16 if args.device == "cuda" else None
        loaded = checkpoint.load(args.ckpt, device=args.device, dtype=dtype)
        if args.ckpt == "miniature":  # has no MOSS: add an untrained one
            base = load_base("miniature", moss=loaded.run["moss"], dtype=dtype)
            loaded = replace(loaded, model=base.to(args.device).eval(), name="miniature with MOSS")
        return loaded
    model: Any = build_shape(args.shape, moss={}, device=args.device, dtype=torch.bfloat16)
    for module in model.modules():
        if isinstance(module, MOSS):
            module.float()  # as `load_base` has it; autocast computes in bf16
    processor = load_processor("miniature")
    tokenizer = processor.tokenizer
    model.config.video_token_id = tokenizer.convert_tokens_to_ids(processor.video_token)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.set_attn_implementation(choose_attention(args.device, torch.bfloat16)[0])
    return Loaded(model.eval(), processor, args.shape, {})


def find_world(count: int, folder: Path) -> Path:
    """The motion world, or one made in `folder` whose FAVOR-Bench begins with the same `count` videos."""
    if (DEFAULT_ROOT / "world.json").is_file():
        return ensure_world()
    # A video of the world has two questions or fewer of its own, so these are of `count` videos or more.
    questions = min(WorldSize.favor_questions, MOST_QUESTIONS_A_VIDEO * count)
    return ensure_world(folder / "world", WorldSize(0, 0, 0, favor_questions=questions))


def make_questions(count: int, world: Path) -> list[BenchmarkVideo]:
    """Videos of the motion world's FAVOR-Bench with questions of the whole benchmark, 4.6 to each."""
    root = world / "FAVOR"
    videos = read_favor_bench(root, root)
    pool = [question for video in videos for question in video.questions]
    made, used = [], 0
    for number in range(count):
        video = videos[number % len(videos)]
        questions: list[Question] = []
        for _ in range(QUESTIONS_A_VIDEO[number % len(QUESTIONS_A_VIDEO)]):
            questions.append(replace(pool[used % len(pool)], uid=f"{number}_{used}"))
            used += 1
        made.append(replace(video, video_id=f"{number}", questions=tuple(questions)))
    return made


def measure(
    loaded: Loaded, videos: Sequence[BenchmarkVideo], protocol: Protocol
) -> dict[str, dict[str, Any]]:
    """Both ways, one after the other."""
    measured = {}
    for name, way in (("one at a time", ask_one_by_one), ("engine", ask_together)):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        texts, stages = way(loaded, videos, protocol)
        seconds = time.perf_counter() - started
        measured[name] = {
            "seconds": seconds,
            "questions_per_s": len(texts) / seconds,
            "videos_per_s": len(videos) / seconds,
            "stages_s": stages,
            "peak_gib": peak_gib(),
            "texts": texts,
        }
    return measured


def ask_together(
    loaded: Loaded, videos: Sequence[BenchmarkVideo], protocol: Protocol
) -> tuple[list[str], dict[str, float]]:
    """`evaluate` as the scripts in eval/ call it, its store included."""
    with tempfile.TemporaryDirectory() as out:
        questions = look_over(FAVOR_BENCH, videos, protocol.prompt)
        result = evaluate(loaded, questions, protocol, out=Path(out))
        lines = [json.loads(line) for line in next(Path(out).rglob("*.jsonl")).read_text().splitlines()[1:]]
    stages = {stage: sum(line["seconds"][stage] for line in lines) for stage in STAGES}
    return [record["output"] for record in result.records], stages


@torch.inference_mode()
def ask_one_by_one(
    loaded: Loaded, videos: Sequence[BenchmarkVideo], protocol: Protocol
) -> tuple[list[str], dict[str, float]]:
    """Each question alone, through transformers' `generate`."""
    model: Any = loaded.model
    device, tokenizer = model.get_input_embeddings().weight.device, loaded.processor.tokenizer
    texts, stages = [], {"decode": 0.0, "generate": 0.0}
    for video in videos:
        for question in video.questions:
            started = time.perf_counter()
            clip = read_as(protocol, str(video.path))
            turns = [Turn(protocol.prompt(question))]
            example = encode(loaded.processor, clip, turns, compress=protocol.compress_tokens)
            batch = collate([example], pad_id=tokenizer.pad_token_id)
            read = time.perf_counter()
            inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
            with loaded.autocast():
                ids = model.generate(**inputs, max_new_tokens=protocol.max_new_tokens, **GREEDY)
            texts.append(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
            stages["decode"] += read - started
            stages["generate"] += time.perf_counter() - read
    return texts, stages


def peak_gib() -> float:
    """Peak memory of the GPU, or without one of the whole process so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return process_peak_bytes() / 2**30


def show(record: dict[str, Any]) -> None:
    """A row for each way, then the ratio."""
    console = Screen(width=140)
    table = Table("way", title=f"{record['questions']} questions about {record['videos']} videos")
    for head in (
        "questions/s",
        "videos/s",
        "seconds of each stage (decoding runs beside the rest)",
        "peak GiB",
    ):
        table.add_column(head, justify="right")
    for way, runs in record["ways"].items():
        middle = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
        spread = sorted(run["questions_per_s"] for run in runs)
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in middle["stages_s"].items())
        speed = f"{middle['questions_per_s']:.1f} ({spread[0]:.1f}-{spread[-1]:.1f})"
        table.add_row(way, speed, f"{middle['videos_per_s']:.1f}", stages, f"{middle['peak_gib']:.2f}")
    ratio = record["ratio"]
    console.print(table)
    console.print(
        f"ratio {ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f}); {record['claim']['text']}: "
        f"{'yes' if record['claim']['holds'] else 'NO'}; {record['identical_answers']} of "
        f"{record['questions']} answers identical; {record['machine']}; {record['gpu']}"
    )


if __name__ == "__main__":
    main()
