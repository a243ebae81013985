"""Rows of FAVOR's and MotionBench's annotation files, and what tests of their readers share."""

import json

import pytest

from moss_vllm.data.rows import BadRow, BadRows

OPTIONS = ["Pick up the pot", "Turn left", "Turn around", "Put down the pot", "Turn around and walk forward"]
FAVOR_ITEM = {  # FAVOR-Bench, issue 3
    "question": "After pulling the sleeve and smoothing her hair, what did the brunette do next?",
    "options": OPTIONS,
    "correct_answer": "Turn around",
    "task_type": "AS",
}
MB_QUESTION = (
    "Please describe the detailed breakdown of the action in the video.\n"
    "A. Jump, Lay down, Stand\nB. Jump, Stand, Lay down\nC. Lay down, Stand, Jump"
)
MB_ROW = {  # MotionBench, issue 12
    "question_type": "Action Order",
    "video_type": "Gaming",
    "key": "37e1b635be3544d5a45106ea71c3b97c",
    "qa": [
        {"uid": "ggqGrLl5uBMMNzW2", "start": None, "end": None, "answer": "C", "question": MB_QUESTION},
    ],
    "video_path": "37e1b635be3544d5a45106ea71c3b97c.mp4",
    "video_info": {
        "duration": 8.383333206176758,
        "fps": 60.0,
        "resolution": {"width": 1280, "height": 1280},
    },
}
TRAIN_ROW = {
    "video_name": "abc123_4.mp4",
    "caption": "A man in a grey coat turns left, then walks.",
    "subset": "Koala36M",
    "url": "https://www.youtube.com/watch?v=aB3_-xY9zQ0",
    "start": "12.3",
    "end": 19.8,
}


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def write(folder, rows, name="rows.json"):
    text = "\n".join(map(json.dumps, rows)) + "\n" if name.endswith("jsonl") else json.dumps(rows)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def refusal(call, *parts):
    """The one BadRow of `call`, whose message holds every part."""
    with pytest.raises(BadRow) as caught:
        call()
    message = str(caught.value)
    for part in (*parts, caught.value.file, caught.value.reason, caught.value.remedy):
        assert str(part) in message
    assert not isinstance(caught.value, BadRows)
    return caught.value
