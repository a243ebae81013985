"""What differs between engines: one process, DDP, DeepSpeed ZeRO, FSDP2. The loop calls these.

Numbers are the same under each: trained weights are float32, the objective itself autocasts, gradients are
averaged over processes. So an engine is a matter of memory, not of results.
"""

import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers.integrations import unset_hf_deepspeed_config

from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.files import readable
from moss_vllm.runtime.provenance import faults
from moss_vllm.vlm.video_llama3.model import VideoMOSS

ZERO_FOLDER = "zero"
OPTIMIZER_FILE = "optimizer.safetensors"
FULL = StateDictOptions(full_state_dict=True)
# What torch, numpy, random and safetensors say of a state that is damaged or of another shape.
UNREADABLE = (OSError, SafetensorError, RuntimeError, LookupError, ValueError, TypeError)


def start(*, tracker: str | None = None, folder: str | None = None, precision: str = "no") -> Accelerator:
    """The accelerator `accelerate launch` or the environment asks for.

    Args:
        precision: the recipe's own, by which its objective autocasts.

    Raises:
        ValueError: something else was asked of accelerate that the recipes leave undone.
        RunStopped: DeepSpeed or FSDP was asked for and another engine would run; accelerate is silent then.
    """
    _refuse_undone(precision)
    wanted = {"ACCELERATE_USE_DEEPSPEED": "DEEPSPEED", "ACCELERATE_USE_FSDP": "FSDP"}
    asked = {key: engine for key, engine in wanted.items() if os.environ.get(key, "").lower() == "true"}
    handlers = []
    if "WORLD_SIZE" in os.environ:  # a launcher's
        # Without the backend's name, DeepSpeed on the CPU counts one process. Evaluation lets others wait.
        backend = None if torch.cuda.is_available() else "gloo"
        handlers = [InitProcessGroupKwargs(backend=backend, timeout=timedelta(hours=2))]
    # Precision is the objective's own matter.
    accelerator = Accelerator(
        mixed_precision="no", kwargs_handlers=handlers, log_with=tracker, project_dir=folder
    )
    found = accelerator.distributed_type.value
    for variable, engine in asked.items():
        if found != engine:
            raise RunStopped(
                f"{engine} was asked for ({variable}=true) and {found} would run; unset ACCELERATE_USE_CPU "
                "(for DeepSpeed on the CPU set DS_ACCELERATOR=cpu; FSDP needs GPUs)"
            )
    # Else transformers opens a bfloat16 base through ZeRO-3's constructor, which makes it float32.
    unset_hf_deepspeed_config()
    return accelerator


def _refuse_undone(precision: str) -> None:
    """ValueError for what `accelerate launch` or `accelerate config` asks for and no recipe does."""
    own = ("", "no", "none", "auto", "false", "0", "1")
    allowed = {
        "MIXED_PRECISION": (*own, precision),
        "DYNAMO_BACKEND": own,
        "GRADIENT_ACCUMULATION_STEPS": own,
        "USE_MEGATRON_LM": own,
        "USE_PARALLELISM_CONFIG": own,
    }
    remedies = {"MIXED_PRECISION": "--precision", "GRADIENT_ACCUMULATION_STEPS": "--accumulate"}
    for part, values in allowed.items():
        asked = os.environ.get(f"ACCELERATE_{part}", "")
        if asked.lower() not in values:
            own_flag = f"; the recipe's own {remedies[part]} decides" if part in remedies else ""
            raise ValueError(
                f"ACCELERATE_{part}={asked} (of accelerate launch --{part.lower()}, or of accelerate config) "
                f"is not followed{own_flag}: leave it out"
            )


def refuse_quantized(accelerator: Accelerator, quantize: bool) -> None:
    """ValueError for a base in 4 bits under an engine that shards the weights of a model."""
    engine = name(accelerator)
    if quantize and (engine.startswith("FSDP") or engine.endswith("ZeRO-3")):
        raise ValueError(f"--quantize does not go with {engine}; use DDP, ZeRO-2 or one process")


