"""A tiny AdaTAD with its checkpoint, and a small THUMOS-14 whose files are videos.

write_videos(root)                       # the layout of detection_layouts with pictures in it
write_checkpoint(folder, root, encoder)  # of random weights
"""

import dataclasses
import json

import numpy as np
import torch
from action_layouts import write_frames
from detection_layouts import CLASSES, TEST, VALIDATION, annotations, thumos, write_thumos
from transformers import VideoMAEConfig
from video_files import bars, write_pictures

from moss_vllm.detection import checkpoint
from moss_vllm.detection.build import build_adatad
from moss_vllm.detection.pixels import PixelSettings
from moss_vllm.detection.windows import WindowSettings
from moss_vllm.training.average import WeightAverage

WINDOWS = WindowSettings(steps=16, stride=2)
PIXELS = PixelSettings(size_px=32, train_short_side_px=40)
FPS = 10
FRAMES = dict(zip((*VALIDATION, *TEST), (120, 90, 150, 94, 25), strict=True))  # the last fills no window
ACTIONS = {
    VALIDATION[0]: annotations((1.0, 3.0, "CricketShot")),
    VALIDATION[1]: annotations((2.0, 5.5, "Diving"), (2.0, 5.5, "CliffDiving")),
    TEST[0]: annotations((0.5, 2.0, "CricketShot"), (7.0, 9.0, "CliffDiving"), (7.0, 9.0, "Diving")),
    TEST[1]: annotations((4.0, 6.0, "Diving")),
    TEST[2]: annotations((0.5, 1.5, "CricketShot")),
}
MOSS = {"temporal": "moss", "temporal_options": {"window": [3, 3, 3], "d_hidden": 8, "d_similarity": 4}}
WITHOUT = {"temporal": "none", "temporal_options": {}}


def pictures(name):
    """Frame k of a video shows k as eight bars, and a square that moves."""
    frames = np.stack([bars(number, 48, 64) for number in range(FRAMES[name])])
    for number, frame in enumerate(frames):
        frame[34:46, number % 52 : number % 52 + 12] = (230, 40, 10 * (len(name) + FRAMES[name]) % 256)
    return frames


def write_videos(root):
    """OpenTAD's layout; the second test video is a folder of frames. Returns the annotation file."""
    content = thumos()
    for name, count in FRAMES.items():
        row = {"duration": count / FPS, "frame": count, "annotations": ACTIONS[name]}
        content["database"][name] |= row
    file = write_thumos(root, content)
    for name in FRAMES:
        path = root / "raw_data" / "video" / f"{name}.mp4"
        path.unlink()
        if name == TEST[1]:
            write_frames(path.with_suffix(""), pictures(name))
        else:
            write_pictures(path, pictures(name), options={"g": "12"}, fps=FPS)
    return file


def write_encoder(folder):
    """config.json of a VideoMAE of two layers."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    VideoMAEConfig(image_size=32, **sizes).save_pretrained(folder)
    return folder


def arguments(encoder, **options):
    """Of `build_adatad`."""
    sizes = {"dim": 16, "heads": 2, "levels": 3}
    known = {"classes": len(CLASSES), "weights": "random", "temporal_layers": [1], "detector_options": sizes}
    return {"variant": "b", "encoder": str(encoder), **known, **MOSS, **options}


def detector(encoder, **options):
    """Random weights that find something else at every point."""
    torch.manual_seed(0)
    model = build_adatad(**arguments(encoder, **options)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def write_checkpoint(folder, root, encoder, **options):
    """A checkpoint whose average is not its last weights."""
    model = detector(encoder, **options)
    average = WeightAverage(model.trained_state)
    with torch.no_grad():
        model.detector.head.cls_out.bias += 1
    run = {
        "model": arguments(encoder, **options),
        "classes": list(CLASSES),
        "windows": dataclasses.asdict(WINDOWS),
        "pixels": dataclasses.asdict(PIXELS),
        "data": "thumos14",
        "settings": {**dict.fromkeys(("annotation", "videos", "subset", "train_subset")), "root": str(root)},
        "command": "recipes/detection.py",
    }
    keeper = checkpoint.Keeper(model, run, average)
    keeper.save(folder, keeper.state(), 3)
    return folder


def edit_run(folder, **values):
    """Change fields of a checkpoint's run.json; those of an object in it are merged."""
    run = json.loads((folder / "run.json").read_text())
    for name, value in values.items():
        run[name] = {**run[name], **value} if isinstance(value, dict) else value
    (folder / "run.json").write_text(json.dumps(run))
