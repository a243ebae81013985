"""What opening an encoder of any kind needs: its weights from the hub, from a file or from a fixed seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn


@dataclass(frozen=True)
class LoadedWeights:
    """Where an encoder's weights come from: tensors loaded, and names in the files that it does not need."""

    source: str
    tensors: int
    left_out: tuple[str, ...] = ()

    def describe(self, encoder: str = "video encoder") -> str:
        """A line for the start of a run."""
        if not self.tensors:
            return f"{encoder}: {self.source} weights"
        beside = f", {len(self.left_out)} beside the layers left out" if self.left_out else ""
        return f"{encoder}: all {self.tensors} tensors from {self.source}{beside}"


def always_the_same(build: Callable[[], Any]) -> Any:
    """The result of `build` with a fixed seed, on the CPU on every device; the generator's state is kept."""
    device = torch.get_default_device()
    if device.type == "meta":
        return build()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        return build().to(device)


def refuse_unreachable(hub_id: str, files: Sequence[str], revision: str | None = None) -> None:
    """Raise ConnectionError at once if none of `files` is cached and the hub does not answer.

    timm and transformers would retry for a minute.
    """
    cached = (try_to_load_from_cache(hub_id, name, revision=revision) for name in files)
    if any(isinstance(path, str) for path in cached):
        return
    try:
        get_hf_file_metadata(hf_hub_url(hub_id, files[0], revision=revision))
    except HfHubHTTPError:  # the hub answers: the library tries other names, or reports the reason
        return
    except Exception as error:  # the class depends on the HTTP client of the installed huggingface_hub
        raise ConnectionError(str(error)) from error


def weights_file(weights: str | Path) -> Path | None:
    """The file to read, or None for "pretrained" and "random"; checked before anything is built.

    Raises:
        ValueError: it is not called .safetensors.
        FileNotFoundError: it is not there.
    """
    if weights in ("pretrained", "random"):
        return None
    path = Path(weights)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"weights {path}: neither 'pretrained', 'random' nor a .safetensors file. Others can run code "
            "when read; convert once: safetensors.torch.save_file(torch.load(path, weights_only=True), new)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"weights {path}: no such file")
    return path


def load_whole(
    encoder: nn.Module, weights: Mapping[str, Tensor], source: str, is_beside: Callable[[str], bool]
) -> tuple[str, ...]:
    """Load all weights of an encoder; returns the names beside them that it does not need.

    Args:
        source: where the weights come from, for the error.
        is_beside: whether a name that the encoder does not have may be left out.

    Raises:
        ValueError: names that are missing, unknown or of another shape; it tells them.
    """
    expected = encoder.state_dict()
    more = sorted(set(weights) - set(expected))
    problems = {
        "missing": sorted(set(expected) - set(weights)),
        "unknown": [name for name in more if not is_beside(name)],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} for {tuple(expected[name].shape)}"
            for name in expected
            if name in weights and weights[name].shape != expected[name].shape
        ],
    }
    refuse_partial(source, problems)
    encoder.load_state_dict({name: weights[name] for name in expected})
    return tuple(more)


def refuse_partial(source: str, problems: dict[str, list[str]]) -> None:
    """Raise ValueError if any of `problems`, such as "missing", has names; it counts them and names some."""
    told = [f"{len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names]
    if told:
        raise ValueError(
            f"weights {source} do not fit the encoder: {'; '.join(told)}. Is it the file of another model?"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