def name(accelerator: Accelerator) -> str:
    """What really runs: "one process", "DDP", "DeepSpeed ZeRO-3", "FSDP2"."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        return f"DeepSpeed ZeRO-{cast(Any, accelerator.state.deepspeed_plugin).zero_stage}"
    if kind == DistributedType.FSDP:
        return "FSDP2" if accelerator.is_fsdp2 else "FSDP1"
    return "one process" if kind == DistributedType.NO else "DDP"


def prepare(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    batch_size: int,
    accumulate: int,
    clip_norm: float,
) -> tuple[nn.Module, Any]:
    """Wrap both for the engine.

    Raises:
        ValueError: a DeepSpeed configuration that would round the trained weights, or that asks for another
            batch or clipping than these.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import set_z3_leaf_modules

        plugin: Any = accelerator.state.deepspeed_plugin
        rounding = [kind for kind in ("bf16", "fp16") if _enabled(plugin.deepspeed_config.get(kind))]
        if rounding:
            raise ValueError(
                f"the DeepSpeed configuration enables {rounding[0]}, which would round the trained weights; "
                f"remove it there and say --precision bf16, which keeps them in float32"
            )
        own = {
            "train_micro_batch_size_per_gpu": batch_size,
            "gradient_accumulation_steps": accumulate,
            "gradient_clipping": clip_norm,
        }
        for key, value in own.items():  # a 1 may be accelerate's own
            if (asked := plugin.deepspeed_config.get(key, "auto")) not in ("auto", 1, value):
                raise ValueError(
                    f"the DeepSpeed configuration asks for {key}={asked} and the recipe for {value}; write "
                    '"auto" there'
                )
        plugin.deepspeed_config |= own
        accelerator.gradient_accumulation_steps = accumulate
        # MOSS runs once for each clip size of a batch. ZeRO-3 would gather its layers' weights as often, and
        # processes with other clips would wait for ever: MOSS is gathered whole, once.
        if plugin.zero_stage == 3 and any(isinstance(module, VideoMOSS) for module in objective.modules()):
            set_z3_leaf_modules(objective, [VideoMOSS])
    return cast(tuple[nn.Module, Any], accelerator.prepare(objective, optimizer))


@contextmanager
def in_company() -> Iterator[None]:
    """RunStopped where another process of this run has ended, which the next exchange with it tells."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise RunStopped(
            f"another process of this run has ended; what it said tells why ({reason})"
        ) from error


def _enabled(section: Any) -> bool:
    return isinstance(section, dict) and section.get("enabled") is True


def backward(accelerator: Accelerator, objective: nn.Module, loss: Tensor, *, last: bool) -> None:
    """Add the gradient of `loss`; at the `last` micro-batch the processes' gradients are summed."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        engine = cast(Any, objective)
        engine.set_gradient_accumulation_boundary(is_boundary=last)
        engine.backward(loss * accelerator.num_processes, scale_wrt_gas=False)
    else:
        (loss * accelerator.num_processes).backward()


def accumulating(accelerator: Accelerator, objective: nn.Module, *, last: bool) -> Any:
    """The context of a micro-batch: processes exchange gradients in the last one of a step only."""
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    return nullcontext() if last or deepspeed else accelerator.no_sync(objective)


def step(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: Mapping[str, Sequence[nn.Parameter]],
    clip_norm: float,
    *,
    by_group: bool,
) -> tuple[float, dict[str, float]]:
    """Clip the gradient and update the weights; a gradient that is not finite changes nothing but ZeRO's.

    Returns: the L2 norm of the gradient before clipping, and `by_group` that of each group.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import safe_get_full_grad

        engine = cast(Any, objective)
        norms = _norms(groups, safe_get_full_grad) if by_group else {}
        engine.step()
        return float(engine.get_global_grad_norm() or 0.0), norms
    norms = _norms(groups, lambda parameter: parameter.grad)
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    if math.isfinite(total):
        if (factor := clip_norm / (total + 1e-6)) < 1:
            for parameter in (p for members in groups.values() for p in members if p.grad is not None):
                cast(Tensor, parameter.grad).mul_(factor)
        optimizer.step()
    optimizer.zero_grad()
    return total, norms if by_group else {}


def _norms(
    groups: Mapping[str, Sequence[nn.Parameter]], gradient: Callable[[nn.Parameter], Tensor | None]
) -> dict[str, float]:
    """L2 norm of each group's gradient; every process must call it."""
    squares = {
        name: [g.float().square().sum() for p in members if (g := gradient(p)) is not None]
        for name, members in groups.items()
    }
    return {
        name: float(whole(torch.stack(found).sum()).sqrt()) if found else 0.0
        for name, found in squares.items()
    }


