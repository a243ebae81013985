"""The jobs of `gpu_day.py`, most worth first: what they run, how long at most, and what is shown of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    raise SystemExit("experiments/gpu_jobs.py is a part of gpu_day.py, not a command")

ROOT = Path(__file__).resolve().parent.parent
JSON = "{json}"  # stands for the file that the job writes


class Job(NamedTuple):
    """A command by the words after `python`, on a GPU and as a toy on a CPU.

    `toy` is None where another job's toy runs the same code.
    """

    name: str
    gpu: str
    toy: str | None
    limit_s: int
    numbers: Callable[[Any], Iterator[str]]  # of what the job wrote

    def words(self, json: Path, *, toy: bool) -> list[str]:
        """The words, with the file that the job writes."""
        words = (self.toy or "") if toy else self.gpu
        return [str(json) if word == JSON else word for word in words.split()]


def _count_tests(result: Any) -> Iterator[str]:
    yield from ()  # pytest's own last line tells


def _stss(result: Any) -> Iterator[str]:
    """Forward and backward of the encoded similarity, and of the module, by shape."""
    found = {(one["part"], one["shape"]): one for one in result["results"]}
    for shape in result["shapes"]:
        for part in ("stss+linear", "module"):
            if one := found.get((part, shape)):
                ways = [name for name in ("ours", "plain", "textbook") if name in one]
                times = " / ".join(f"{one[name]['step_ms']:.3g}" for name in ways)
                text = f"{shape}, {part}: {times} ms ({', '.join(ways)})"
                if "share_of_bound" in one:
                    least = max(one["bounds_ms"]["step"], key=one["bounds_ms"]["step"].get)
                    text += f", {one['share_of_bound']['step']:.0%} of the bound by {least}"
                yield text


def _training(result: Any) -> Iterator[str]:
    """Seconds, memory beside the estimate, hours beside the paper's."""
    for one in result["results"]:
        name = f"{one['clip_s']:g} s, {'with' if one['moss'] else 'without'} MOSS"
        name += ", recomputed" if one["recomputed"] else ""
        if "failed" in one:
            yield f"{name}: {one['failed']}"
            continue
        peak = "not measured" if one["peak_gib"] is None else f"{one['peak_gib']:.1f} GiB"
        text = f"{name}: {one['step_s']:.3g} s a step, peak {peak}, estimated {one['estimated_gib']:.1f}"
        yield f"{text}; {one['hours']:.2f} h, the paper {result['paper_gpu_hours']} GPU-h"


def _evaluation(result: Any) -> Iterator[str]:
    """Once a video against one question at a time."""
    ratio, peak = result["ratio"], max(run["peak_gib"] for run in result["ways"]["engine"])
    speed = f"{ratio['median']:.2f} times one at a time ({ratio['min']:.2f}-{ratio['max']:.2f})"
    same = f"{result['identical_answers']} of {result['questions']} answers identical"
    yield f"{speed}; {same}; peak {peak:.2f} GiB"


def _tables(result: Any) -> Iterator[str]:
    """A line for each model."""
    for row in result["rows"]:
        name = f"Table {row['table']}, {row['name']}, {row['clips']} clips"
        if "failed" in row:
            yield f"{name}: {row['failed']}"
            continue
        peak = "not measured" if row["allocated_gb"] is None else f"{row['allocated_gb']:.1f} GB"
        yield f"{name}: {row['step_s']['median']:.3g} s a step, peak {peak}, the paper {row['paper_gb']}"


def _detection(result: Any) -> Iterator[str]:
    """A step with and without MOSS, and the peak of whole steps beside its estimate."""
    for way, one in result.get("step", {"ways": {}})["ways"].items():
        yield f"{way}: {one['step_s']['median']:.3g} s a step"
    if true := result.get("true"):
        known = true["allocated_gib"] is not None
        allocated = f"{true['allocated_gib']:.2f} GiB allocated, " if known else ""
        yield f"{allocated}{true['peak_gib']:.2f} GiB of tensors, estimated {true['estimated_gib']:.2f}"


def _boundaries(result: Any) -> Iterator[str]:
    """A step, its peak, and the speed of a test."""
    step_s = sum(result["seconds"][part] for part in ("forward", "backward", "SGD"))
    speed = f"{result['frames_per_s']:.0f} frames a second in a test"
    published = f"{result['published_frames_per_s']} of BasicGEBD without MOSS"
    yield f"{step_s:.3g} s a step, peak {result['peak_gb']:.2f} GB; {speed}, {published}"


def _gpu_tests() -> str:
    """The test files with a test for GPUs; collecting all of them would import all there is."""
    files = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text())
    return " ".join(path.relative_to(ROOT).as_posix() for path in files)


def _stss_job(precision: str, limit_s: int, *, has_toy: bool = True) -> Job:
    command = f"experiments/benchmark_stss.py --precision {precision} --json {JSON}"
    toy = f"{command} --shapes a --parts stss+linear --repeats 1" if has_toy else None
    return Job(f"stss-{precision}", f"{command} --device cuda --shapes abcd", toy, limit_s, _stss)


def _training_job(shape: str, clip_s: int, limit_s: int, *, has_toy: bool = True) -> Job:
    command = f"experiments/benchmark_training.py --json {JSON}"
    gpu = f"{command} --shape {shape} --device cuda --clip-s {clip_s} --steps 10"
    toy = f"{command} --shape miniature --clip-s 1 --steps 1" if has_toy else None
    return Job(f"train-{shape}-{clip_s}s", gpu, toy, limit_s, _training)


def _tables_job(precision: str, limit_s: int, *, has_toy: bool = True) -> Job:
    command = f"experiments/benchmark_tables.py --precision {precision} --json {JSON}"
    toy = f"{command} --tables 4a --rows none --batch 1 --size-px 32 --repeats 1" if has_toy else None
    return Job(f"tables-{precision}", f"{command} --device cuda", toy, limit_s, _tables)


_TESTS = f"-m pytest -q -p no:cacheprovider -m gpu {_gpu_tests()}"
_EVALUATION = f"experiments/benchmark_eval.py --protocol letter --json {JSON}"
_DETECTION = f"experiments/benchmark_detection.py --json {JSON}"
_BOUNDARIES = f"experiments/benchmark_boundaries.py --json {JSON}"

# Compiling and tuning the kernels is much of the first four jobs; float32's products take longest to compile.
JOBS = (
    Job("gpu-tests", _TESTS, _TESTS, 300, _count_tests),
    _stss_job("bf16", 300),
    _stss_job("fp16", 300),
    _stss_job("fp32", 420, has_toy=False),
    _training_job("2b", 10, 240),
    _training_job("7b", 10, 300, has_toy=False),
    Job(
        "eval-2b",
        f"{_EVALUATION} --shape 2b --device cuda --video-count 10 --threads 8",
        f"{_EVALUATION} --video-count 1 --repeats 1",
        300,
        _evaluation,
    ),
    _tables_job("bf16", 240, has_toy=False),
    _tables_job("fp32", 300),
    Job(
        "detection",
        f"{_DETECTION} --parts step true --variant b --frames 768 --size-px 160 --precision bf16 --steps 3 "
        "--device cuda",
        f"{_DETECTION} --parts true --variant s --frames 16 --size-px 32",
        240,
        _detection,
    ),
    Job(
        "boundaries",
        f"{_BOUNDARIES} --variant r50 --size-px 224 --precision bf16 --device cuda",
        f"{_BOUNDARIES} --variant mini --frames 8 --size-px 32",
        120,
        _boundaries,
    ),
    _training_job("2b", 30, 240, has_toy=False),
)
