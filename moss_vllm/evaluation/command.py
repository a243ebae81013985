"""What the scripts in eval/ share: their default folder, processes, and how they end."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from moss_vllm.data.rows import BenchmarkVideo
from moss_vllm.evaluation.asking import STORE, digest_data, evaluate, look_over
from moss_vllm.evaluation.protocols import CLIPS, Benchmark, restore
from moss_vllm.evaluation.result import Result, collect
from moss_vllm.runtime.files import refuse_unwritable
from moss_vllm.runtime.flags import choose_device
from moss_vllm.runtime.line_store import Shard, read_answers
from moss_vllm.runtime.precision import DTYPES
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.video.cache import choose_reader
from moss_vllm.vlm.checkpoint import load


def choose_folder(args: argparse.Namespace, script: str, name: str, benchmark: Benchmark) -> Path:
    """`--out`, or runs/eval/SCRIPT/NAME[-step-NNNNNN] and what is not as by default: -test-84px-still."""
    if args.out:
        return Path(args.out)
    parts, ckpt = [Path(name).name], Path(args.ckpt).resolve().name
    parts += [ckpt] if ckpt.startswith("step-") else []  # a run's checkpoints all have the run's name
    split = getattr(args, "split", "dev")
    parts += [split] if split != "dev" else []
    parts += [args.protocol] if args.protocol != next(iter(benchmark.protocols)) else []
    parts += [args.clips] if args.clips else []
    parts += [f"{args.sample_fps:g}fps"] if args.sample_fps is not None else []
    parts += [f"{args.short_side_px}px"] if args.short_side_px is not None else []
    parts += [f"{args.max_frames}frames"] if args.max_frames is not None else []
    parts += [] if args.compress_tokens is None else ["compress" if args.compress_tokens else "no-compress"]
    parts += ["still"] if args.still else []
    return Path("runs/eval", script, "-".join(parts))


def run(
    args: argparse.Namespace,
    script: str,
    data: Path,
    videos: Sequence[BenchmarkVideo],
    benchmark: Benchmark,
) -> tuple[Result, Path]:
    """Ask what is left to ask, or with `--merge` nothing; the result of all processes so far and its folder.

    Raises: ValueError for options that do not go together, and as `evaluate`; SystemExit where another
    process of the machine says that videos or questions cannot be used.
    """
    shard = Shard.from_environment()
    if args.merge:
        result, out = merge(args, videos, benchmark)
    else:
        if args.out:
            refuse_unwritable(args.out, "--out")
        if args.cache_gib is not None and not args.cache:
            raise ValueError(f"--cache-gib {args.cache_gib:g} needs --cache, the folder it limits")
        read = choose_reader(args.cache, args.cache_gib, args.decoder)
        choose_device(args)
        protocol = benchmark.protocols[args.protocol].adapt(CLIPS.get(args.clips, {}), vars(args))
        uids = {q.uid for q in [q for video in videos for q in video.questions][: args.limit]}
        try:
            failed = look_over(videos, uids, protocol, allow_missing=args.allow_missing)
        except ValueError:
            if int(os.environ.get("LOCAL_RANK", 0)):
                # The machine's first process says it: with status 1 here the launcher might end that before.
                raise SystemExit(0) from None
            raise
        device = f"{args.device}:{os.environ['LOCAL_RANK']}" if _is_one_of_many(args, shard) else args.device
        loaded = load(args.ckpt, device=device, dtype=DTYPES[args.precision])
        out = choose_folder(args, script, loaded.name, benchmark)
        preferences = (loaded.run.get("protocol", {}), CLIPS.get(args.clips, {}), vars(args))
        result = evaluate(
            loaded,
            videos,
            benchmark,
            benchmark.protocols[args.protocol].adapt(*preferences),  # of the checkpoint too
            out=out,
            batch_size=args.batch_size,
            limit=args.limit,
            overwrite=args.overwrite,
            allow_missing=args.allow_missing,
            shard=shard,
            read=read,
            decoder=args.decoder,
            failed=failed,
            workers=args.workers,
        )
    if result.score and any((folder / "world.json").is_file() for folder in (data, data.resolve().parent)):
        result.motion_world = True
        result.notes.append("these data are the motion world: no number compares with the paper's")
    return result, out


def merge(
    args: argparse.Namespace, videos: Sequence[BenchmarkVideo], benchmark: Benchmark
) -> tuple[Result, Path]:
    """The result of the answers in `--out`; no model is opened."""
    if not args.out:
        raise ValueError("--merge needs --out, the folder of the answers")
    stored = read_answers(args.out / STORE)
    if stored.header is None:
        raise FileNotFoundError(f"{args.out / STORE}: holds no answers; run without --merge first")
    protocol = restore(stored.header["protocol"], benchmark)
    questions = [question for video in videos for question in video.questions]
    these = (benchmark.name, len(questions), digest_data(questions, protocol.prompt))
    those = tuple(stored.header.get(key) for key in ("benchmark", "questions", "data"))
    if those != these:
        one, other = (f"{count} questions of {name} (digest {data})" for name, count, data in (those, these))
        remedy = "pass the --data, --annotation, --split and --prompt of that run"
        raise ValueError(f"{args.out} has answers to {one}, and these are {other}; {remedy}")
    found = collect(stored, videos, benchmark, protocol, args.limit, allow_missing=args.allow_missing)
    return found, args.out


def merge_command(args: argparse.Namespace, out: Path) -> str:
    """What to run for the table of the answers in `out`, without a model."""
    given: dict[str, object] = {"--out": out, "--data": args.data, "--annotation": args.annotation}
    given |= {f"--{key}": getattr(args, key, None) for key in ("split", "prompt", "limit")}
    words = [word for key, value in given.items() if value is not None for word in (key, str(value))]
    words += ["--allow-missing"] if args.allow_missing else []
    return shlex.join(["python", sys.argv[0], "--merge", *words])


def finish(result: Result, out: Path, args: argparse.Namespace) -> None:
    """Write and print the table once every process is done; before that, say what is missing."""
    if result.pending:
        say(
            f"{result.pending:,} questions are not answered yet, by other processes or a run that was "
            f"stopped; whoever ends last writes the table to {out}, and so does: {merge_command(args, out)}",
            file=sys.stderr,
        )
        return
    result.save(out)
    Screen().print(result.table())
    say(f"written to {out}", file=sys.stderr)


def _is_one_of_many(args: argparse.Namespace, shard: Shard) -> bool:
    return shard.processes > 1 and args.device == "cuda" and "LOCAL_RANK" in os.environ
