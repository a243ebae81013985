"""What a result was made with beside its weights and settings: told with it, and no reason to refuse it."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import torch

# What decides frames (decoders, resizing) and numbers; the packages of a run's `versions` are told there.
PACKAGES = ("av", "decord", "torchcodec", "torchvision", "timm", "einops", "numpy", "pillow", "flash-attn")


def describe_environment(model: Any) -> dict[str, str]:
    """Versions of packages and of av's FFmpeg, the commit of this code, device, dtype, attention."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["libavcodec"] = ".".join(map(str, av.library_versions["libavcodec"]))
    if commit := git_commit():
        found["git_commit"] = commit
    weight = next(model.parameters())
    on_gpu = weight.device.type == "cuda"
    found["device"] = torch.cuda.get_device_name(weight.device) if on_gpu else weight.device.type
    found["dtype"] = str(weight.dtype).removeprefix("torch.")
    if attention := getattr(getattr(model, "config", None), "_attn_implementation", None):
        found["attention"] = attention
    return found


def git_commit() -> str | None:
    """The commit of this package where it runs from a clone, with "-dirty" if files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed; a repository further up would be another project's
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or no repository for this user
        return None
