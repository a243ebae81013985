"""Which packages, and which commit of this code, a number was made with."""

import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ABSENT = "not installed"
# Packages that can change a number: models and training, what fuses or shares out their work, frames.
PACKAGES: tuple[str, ...] = ("moss_vllm", "torch", "transformers", "tokenizers", "peft", "accelerate")
PACKAGES += ("safetensors", "numpy", "deepspeed", "bitsandbytes", "triton", "flash-attn", "einops")
PACKAGES += ("av", "decord", "torchcodec", "torchvision", "timm", "pillow")
ROOT = Path(__file__).resolve().parents[2]


def versions() -> dict[str, str | None]:
    """Versions of Python, of `PACKAGES` and of av's FFmpeg libraries, and the commit of this code.

    They are those of the process's first call, as files may be replaced while a long run goes on.
    """
    return dict(_first_versions())


@cache
def _first_versions() -> dict[str, str | None]:
    import av  # its FFmpeg libraries stand in no package's metadata

    packages = {name: _version(name) for name in PACKAGES}
    libraries = {name: ".".join(map(str, number)) for name, number in sorted(av.library_versions.items())}
    return {"python": platform.python_version(), **packages, **libraries, "git_commit": git_commit()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT


def git_commit(root: Path = ROOT) -> str | None:
    """The commit of the repository whose root holds this package, with "-dirty" if files differ from it.

    None for an installed package, also one in another project's repository, and without git.
    """
    if not (root / ".git").exists():
        return None
    # Named by flags, the repository is neither one further up nor that of a git hook's variables.
    git = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    options: dict[str, Any] = {"cwd": root, "env": variables, "capture_output": True, "text": True}
    options |= {"check": True, "timeout": 10}
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", "moss_vllm/__init__.py"], **options)
        words = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return str(subprocess.run([*git, *words], **options).stdout).strip()
    except (OSError, subprocess.SubprocessError):
        return None


def without_absent(recorded: Any) -> Any:
    """The recorded versions of what was there, for pages; what is no record stays as it is."""
    if not isinstance(recorded, Mapping):
        return recorded
    return {name: value for name, value in recorded.items() if value not in (None, ABSENT)}


def tell_changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, as "av 17.1.0 and 18.1.0"; what only one recorded is left out, as once less was."""
    differ = [name for name in was if name in now and was[name] != now[name]]
    return ", ".join(f"{name} {was[name] or 'none'} and {now[name] or 'none'}" for name in differ)
