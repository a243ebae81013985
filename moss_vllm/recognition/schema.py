"""What the lines of a classifier's test hold: a clip's class, and the likeliest ones."""

from moss_vllm.runtime.line_store import Fields, Schema

# The header's `protocol` has the views, `questions` the number of clips. Lines of earlier versions have no
# `label` and `guesses`.
CLIP_SCHEMA = Schema(
    header=Fields(
        {"benchmark": str, "checkpoint": str, "protocol": dict, "questions": int},
        {"versions": dict, "run": dict, "weights": str, "dtype": str, "model_settings": str},
    ),
    parts={"protocol": Fields({"name": str})},
    is_of_task=lambda header: header["protocol"]["name"] == "views",
    source="one that eval/action_recog.py wrote, or OUT/test of recipes/action_recog.py",
    answer=Fields(
        {"task": str, "answer": str, "output": str, "correct": bool, "in_top5": bool, "top5": list},
        {"parsed": str, "label": int, "guesses": list},
    ),
)
