"""Start the recipe as users do, in processes of its own."""

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "recipes" / "favor_lora.py"
LAUNCH = (
    "-m accelerate.commands.launch --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port 0"
).split()
ENGINES = {
    "DDP": ["--multi_gpu"],
    "DeepSpeed ZeRO-2": [
        "--use_deepspeed",
        "--deepspeed_config_file",
        str(ROOT / "recipes" / "configs" / "deepspeed_zero2.json"),
    ],
    "DeepSpeed ZeRO-3": [
        "--use_deepspeed",
        "--deepspeed_config_file",
        str(ROOT / "recipes" / "configs" / "deepspeed_zero3.json"),
    ],
}


def environment(engine="DDP"):
    """Variables of a process on the CPU, without a hub; DeepSpeed wants others than DDP."""
    device = {"ACCELERATE_USE_CPU": "true"} if engine == "DDP" else {"DS_ACCELERATOR": "cpu"}
    wanted = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **device}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    return {**kept, **wanted}


def launched_environment(engine="DDP"):
    """`environment`, and the variables in which `accelerate launch` names the engine."""
    if engine == "DDP":
        return environment(engine)
    named = {"USE_DEEPSPEED": "true", "DEEPSPEED_CONFIG_FILE": ENGINES[engine][-1]}
    return environment(engine) | {f"ACCELERATE_{name}": value for name, value in named.items()}


def launch(engine, argv, cwd, script=SCRIPT):
    """Run a script on two processes under an engine; returns what it printed."""
    command = [sys.executable, *LAUNCH[:2], *ENGINES[engine], *LAUNCH[2:], str(script), *argv]
    done = subprocess.run(
        command, env=environment(engine), cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def load_script(path):
    """The module of the program that a thin file starts, such as recipes/favor_lora.py."""
    path = Path(path)
    return importlib.import_module(f"moss_vllm.commands.{path.parent.name}.{path.stem}")


def free_port():
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def logged(out):
    """The lines of a run's train.jsonl."""
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


def as_flags(given):
    """--batch-size 2 for batch_size=2, as separate words."""
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
