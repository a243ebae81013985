"""Folders of training runs, written without training."""

import json

RATES = {"moss": 3e-3, "projector": 3e-4, "llm lora": 1e-3}
TASKS = {"all": 25.0, "MR": 25.0, "CM": 20.0}
FILES = ["settings.json", "train.jsonl", "evals.jsonl", "rejected.jsonl"]


def step_line(step, **more):
    line = {
        "step": step,
        "loss": 3 / step,
        "grad_norm": 1 + step / 7,
        "lr": {k: v / step for k, v in RATES.items()},
    }
    if step % 2 == 0:
        line["grad_norms"] = {name: 0.1 * step + place for place, name in enumerate(RATES)}
    line |= {
        "clips": 16,
        "tokens": 2800 + step,
        "memory_gib": 1.0 + step / 64,
        "seconds": 0.5,
        "waited_s": 0.05,
    }
    return line | more


def eval_line(step, outputs=(("B", True),), **more):
    samples = [
        {
            "video": f"video{n}",
            "question": f"Question {n}?",
            "options": ["left", "right"],
            "answer": "B",
            "output": output,
            "correct": correct,
        }
        for n, (output, correct) in enumerate(outputs)
    ]
    return {
        "step": step,
        "benchmark": "MotionBench-Dev",
        "protocol": "letter",
        "accuracy": {task: step + place / 3 for place, task in enumerate(TASKS)},
        "chance": TASKS,
        "counts": {key: dict.fromkeys(TASKS, 12) for key in ("correct", "answered", "total")},
        "samples": samples,
        **more,
    }


def settings(steps=10, **more):
    return {
        "settings": {
            "model": "miniature",
            "steps": steps,
            "resume": None,
            "lr_moss": 0.003,
            "use_moss": True,
            **more,
        },
        "engine": "one process",
        "processes": 1,
        "device": "cpu",
        "attention": "sdpa (flash-attn needs a CUDA device, this is cpu)",
        "stss": "self-similarity: banded path (no CUDA device)",
        "parameters": [
            ["moss", r"vision_model\.moss\.", 38, 250720, "0.003"],
            ["frozen", ".", 166, 1514624, "frozen"],
        ],
        "plan": "kept 597 of 600 rows: 0 too long, 0 bad, 3 missing",
        "sources": [["FAVOR", 597, 597.0]],
        "tokens": {"min": 172, "median": 174, "max": 186},
        "memory": {"frozen_weights": 2**29, "total": 2**31},
        "versions": {"python": "3.11.7", "decord": "not installed", "torch": "2.12.1", "git_commit": None},
        "command": "recipes/favor_lora.py --steps 10",
        "started": "2020-01-01T00:00:00+00:00",
    }


def jsonl(lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


def digits(values):
    return {step: float(f"{value:.6g}") for step, value in values.items()}
