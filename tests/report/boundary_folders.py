"""The folder of a boundary model's test on a tiny Kinetics-GEBD, two of whose clips can be read.

write_test(tmp_path)  # a folder with scores.json, predictions.json and result.json; its data lie beside it
"""

import json

import numpy as np
from boundary_layouts import TEST, kinetics
from tiny_boundaries import write_moving

from moss_vllm.boundaries.predictions import FrameScores
from moss_vllm.boundaries.schema import as_answer
from moss_vllm.boundaries.scores import score_test
from moss_vllm.data.boundaries.datasets import read_boundaries
from moss_vllm.runtime.line_store import ANSWERS, AnswerFile, Shard

HEADER = {"checkpoint": "run/best", "benchmark": "kinetics_gebd", "questions": 3, "data": "0123"}
# Frames at which the score rises over the threshold; a clip lasts 10 s and 100 frames.
FOUND = {TEST[0]: (20, 62, 80), TEST[1]: (50,), TEST[2]: (40,)}


def frame_scores(peaks):
    """A score of 0.9 at each peak, and of 0.05 elsewhere."""
    numbers = np.arange(1.0, 101)
    return FrameScores(numbers, np.where(np.isin(numbers, peaks), 0.9, 0.05))


def write_test(tmp_path, found=FOUND, records=None, **about):
    """What eval/boundaries.py leaves, but for its page and picture."""
    root, folder = tmp_path / "kinetics", tmp_path / "test"
    write_moving(root, records)
    split = read_boundaries("kinetics_gebd", root, "test")
    header = {**HEADER, "protocol": {"name": "boundaries"}}
    with AnswerFile(folder / ANSWERS, header, Shard()) as file:
        for name, peaks in found.items():
            file.add({"video_id": name, "answers": [as_answer(name, frame_scores(peaks))]})
    given = {"checkpoint": "runs/boundaries/best", "data": "kinetics_gebd", **about}
    score_test(folder, split, given, threshold=0.3)
    return folder


def with_names(*names):
    """The records of a test with these clips alone, each with one boundary."""
    records = kinetics()
    one = records["val"][TEST[2]]
    records["val"] = {name: {**one, "path_frame": f"{name}_000003_000013"} for name in names}
    return records


def edit_result(folder, **changes):
    file = folder / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
