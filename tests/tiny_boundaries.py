"""A tiny BasicGEBD, the sizes of its clips, and clips in which something moves.

write_moving(root)              # the layout of boundary_layouts; the frames of a clip are unlike each other
write_checkpoint(folder, root)  # of random weights
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from action_layouts import write_frames
from boundary_layouts import kinetics, write_kinetics
from video_files import bars, write_pictures

from moss_vllm.boundaries import checkpoint
from moss_vllm.boundaries.batches import ClipSettings
from moss_vllm.boundaries.build import build_gebd

CLIPS = ClipSettings(frames=20, size_px=32)
SLICES = ClipSettings(frames=25, size_px=32, sliced=True)
MOSS = {"temporal": "moss", "temporal_options": {"window": [3, 3, 3], "d_hidden": 8, "d_similarity": 4}}
WITHOUT = {"temporal": "none", "temporal_options": {}}


def gebd(**options):
    """Random weights whose scores differ from frame to frame, over and under a half."""
    torch.manual_seed(0)
    model = build_gebd(variant="mini", **{**MOSS, **options}).eval()
    clip = torch.from_numpy(pictures(20, 0)).permute(0, 3, 1, 2)[None, :, :, 8:40, 8:40].contiguous()
    out = model.head.classifier.out
    with torch.no_grad():
        for parameter in (parameter for name, parameter in model.named_parameters() if name[:4] == "moss"):
            parameter += 0.1 * torch.randn_like(parameter)  # which starts as zero
        logits = model(clip)
        out.weight *= 2 / logits.std()
        out.bias -= model(clip).mean()
    return model


def pictures(count, seed):
    """Each frame shows another number as eight bars, and a square that moves."""
    frames = np.stack([bars((31 * number + 37 * seed) % 256, 48, 64) for number in range(count)])
    for number, frame in enumerate(frames):
        left = (5 * seed + number) % 52
        frame[34:46, left : left + 12] = (230, 40, 60 * seed % 256)
    return frames


def write_moving(root: Path, records=None) -> Path:
    """EfficientGEBD's layout with 100 frames a clip, one of them a video; returns the test's ground truth."""
    file = write_kinetics(root, records)
    for part, some in (records or kinetics()).items():
        for seed, one in enumerate(some.values()):
            folder = root / "images" / part / Path(one["path_frame"]).name
            for picture in folder.iterdir():
                picture.unlink()
            if seed == 1:
                folder.rmdir()
                write_pictures(folder.with_suffix(".mp4"), pictures(100, seed), options={"g": "12"}, fps=10)
            else:
                write_frames(folder, pictures(100, seed))
    return file


def write_checkpoint(folder: Path, root: Path, clips=CLIPS, **options) -> Path:
    """A checkpoint of step 3, trained on `root` by its record."""
    model = gebd(**options)
    where = dict.fromkeys(("annotation", "videos", "subset", "train_subset"))
    run = {
        "model": {"variant": "mini", **MOSS, **options},
        "clips": dataclasses.asdict(clips),
        "data": "kinetics_gebd",
        "settings": {**where, "root": str(root), "threshold": 0.5},
        "command": "recipes/boundaries.py",
    }
    keeper = checkpoint.Keeper(model, run)
    keeper.save(folder, keeper.state(), 3)
    return folder
