"""The folder of a detector's test on a tiny THUMOS-14, with one video that can be read.

write_test(tmp_path)  # a folder with predictions.json and result.json; its data lie beside it
"""

import json

import numpy as np
from detection_layouts import CLASSES, TEST, write_thumos

from moss_vllm.data.detection.datasets import read_detection
from moss_vllm.detection.predictions import Detections, write_predictions
from moss_vllm.detection.scores import save_detection_scores, score_detections
from moss_vllm.video.write import write_clip

# (start, end, score, class): right, missed at tIoU 0.5, and of a class that the video does not have.
FOUND = {
    TEST[0]: [(0.2, 1.0, 0.9, 1), (0.3, 1.1, 0.8, 1), (5.0, 9.5, 0.7, 1), (20.0, 22.0, 0.4, 2)],
    TEST[1]: [(4.0, 5.1, 0.6, 0), (4.0, 5.0, 0.5, 2)],
}


def detections(rows):
    table = np.array(rows, np.float64)
    return Detections(table[:, :2], table[:, 2], table[:, 3].astype(np.int64))


def write_test(tmp_path, found=FOUND, **about):
    """What eval/detection.py leaves."""
    root, folder = tmp_path / "thumos", tmp_path / "test"
    write_thumos(root)
    frames = np.zeros((160, 48, 64, 3), np.uint8) + np.arange(160, dtype=np.uint8)[:, None, None, None]
    write_clip(frames, root / "raw_data" / "video" / f"{TEST[0]}.mp4")
    split = read_detection("thumos14", root, "test")
    predictions = {video: detections(rows) for video, rows in found.items()}
    folder.mkdir()
    write_predictions(folder / "predictions.json", predictions, CLASSES)
    scores = score_detections(split, predictions, draws=20)
    save_detection_scores(scores, split, folder, {"checkpoint": "runs/detection/best", **about})
    return folder


def edit_result(folder, **changes):
    file = folder / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
