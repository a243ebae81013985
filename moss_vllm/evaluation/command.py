"""The common part of the scripts in eval/: choose the folder, ask or merge, print and write the result."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moss_vllm.data.rows import BenchmarkVideo
from moss_vllm.data.world.benchmarks import is_of_motion_world
from moss_vllm.evaluation.asking import Reading, evaluate, fit_protocol
from moss_vllm.evaluation.options import RESULT_FOLDERS
from moss_vllm.evaluation.protocols import CLIP_SETTINGS, Benchmark, Questions, restore_protocol
from moss_vllm.evaluation.questions import digest_data, look_over
from moss_vllm.evaluation.result import QUESTION_SCHEMA, Result, collect
from moss_vllm.runtime.flags import choose_device
from moss_vllm.runtime.line_store import ANSWERS, Shard, read_answers
from moss_vllm.runtime.precision import DTYPES
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.runtime.spelling import again
from moss_vllm.video.cache import choose_reader
from moss_vllm.video.clip import PAPER_SAMPLING, Sampling
from moss_vllm.vlm.checkpoint import load


def choose_folder(args: argparse.Namespace, script: str, name: str, benchmark: Benchmark) -> Path:
    """`--out`, or runs/eval/SCRIPT/NAME[-step-NNNNNN] with the options that were set: -test-84px-still."""
    if args.out:
        return Path(args.out)
    parts, ckpt = [Path(name).name], Path(args.ckpt).resolve().name
    parts += [ckpt] if ckpt.startswith("step-") else []  # NAME is the run's, for all its checkpoints
    split = getattr(args, "split", "dev")
    parts += [split] if split != "dev" else []
    parts += [args.protocol] if args.protocol != next(iter(benchmark.protocols)) else []
    parts += [args.clip_settings] if args.clip_settings else []
    parts += [f"{args.sample_fps:g}fps"] if args.sample_fps is not None else []
    parts += [f"{args.short_side_px}px"] if args.short_side_px is not None else []
    parts += [f"{args.max_frames}frames"] if args.max_frames is not None else []
    parts += [] if args.compress_tokens is None else ["compress" if args.compress_tokens else "no-compress"]
    parts += ["still"] if args.still else []
    return RESULT_FOLDERS / script / "-".join(parts)


def run(
    args: argparse.Namespace,
    script: str,
    data: Path,
    videos: Sequence[BenchmarkVideo],
    benchmark: Benchmark,
) -> tuple[Result, Path]:
    """Ask the open questions, or with `--merge` none; returns the result of all processes and its folder.

    Raises: ValueError for options that contradict each other, and as `look_over` and `evaluate`; SystemExit
    if another process of this machine reports the data that cannot be used.
    """
    shard = Shard.from_environment()
    if args.merge:
        result, out = merge(args, videos, benchmark)
    else:
        read = choose_reader(args.cache, args.cache_gib, args.decoder)
        choose_device(args)
        chosen = {name: getattr(args, name) for name in PAPER_SAMPLING.settings}
        Sampling(
            **{name: value for name, value in chosen.items() if value is not None}
        )  # refuse a flag out of range before the model is opened
        protocol = benchmark.protocols[args.protocol]
        choice: dict[str, Any] = {"limit": args.limit, "allow_missing": args.allow_missing}
        try:
            questions = look_over(benchmark, videos, protocol.prompt, **choice)
        except ValueError:
            if int(os.environ.get("LOCAL_RANK", 0)):
                # The machine's first process reports it; status 1 here could make the launcher end that one.
                raise SystemExit(0) from None
            raise
        device = f"{args.device}:{os.environ['LOCAL_RANK']}" if _is_one_of_many(args, shard) else args.device
        loaded = load(args.ckpt, device=device, dtype=DTYPES[args.precision])
        named = CLIP_SETTINGS.get(args.clip_settings, {})
        asked = {**named, **{name: value for name, value in vars(args).items() if value is not None}}
        protocol = protocol.adapt(loaded.run.get("protocol", {}), asked)
        protocol = fit_protocol(protocol, loaded.processor, asked)
        out = choose_folder(args, script, loaded.name, benchmark)
        result = evaluate(
            loaded,
            questions,
            protocol,
            out=out,
            batch_size=args.batch_size,
            overwrite=args.overwrite,
            shard=shard,
            reading=Reading(read, args.decoder, args.workers),
        )
    if result.score and is_of_motion_world(data.resolve()):
        result.motion_world = True
        result.notes.append("these data are the motion world: no number compares with the paper's")
    return result, out


def merge(
    args: argparse.Namespace, videos: Sequence[BenchmarkVideo], benchmark: Benchmark
) -> tuple[Result, Path]:
    """The result of the answers in `--out`, without a model.

    Raises: FileNotFoundError for a folder without answers, ValueError for answers to other questions.
    """
    stored = read_answers(args.out / ANSWERS, QUESTION_SCHEMA)
    if stored.header is None:
        raise FileNotFoundError(f"{args.out / ANSWERS}: holds no answers; run without --merge first")
    protocol = restore_protocol(stored.header["protocol"], benchmark)
    questions = Questions(benchmark, videos, args.limit, args.allow_missing)
    these = (benchmark.name, len(questions.every), digest_data(questions.every, protocol.prompt))
    those = tuple(stored.header.get(key) for key in ("benchmark", "questions", "data"))
    if those != these:
        one, other = (f"{count} questions of {name} (digest {data})" for name, count, data in (those, these))
        remedy = "pass the --data, --annotation, --split and --prompt of that run"
        raise ValueError(f"{args.out} has answers to {one}, and these are {other}; {remedy}")
    return collect(stored, questions, protocol), args.out


def merge_command(args: argparse.Namespace, out: Path) -> str:
    """The command that prints the table of the answers in `out`, without a model."""
    flags: dict[str, object] = {"--out": out, "--data": args.data, "--annotation": args.annotation}
    flags |= {f"--{key}": getattr(args, key, None) for key in ("split", "prompt", "limit")}
    words = [word for key, value in flags.items() if value is not None for word in (key, str(value))]
    words += ["--allow-missing"] if args.allow_missing else []
    return again(["--merge", *words])


def finish(result: Result, out: Path, args: argparse.Namespace) -> None:
    """Write and print the table; while questions are pending, say how many and which command merges."""
    if result.pending:
        say(
            f"{result.pending:,} questions are not answered yet, by other processes or a run that was "
            f"stopped; whoever ends last writes the table to {out}, and so does: {merge_command(args, out)}",
            file=sys.stderr,
        )
        if args.merge and args.limit is None:
            say("an evaluation with --limit is merged with the same --limit", file=sys.stderr)
        return
    result.save(out)
    Screen().print(result.table())
    say(f"written to {out}", file=sys.stderr)


def _is_one_of_many(args: argparse.Namespace, shard: Shard) -> bool:
    return shard.processes > 1 and args.device == "cuda" and "LOCAL_RANK" in os.environ
