"""What the motion_world tasks ask lmms-eval to call; the world is looked for in the current folder."""

from datasets import Dataset

from moss_vllm.data.motionbench import motionbench_prompt, read_motionbench
from moss_vllm.data.world.benchmarks import DEFAULT_ROOT
from moss_vllm.evaluation.scoring import parse_letter


def read_rows(_):
    folder = DEFAULT_ROOT / "MotionBench"
    return Dataset.from_list(
        [
            {
                "video": str(video.path),
                "prompt": motionbench_prompt(question),
                "options": list(question.options),
                "letters": list("ABCDEFGHIJ"[: len(question.options)]),
                "answer": question.answer,
            }
            for video in read_motionbench(folder, folder)
            for question in video.questions
        ]
    )


def show(row):
    return [row["video"]]


def number(row):
    return row["letters"].index(row["answer"])


def judge(row, outputs):
    return {"acc": float(parse_letter(outputs[0], row["options"]) == row["answer"])}
