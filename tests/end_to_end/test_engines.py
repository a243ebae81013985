"""Owns: DDP, ZeRO-2, ZeRO-3 and FSDP2 train, save and resume alike, and the engine asked for is what runs.

Two processes each, whose clips differ in number and size; some steps give a process no clip at all.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands import launch as launcher
from accelerate.utils import DistributedType
from faults.engine import Hostile
from fsdp_worker import Unseen
from killing import begin_two, outputs, run_two
from launching import ENGINES, LAUNCH, ROOT, SCRIPT, as_flags, environment, launch, logged
from safetensors.torch import load_file

from moss_vllm.data.rows import Turn
from moss_vllm.data.sources import read_sources
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.training import engines, run_state
from moss_vllm.video.clip import Sampling, read_clip
from moss_vllm.video.write import write_clip
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import ADAPTER_FILE
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.batches import TrainingSet
from moss_vllm.vlm.held_out import hold_out
from moss_vllm.vlm.loss import AnswerLoss
from moss_vllm.vlm.plan import plan
from moss_vllm.vlm.video_llama3.chat import collate, encode

pytestmark = pytest.mark.usefixtures("one_process")

RATES = {"lr_moss": 3e-3, "lr_projector": 1e-3, "lr_llm": 5e-3}
STEPS = 4
CLIPS = Sampling(sample_fps=2.0, short_side_px=84, max_frames=180)  # the recipe's defaults


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Six rows: clips of three sizes and lengths, and two conversations without any."""
    folder = tmp_path_factory.mktemp("rows")
    sizes = [(84, 84, 8), (84, 112, 12), (112, 84, 4), (84, 84, 16)]
    lines = []
    for number, (height, width, frames) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (frames, height, width, 3), np.uint8)
        write_clip(pixels, folder / f"clip{number}.mp4", fps=4)
        answer = "The red circle moves left."
        lines.append({"video": f"clip{number}.mp4", "turns": [{"question": "What moves?", "answer": answer}]})
    lines += [{"turns": [{"question": "What is red?", "answer": "The circle."}]} for _ in range(2)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def flags(rows, tiny_base):
    """A function that makes the recipe's flags for a run on these rows."""

    def make(out, *more, **settings):
        given = {"model": tiny_base, "data": rows / "rows.jsonl", "out": out, "lora_rank": 4, "workers": 0}
        return [*as_flags({**given, **settings}), *more]

    return make


def script_of(engine, argv):
    """The script that runs the recipe under an engine, and its flags."""
    by_gloo = Path(__file__).with_name("by_gloo.py")
    return (SCRIPT, argv) if engine == "DDP" else (by_gloo, [str(SCRIPT), *argv])


@pytest.fixture(scope="module")
def matrix(flags, tmp_path_factory):
    """Each engine's output folder, after a whole run and after one that was resumed in its middle."""
    out = tmp_path_factory.mktemp("matrix")
    settings = {"batch_size": 1, "accumulate": 2, "steps": STEPS, "save_every": 1, "log_every": 1, **RATES}
    found = {}
    for number, engine in enumerate(ENGINES):
        whole, half = out / f"{number}-whole", out / f"{number}-half"
        script, argv = script_of(engine, flags(whole, lora_dropout=0.2, **settings))
        printed = launch(engine, argv, out, script)
        argv = flags(half, lora_dropout=0.2, resume=whole / "step-000002", **settings)
        run_two(*script_of(engine, argv), out, engine=engine)
        found[engine] = (whole, half, printed)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_engine_asked_for_runs_resumes_and_reloads(matrix, engine):
    whole, half, printed = matrix[engine]
    assert f"{engine} x2 on cpu" in printed
    assert json.loads((whole / "settings.json").read_text())["engine"] == engine
    assert checkpoint.read_run_file(whole / "step-000004")["engine"] == engine
    assert [line["loss"] for line in logged(half)] == [line["loss"] for line in logged(whole)][2:]
    first, second = (load_file(run / "step-000004" / ADAPTER_FILE) for run in (whole, half))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    # Each process's clips: one has none in some step, and none waited for it forever.
    assert {line["clips"] for line in logged(whole)} == {4} and len(logged(whole)) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_every_group_moves_at_its_own_rate(matrix, engine, tiny_base):
    # Adam's first step moves a weight by its learning rate, whatever the gradient's size.
    moved = load_file(matrix[engine][0] / "step-000001" / ADAPTER_FILE)
    before = {name: value for name, value in load_base(tiny_base).state_dict().items()}
    steps = {group: [] for group in RATES}
    for name, value in moved.items():
        plain = name.removeprefix("base_model.model.")
        if "lora_B" in name:  # starts as zero
            steps["lr_llm"].append(value)
        elif ".projector." in name:
            steps["lr_projector"].append(value - before[plain])
        elif ".input_fc." in name or ".out_proj." in name:  # start as zero
            steps["lr_moss"].append(value)
    warmup = logged(matrix[engine][0])[0]["lr"]
    for group, rate in zip(("moss", "projector", "llm lora"), RATES, strict=True):
        found = torch.cat([step.flatten().abs() for step in steps[rate]])
        assert float(found[found > 0].median()) == pytest.approx(warmup[group], rel=2e-3)


@pytest.mark.slow
def test_the_engines_end_in_models_alike(matrix, rows):
    logits = {}
    for engine, (whole, _, _) in matrix.items():
        loaded = checkpoint.load(whole / "step-000004")
        clips = [
            read_clip(rows / f"clip{n}.mp4", Sampling(sample_fps=2.0, short_side_px=84)) for n in range(4)
        ]
        examples = [
            encode(loaded.processor, c, [Turn(q)])
            for c in clips
            for q in ("What moves?", "Describe the video.")
        ]
        batch = collate(examples, pad_id=loaded.processor.tokenizer.pad_token_id, left=True)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            logits[engine] = loaded.model(**inputs, logits_to_keep=1).logits[:, -1]
        assert loaded.run["processes"] == 2
    ddp, *others = ENGINES
    for engine in others:
        # Sums in another order, through four steps of Adam, which amplifies them: where a gradient is all but
        # zero, its sign decides a whole step. The likeliest words of these untrained models nearly tie. On an
        # Intel Xeon they lay less than 0.02 apart, on an AMD EPYC 0.024.
        apart = (logits[engine] - logits[ddp]).norm() / logits[ddp].norm()
        assert apart < 5e-2, engine
    norms = [logged(matrix[engine][0])[0]["grad_norms"] for engine in ENGINES]
    for other in norms[1:]:
        assert other == pytest.approx(norms[0], rel=1e-3)


def held_out_loss(folder, rows):
    """What a checkpoint gets on rows, all in one batch."""
    loaded = checkpoint.load(folder)
    data = TrainingSet(rows, loaded.processor, sampling=CLIPS, compress=False, max_tokens=4096)
    batch = data.collate([data[index] for index in range(len(rows))])
    inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    with torch.no_grad():
        return float(AnswerLoss(loaded.model).eval()(**inputs)) / batch["count"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_held_out_loss_is_the_checkpoints_own_and_changes_no_weight(
    flags, rows, processor, tmp_path, engine
):
    """Three rows over two processes, one at a time: the second process's last batch is empty."""
    sources = read_sources(rows / "rows.jsonl")
    kept, unseen = hold_out(plan(sources, processor, sampling=CLIPS, compress=False, max_tokens=4096), 3)
    assert (len(kept.rows), len(unseen.rows)) == (3, 3) and {row.path is None for row in unseen.rows} == {
        True,
        False,
    }
    lines = (rows / "rows.jsonl").read_text().splitlines(keepends=True)
    (rows / "kept.jsonl").write_text("".join(lines[int(row.row_id.split("#")[1])] for row in kept.rows))
    settings = {"batch_size": 1, "accumulate": 2, "steps": 3, "lora_dropout": 0.2, "tracker": "none", **RATES}
    measured, plain = tmp_path / "measured", tmp_path / "plain"
    run_two(
        *script_of(engine, flags(measured, held_out=3, eval_every=2, **settings)), tmp_path, engine=engine
    )
    run_two(*script_of(engine, flags(plain, data=rows / "kept.jsonl", **settings)), tmp_path, engine=engine)
    losses = [line["loss"] for line in logged(measured) if "loss" in line]
    assert losses == [line["loss"] for line in logged(plain)] and len(losses) == 3
    first, second = (load_file(run / "step-000003" / ADAPTER_FILE) for run in (measured, plain))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    found = {line["step"]: line for line in logged(measured) if "held_out_loss" in line}
    assert list(found) == [2, 3] and {line["rows"] for line in found.values()} == {3}
    expected = held_out_loss(measured / "step-000003", unseen.rows)
    assert found[3]["held_out_loss"] == pytest.approx(expected, rel=1e-4) != found[2]["held_out_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("again", [["--checkpoint-llm"], ["--checkpoint-llm", "--checkpoint-moss"]])
@pytest.mark.parametrize("engine", ENGINES)
def test_bfloat16_trains_and_keeps_float32_where_it_learns(flags, tmp_path, engine, again):
    settings = {"steps": 2, "batch_size": 2, "precision": "bf16", "save_every": 2}
    argv = flags(tmp_path / "run", *again, **settings)
    assert f"{engine} x2 on cpu" in run_two(*script_of(engine, argv), tmp_path, engine=engine)
    saved = load_file(tmp_path / "run" / "step-000002" / ADAPTER_FILE)
    assert {value.dtype for value in saved.values() if value.is_floating_point()} == {torch.float32}
    # Adam's steps are smaller than bfloat16 resolves: rounded weights would have lost them.
    rounded = [name for name, value in saved.items() if torch.equal(value, value.bfloat16().float())]
    assert all("num_batches" in name or not saved[name].any() or saved[name].numel() == 1 for name in rounded)
    assert all(np.isfinite(line["loss"]) for line in logged(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_fsdp2_trains_saves_and_resumes(tiny_base, tmp_path, kind):
    def run(out, steps, resume="no"):
        worker = Path(__file__).with_name("fsdp_worker.py")
        run_two(worker, list(map(str, (tiny_base, tmp_path / out, steps, resume, kind))), tmp_path)
        return json.loads((tmp_path / out / "losses.json").read_text())

    whole = run("whole", 4)
    loss, *counts = json.loads((tmp_path / "whole" / "held_out.json").read_text())
    loaded = checkpoint.load(tmp_path / "whole")
    batches = [Unseen(loaded.processor).collate([row]) for row in range(3)]
    assert counts == [3, sum(batch["count"] for batch in batches)]
    if kind == "fp32":
        objective = AnswerLoss(loaded.model).eval()
        with torch.no_grad():
            sums = [
                float(objective(**{k: v for k, v in one.items() if isinstance(v, torch.Tensor)}))
                for one in batches
            ]
        assert loss == pytest.approx(sum(sums) / counts[1], rel=1e-4)
    run("half", 2)
    assert run("resumed", 4, tmp_path / "half") == whole
    first, second = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    saved = load_file(tmp_path / "whole" / ADAPTER_FILE)
    assert all(value.numel() for value in saved.values()) and len(saved) > 50
    assert not any(path.suffix in (".pt", ".bin", ".pkl") for path in (tmp_path / "whole").rglob("*"))
    checkpoint.load(tmp_path / "whole")


def test_an_engine_that_accelerate_would_ignore_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RuntimeError, match=r"FSDP was asked for .ACCELERATE_USE_FSDP=true. and NO would"):
        engines.start()


@pytest.mark.parametrize(
    "variable, value, flag",
    [
        ("MIXED_PRECISION", "bf16", "--mixed_precision.*; the recipe's own --precision decides"),
        ("MIXED_PRECISION", "fp16", "--mixed_precision"),
        ("DYNAMO_BACKEND", "INDUCTOR", "--dynamo_backend"),
        ("GRADIENT_ACCUMULATION_STEPS", "4", "--gradient_accumulation_steps.*own --accumulate decides"),
        ("USE_MEGATRON_LM", "true", "--use_megatron_lm"),
        ("USE_PARALLELISM_CONFIG", "true", "--use_parallelism_config"),
    ],
)
def test_what_accelerate_is_asked_and_no_recipe_does_is_refused(monkeypatch, variable, value, flag):
    monkeypatch.setenv(f"ACCELERATE_{variable}", value)
    with pytest.raises(
        ValueError, match=rf"^ACCELERATE_{variable}={value} .of accelerate launch {flag}.*leave it"
    ):
        engines.start()


def test_what_the_launcher_says_of_itself_or_as_the_recipe_is_no_fault(monkeypatch):
    for variable, value in (
        ("MIXED_PRECISION", "bf16"),
        ("DYNAMO_BACKEND", "NO"),
        ("GRADIENT_ACCUMULATION_STEPS", "1"),
    ):
        monkeypatch.setenv(f"ACCELERATE_{variable}", value)
    assert engines.start(precision="bf16").mixed_precision == "no"  # the objective autocasts itself


def test_the_launchers_mixed_precision_is_refused_by_name(recipe, flags, tmp_path, monkeypatch):
    """In the variables that the launcher itself makes for a process."""
    words = ["--num_processes", "1", "--mixed_precision", "bf16", str(SCRIPT), *flags(tmp_path / "run")]
    args, _, _ = launcher._validate_launch_command(launcher.launch_command_parser().parse_args(words))
    command, variables = launcher.prepare_simple_launcher_cmd_env(args)
    assert command == [sys.executable, *words[4:]]
    for name in variables.keys() - os.environ.keys():
        monkeypatch.setenv(name, variables[name])
    with pytest.raises(ValueError, match="^ACCELERATE_MIXED_PRECISION=bf16 .of accelerate launch --mixed"):
        recipe.main(words[5:])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("key, value", [("gradient_clipping", 0.5), ("train_micro_batch_size_per_gpu", 7)])
def test_a_deepspeed_file_of_another_batch_is_refused(flags, tmp_path, monkeypatch, key, value):
    file, ours = tmp_path / "deepspeed.json", ROOT / "recipes/configs/deepspeed_zero2.json"
    file.write_text(json.dumps({**json.loads(ours.read_text()), key: value}))
    monkeypatch.setitem(ENGINES, "DeepSpeed ZeRO-2", [str(file)])
    told = refusal(flags(tmp_path / "run", batch_size=2), tmp_path)
    assert f"configuration asks for {key}={value} and the recipe for" in told


def refusal(argv, folder):
    """What both processes of a run under ZeRO-2 say at their end with status 1."""
    engine = "DeepSpeed ZeRO-2"
    ranks = begin_two(*script_of(engine, argv), folder, engine=engine)
    for process in ranks:
        process.join(timeout=200)
    assert [process.exitcode for process in ranks] == [1, 1], outputs(folder)
    first, second = (file.read_text().splitlines()[-1] for file in sorted(folder.glob("output-*.txt")))
    assert first == second
    return first


@pytest.mark.parametrize(
    "name, place, value, told",
    [
        ("numpy_rest", 0, 1e9, "numpy's position 1e[+]09"),
        ("numpy_rest", 0, -1.0, "numpy's position -1"),
        ("numpy_rest", 0, 3.5, "numpy's position 3.5"),
        ("numpy_rest", 1, 2.0, "numpy's has_gauss 2"),
        ("numpy_rest", 2, float("inf"), "1 not finite .numpy_rest"),
        ("numpy", 5, -1, "words beyond 32 bits"),
        ("numpy", 5, 2**32, "words beyond 32 bits"),
        ("python", 7, 2**40, "words beyond 32 bits"),
        ("python", 624, 625, "python's position 625"),
        ("numpy", slice(None), 0, "all zero"),
        ("torch", slice(8, 24), 255, "Invalid mt19937 state"),
    ],
)
def test_a_random_state_out_of_range_is_refused(name, place, value, told):
    state = run_state._random_state()
    changed = state[name].clone()
    changed[place] = value
    try:
        with pytest.raises(run_state.UNREADABLE, match=told):
            run_state._restore_random_state({**state, name: changed})
    finally:
        run_state._restore_random_state(state)


@pytest.mark.parametrize("name", ["python", "numpy", "numpy_rest", "torch"])
def test_a_random_state_of_another_type_or_size_is_refused(name):
    state = run_state._random_state()
    for changed, told in ((state[name].to(torch.float16), "type"), (state[name][:-1], "of another shape")):
        with pytest.raises(ValueError, match=told):
            run_state._restore_random_state({**state, name: changed.nan_to_num(posinf=1, neginf=1)})


def test_the_random_state_of_a_gpu_is_left_out_without_one():
    state = run_state._random_state()
    run_state._restore_random_state({**state, "cuda": torch.zeros(16, dtype=torch.uint8)})


@pytest.mark.slow
def test_a_hostile_pickle_in_a_deepspeed_state_does_not_run(matrix, flags, tmp_path):
    later = shutil.ignore_patterns("step-000003", "step-000004")
    out = shutil.copytree(matrix["DeepSpeed ZeRO-2"][0], tmp_path / "run", ignore=later)
    for file in (out / "step-000002" / "state" / run_state.ZERO_FOLDER).glob("*.pt"):
        file.write_bytes(pickle.dumps(Hostile(tmp_path / "pwned")))
    argv = flags(out, batch_size=1, accumulate=2, steps=4, resume="auto")
    assert "which could run code); resume from an earlier checkpoint" in refusal(argv, tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher_words", [["-m", "torch.distributed.run", "--nproc_per_node=2"], None])
def test_launched_processes_train_together_on_a_machine_without_a_device(flags, tmp_path, launcher_words):
    words = launcher_words or [*LAUNCH[:2], "--multi_gpu", *LAUNCH[2:]]
    own = {name: value for name, value in environment().items() if name != "ACCELERATE_USE_CPU"}
    argv = flags(tmp_path / "run", steps=1, batch_size=1)
    command = [sys.executable, *words, str(SCRIPT), *argv]
    done = subprocess.run(command, env=own, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    run = json.loads((tmp_path / "run" / "step-000001" / "run.json").read_text())
    assert (run["engine"], run["processes"]) == ("DDP", 2)
    again = [*command[: -len(argv)], *flags(tmp_path / "run", steps=2, batch_size=1), "--resume", "auto"]
    done = subprocess.run(again, env=own, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


def test_processes_that_would_train_apart_are_refused(monkeypatch):
    class Apart:
        def __init__(self, **given):
            self.distributed_type = DistributedType.NO

    monkeypatch.setattr(engines, "Accelerator", Apart)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunStopped, match="2 processes were launched, and each would train by itself"):
        engines.start()
