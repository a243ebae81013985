"""What a resumed run needs besides the weights: the optimizer's state and the random states of each process.

state/random-RANK.safetensors, state/optimizer.safetensors; under DeepSpeed ZeRO's own files in state/zero;
in float16 state/loss_scale.json
"""

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from moss_vllm.runtime.files import read_json, readable
from moss_vllm.runtime.provenance import faults
from moss_vllm.training import engines

ZERO_FOLDER = "zero"
OPTIMIZER_FILE = "optimizer.safetensors"
SCALE_FILE = "loss_scale.json"
FULL = StateDictOptions(full_state_dict=True)
# What torch, numpy, random and safetensors raise for a state that is damaged or has another shape.
UNREADABLE = (OSError, SafetensorError, RuntimeError, LookupError, ValueError, TypeError)


def save_state(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: Any,
    folder: Path,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Write the optimizer's and the random states, and the loss scale; every process must call it."""
    rank = accelerator.process_index
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_random_state(), folder / f"random-{rank}.safetensors")
    readable(folder / f"random-{rank}.safetensors")
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.runtime.zero.config import ZeroStageEnum

        # Python before 3.11.4 pickles an enum through getattr, which the safe loader rightly refuses.
        ZeroStageEnum.__reduce_ex__ = lambda self, _: (type(self), (self.value,))
        cast(Any, objective).save_checkpoint(str(folder), ZERO_FOLDER, exclude_frozen_parameters=True)
        return
    offload = StateDictOptions(full_state_dict=True, cpu_offload=True)  # for the main process
    state: Any = get_optimizer_state_dict(objective, optimizer.optimizer, options=offload)
    if rank == 0:
        named: dict[str, dict[str, Tensor]] = state["state"]
        flat = {f"{name}/{key}": t.contiguous() for name, one in named.items() for key, t in one.items()}
        save_file(flat, folder / OPTIMIZER_FILE)
        readable(folder / OPTIMIZER_FILE)
        if scaler:
            (folder / SCALE_FILE).write_text(json.dumps(scaler.state_dict()) + "\n")


def load_state(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: Any,
    folder: Path,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Restore what `save_state` wrote; a run that was not in float16 before begins with a new loss scale.

    Raises:
        ValueError: another number of processes or another kind of engine wrote it, or it cannot be read.
    """
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    writers = len(list(folder.glob("random-*.safetensors")))
    if writers != accelerator.num_processes:
        raise ValueError(
            f"{folder} was written by {writers} processes and this run has {accelerator.num_processes}; "
            f"resume with {writers}"
        )
    if deepspeed != (folder / ZERO_FOLDER).is_dir():
        raise ValueError(
            f"{folder} was written {'without' if deepspeed else 'by'} DeepSpeed and this run is "
            f"{engines.name(accelerator)}; resume with the engine that wrote it"
        )
    try:
        if deepspeed:
            with _only_plain_pickles():
                cast(Any, objective).load_checkpoint(str(folder), ZERO_FOLDER, load_module_strict=False)
        else:
            _load_optimizer(objective, optimizer.optimizer, load_file(folder / OPTIMIZER_FILE))
            if scaler and (folder / SCALE_FILE).is_file():
                _load_scale(scaler, folder / SCALE_FILE)
        _restore_random_state(load_file(folder / f"random-{accelerator.process_index}.safetensors"))
    except UnpicklingError as error:  # torch's own message advises to load the file anyway
        raise ValueError(
            f"{folder}: cannot be read (a file holds more than plain tensors, which could run code); "
            "resume from an earlier checkpoint"
        ) from error
    except UNREADABLE as error:
        raise ValueError(f"{folder}: cannot be read ({error}); resume from an earlier checkpoint") from error


def _load_optimizer(objective: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    state: Any = get_optimizer_state_dict(objective, optimizer, options=FULL)  # zeros, by name
    like = {f"{name}/{key}": t for name, one in state["state"].items() for key, t in one.items()}
    if wrong := faults(saved, like):
        raise RuntimeError(f"of the optimizer's states {wrong}")
    for name, value in saved.items():
        group, key = name.rsplit("/", 1)
        own = state["state"][group][key]
        is_count = key != "step" or bool((value == value.round()).all())
        if (
            value.dtype != own.dtype
            or not is_count
            or (key in ("step", "exp_avg_sq") and bool((value < 0).any()))
        ):
            raise RuntimeError(
                f"the optimizer's state {name} is of another type, negative or no whole number"
            )
    for name, one in state["state"].items():
        one.update({key: saved[f"{name}/{key}"] for key in one})
    set_optimizer_state_dict(objective, optimizer, state, options=FULL)


def _load_scale(scaler: torch.amp.GradScaler, file: Path) -> None:
    own, saved = scaler.state_dict(), read_json(file)
    if {name: type(value) for name, value in saved.items()} != {k: type(v) for k, v in own.items()}:
        raise ValueError(f"{SCALE_FILE} holds other values than {', '.join(own)}")
    if not 0 < saved["scale"] < 2**64:
        raise ValueError(f"{SCALE_FILE} has the scale {saved['scale']}")
    scaler.load_state_dict(saved)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Restore every random state of this process at the end of the `with`."""
    state = _random_state()
    try:
        yield
    finally:
        _restore_random_state(state)


def _random_state() -> dict[str, Tensor]:
    _, keys, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state())
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(random.getstate()[1]),
        "numpy": torch.tensor(keys.astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
    }
    return {**state, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _restore_random_state(state: dict[str, Tensor]) -> None:
    """Set every generator; ValueError for an impossible state: numpy would read beyond its array."""
    if not torch.cuda.is_available():  # the state may come from a run on a GPU
        state = {name: value for name, value in state.items() if name != "cuda"}
    _check_random_state(state)
    torch.set_rng_state(state["torch"])
    random.setstate((3, tuple(state["python"].tolist()), None))
    position, has_gauss, gauss = state["numpy_rest"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _check_random_state(state: dict[str, Tensor]) -> None:
    own = _random_state()
    if wrong := faults(state, own):
        raise ValueError(f"of the random states {wrong}")
    words = {name: state[name] for name in ("python", "numpy")}
    *_, python_position = state["python"].tolist()
    position, has_gauss, _ = state["numpy_rest"].tolist()
    allowed = {
        "of another type": all(state[name].dtype == value.dtype for name, value in own.items()),
        "words beyond 32 bits": all(0 <= int(w.min()) and int(w.max()) < 2**32 for w in words.values()),
        "all zero": all(bool(value[:624].any()) for value in words.values()),
        f"python's position {python_position}": 0 <= python_position <= 624,
        f"numpy's position {position:g}": position in range(625),
        f"numpy's has_gauss {has_gauss:g}": has_gauss in (0, 1),
    }
    if out_of_range := [what for what, holds in allowed.items() if not holds]:
        raise ValueError(f"random states out of range: {', '.join(out_of_range)}")


@contextmanager
def _only_plain_pickles() -> Iterator[None]:
    """Have torch refuse pickled code in DeepSpeed's files, which DeepSpeed's own loader would run."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before