def whole(value: Tensor) -> Tensor:
    """The tensor with every process's part of it (FSDP shards it); every process must call it."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def full_state(
    accelerator: Accelerator, model: nn.Module, state: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """What `state` returns, with every process's part, in the CPU's memory; every process must call it."""
    gathered: Any = nullcontext()
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed import zero

        gathered = zero.GatheredParameters([p for p in model.parameters() if p.requires_grad])
    with gathered:
        return {name: whole(value.detach()).cpu().clone() for name, value in state().items()}


def save_state(accelerator: Accelerator, objective: nn.Module, optimizer: Any, folder: Path) -> None:
    """Optimizer and random state, safetensors but for ZeRO's own files; every process must call it."""
    rank = accelerator.process_index
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_random_state(), folder / f"random-{rank}.safetensors")
    readable(folder / f"random-{rank}.safetensors")
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.runtime.zero.config import ZeroStageEnum

        # Python before 3.11.4 and 3.12 pickles an enum through getattr, which the loader rightly refuses.
        ZeroStageEnum.__reduce_ex__ = lambda self, _: (type(self), (self.value,))
        cast(Any, objective).save_checkpoint(str(folder), ZERO_FOLDER, exclude_frozen_parameters=True)
        return
    offload = StateDictOptions(full_state_dict=True, cpu_offload=True)  # to the main process only
    state: Any = get_optimizer_state_dict(objective, optimizer.optimizer, options=offload)
    if rank == 0:
        named: dict[str, dict[str, Tensor]] = state["state"]
        flat = {f"{name}/{key}": t.contiguous() for name, one in named.items() for key, t in one.items()}
        save_file(flat, folder / OPTIMIZER_FILE)
        readable(folder / OPTIMIZER_FILE)


def load_state(accelerator: Accelerator, objective: nn.Module, optimizer: Any, folder: Path) -> None:
    """What `save_state` wrote, by the same number of processes and the same kind of engine.

    Raises:
        ValueError: it was written by others, or cannot be read.
    """
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    found = len(list(folder.glob("random-*.safetensors")))
    if found != accelerator.num_processes:
        raise ValueError(
            f"{folder} was written by {found} processes and this run has {accelerator.num_processes}; "
            f"resume with {found}"
        )
    if deepspeed != (folder / ZERO_FOLDER).is_dir():
        raise ValueError(
            f"{folder} was written {'without' if deepspeed else 'by'} DeepSpeed and this run is "
            f"{name(accelerator)}; resume with the engine that wrote it"
        )
    try:
        if deepspeed:
            with _only_plain_pickles():
                cast(Any, objective).load_checkpoint(str(folder), ZERO_FOLDER, load_module_strict=False)
        else:
            _load_optimizer(objective, optimizer.optimizer, load_file(folder / OPTIMIZER_FILE))
        _restore_random_state(load_file(folder / f"random-{accelerator.process_index}.safetensors"))
    except UnpicklingError as error:  # torch's own message advises to load it all the same
        raise ValueError(
            f"{folder}: cannot be read (a file has more than plain tensors in it, which could run code); "
            "resume from an earlier checkpoint"
        ) from error
    except UNREADABLE as error:
        raise ValueError(f"{folder}: cannot be read ({error}); resume from an earlier checkpoint") from error


def _load_optimizer(objective: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    state: Any = get_optimizer_state_dict(objective, optimizer, options=FULL)  # all zero, with its names
    like = {f"{name}/{key}": t for name, one in state["state"].items() for key, t in one.items()}
    if wrong := faults(saved, like):
        raise RuntimeError(f"of the optimizer's states {wrong}")
    for name, value in saved.items():
        group, key = name.rsplit("/", 1)
        known = state["state"][group][key]
        counts = key != "step" or bool((value == value.round()).all())
        if (
            value.dtype != known.dtype
            or not counts
            or (key in ("step", "exp_avg_sq") and bool((value < 0).any()))
        ):
            raise RuntimeError(
                f"the optimizer's state {name} is of another type, negative or no whole number"
            )
    for name, one in state["state"].items():
        one.update({key: saved[f"{name}/{key}"] for key in one})
    set_optimizer_state_dict(objective, optimizer, state, options=FULL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """What runs within it leaves the run's random state as it was."""
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
    """Set every generator; ValueError for what is no state: numpy would read beyond its array."""
    if not torch.cuda.is_available():  # of a run on a GPU
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
    if out_of_range := [what for what, is_right in allowed.items() if not is_right]:
        raise ValueError(f"random states out of range: {', '.join(out_of_range)}")


@contextmanager
def _only_plain_pickles() -> Iterator[None]:
    """DeepSpeed opens its files with a loader that runs what they say; torch can forbid it to."""
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
