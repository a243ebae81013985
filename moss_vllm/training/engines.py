"""What differs between engines: one process, DDP, DeepSpeed ZeRO, FSDP2. The loop calls these.

All engines compute the same numbers: trained weights are float32, the objective itself autocasts, gradients
are summed over processes. The choice of an engine changes memory and speed, not results.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers.integrations import unset_hf_deepspeed_config

from moss_vllm.runtime.errors import RunStopped


def start(*, tracker: str | None = None, folder: str | None = None, precision: str = "no") -> Accelerator:
    """The accelerator that `accelerate launch` or the environment asks for.

    Args:
        tracker: where the run's curves go, a name of accelerate's.
        folder: the tracker's files are written there.
        precision: of the recipe; its objective autocasts to it.

    Raises:
        ValueError: accelerate was asked for something that no recipe does.
        RunStopped: DeepSpeed, FSDP or several processes were asked for, and accelerate would silently run
            another engine, or each process for itself.
    """
    _refuse_ignored_options(precision)
    variables = {"ACCELERATE_USE_DEEPSPEED": "DEEPSPEED", "ACCELERATE_USE_FSDP": "FSDP"}
    requested = {
        key: engine for key, engine in variables.items() if os.environ.get(key, "").lower() == "true"
    }
    handlers = []
    if "WORLD_SIZE" in os.environ:  # set by a launcher
        # DeepSpeed on the CPU sees one process unless the backend is named. Two hours, because the other
        # processes wait while the first one evaluates.
        backend = None if torch.cuda.is_available() else "gloo"
        handlers = [InitProcessGroupKwargs(backend=backend, timeout=timedelta(hours=2))]
    # Without a device accelerate would leave launched processes apart, each training by itself.
    on_cpu = bool(handlers) and not requested and not torch.accelerator.is_available()
    # The objective autocasts, so accelerate must not.
    accelerator = Accelerator(
        cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers, log_with=tracker, project_dir=folder
    )
    actual = accelerator.distributed_type.value
    if actual == DistributedType.NO and (apart := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise RunStopped(
            f"{apart} processes were launched, and each would train by itself; start them by "
            "`accelerate launch --multi_gpu --num_processes N`, or one process alone"
        )
    for variable, engine in requested.items():
        if actual != engine:
            raise RunStopped(
                f"{engine} was asked for ({variable}=true) and {actual} would run; unset ACCELERATE_USE_CPU "
                "(for DeepSpeed on the CPU set DS_ACCELERATOR=cpu; FSDP needs GPUs)"
            )
    # With this configuration transformers would open a bfloat16 base through ZeRO-3, which makes it float32.
    unset_hf_deepspeed_config()
    return accelerator


def end(accelerator: Accelerator) -> None:
    """Close the trackers and leave the other processes; the last call of a run."""
    accelerator.end_training()
    if accelerator.num_processes > 1:
        release_threads()


def release_threads() -> None:
    """Give gloo's threads time to drop the tensors of the last exchange.

    They need Python's lock for it and outlive `destroy_process_group`; a process that leaves Python before
    they have done so aborts with status -6 although its work is done (pytorch/pytorch pull request 179291).
    """
    time.sleep(0.2)


def _refuse_ignored_options(precision: str) -> None:
    """ValueError for an option of `accelerate launch` or `accelerate config` that no recipe follows."""
    neutral = ("", "no", "none", "auto", "false", "0", "1")
    allowed = {
        "MIXED_PRECISION": (*neutral, precision),
        "DYNAMO_BACKEND": neutral,
        "GRADIENT_ACCUMULATION_STEPS": neutral,
        "USE_MEGATRON_LM": neutral,
        "USE_PARALLELISM_CONFIG": neutral,
    }
    remedies = {"MIXED_PRECISION": "--precision", "GRADIENT_ACCUMULATION_STEPS": "--accumulate"}
    for option, values in allowed.items():
        value = os.environ.get(f"ACCELERATE_{option}", "")
        if value.lower() not in values:
            own_flag = f"; the recipe's own {remedies[option]} decides" if option in remedies else ""
            raise ValueError(
                f"ACCELERATE_{option}={value} (of accelerate launch --{option.lower()}, or of accelerate "
                f"config) is not followed{own_flag}: leave it out"
            )


def refuse_sharded(accelerator: Accelerator) -> None:
    """ValueError for engines other than one process and DDP, of recipes that were not tried with them."""
    if (engine := name(accelerator)) not in ("one process", "DDP"):
        raise ValueError(f"{engine}: this recipe runs in one process or under DDP (--multi_gpu)")


def refuse_quantized(accelerator: Accelerator, quantize: bool) -> None:
    """ValueError for a base in 4 bits under an engine that shards the model's weights."""
    engine = name(accelerator)
    if quantize and (engine.startswith("FSDP") or engine.endswith("ZeRO-3")):
        raise ValueError(f"--quantize does not go with {engine}; use DDP, ZeRO-2 or one process")


def name(accelerator: Accelerator) -> str:
    """The engine that runs: "one process", "DDP", "DeepSpeed ZeRO-3", "FSDP2"."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        return f"DeepSpeed ZeRO-{cast(Any, accelerator.state.deepspeed_plugin).zero_stage}"
    if kind == DistributedType.FSDP:
        return "FSDP2" if accelerator.is_fsdp2 else "FSDP1"
    return "one process" if kind == DistributedType.NO else "DDP"


def wrap(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    batch_size: int,
    accumulate: int,
    clip_norm: float,
    gather_whole: Sequence[type[nn.Module]] = (),
) -> tuple[nn.Module, Any]:
    """Wrap objective and optimizer for the engine.

    Args:
        gather_whole: kinds of modules whose weights ZeRO-3 gathers once a step, all at once.

    Raises:
        ValueError: a DeepSpeed configuration that would round the trained weights, or that asks for another
            batch size, accumulation or clipping.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import set_z3_leaf_modules

        plugin: Any = accelerator.state.deepspeed_plugin
        rounding = [kind for kind in ("bf16", "fp16") if _enabled(plugin.deepspeed_config.get(kind))]
        if rounding:
            raise ValueError(
                f"the DeepSpeed configuration enables {rounding[0]}, which would round the trained weights; "
                "remove it there and use --precision bf16, which keeps them in float32"
            )
        own = {
            "train_micro_batch_size_per_gpu": batch_size,
            "gradient_accumulation_steps": accumulate,
            "gradient_clipping": clip_norm,
        }
        for key, value in own.items():  # 1 is also accelerate's default
            if (configured := plugin.deepspeed_config.get(key, "auto")) not in ("auto", 1, value):
                raise ValueError(
                    f"the DeepSpeed configuration asks for {key}={configured} and the recipe for {value}; "
                    'write "auto" there'
                )
        plugin.deepspeed_config |= own
        accelerator.gradient_accumulation_steps = accumulate
        # A module that runs a different number of times in each process (MOSS: once for each clip size in
        # the batch) would have its layers gathered as often, and the processes would wait for each other.
        held = [kind for kind in gather_whole if any(isinstance(m, kind) for m in objective.modules())]
        if plugin.zero_stage == 3 and held:
            set_z3_leaf_modules(objective, held)
    return cast(tuple[nn.Module, Any], accelerator.prepare(objective, optimizer))


@contextmanager
def in_company() -> Iterator[None]:
    """RunStopped if another process of this run has ended: the next exchange with it fails."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise RunStopped(
            f"another process of this run has ended; its own message has the cause ({reason})"
        ) from error


def _enabled(section: Any) -> bool:
    return isinstance(section, dict) and section.get("enabled") is True


def loss_scaler(accelerator: Accelerator, dtype: torch.dtype | None) -> torch.amp.GradScaler | None:
    """What multiplies the loss so that float16 can hold its gradients; None for other formats.

    Raises:
        ValueError: an engine that scales its gradients itself, or shards them.
    """
    if dtype != torch.float16:
        return None
    if (engine := name(accelerator)) not in ("one process", "DDP"):
        raise ValueError(f"--precision fp16 does not go with {engine}; use bf16, or one process or DDP")
    return torch.amp.GradScaler(accelerator.device.type)


def backward(
    accelerator: Accelerator,
    objective: nn.Module,
    loss: Tensor,
    *,
    last: bool,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Add the gradient of `loss`; at the `last` micro-batch, sum the gradients over the processes."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        engine = cast(Any, objective)
        engine.set_gradient_accumulation_boundary(is_boundary=last)
        engine.backward(loss * accelerator.num_processes, scale_wrt_gas=False)
    else:
        loss = loss * accelerator.num_processes
        (loss if scaler is None else scaler.scale(loss)).backward()


def accumulating(accelerator: Accelerator, objective: nn.Module, *, last: bool) -> Any:
    """The context of a micro-batch: processes exchange gradients only in the last one of a step."""
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
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[float, dict[str, float]]:
    """Clip the gradient and update the weights; a gradient that is not finite is used under ZeRO only.

    Args:
        scaler: that scaled the losses; a gradient that is not finite halves its scale.

    Returns: the L2 norm of the gradient before clipping, and with `by_group` the norm of each group.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import safe_get_full_grad

        engine = cast(Any, objective)

        def norm_of(parameter: nn.Parameter) -> Tensor | None:  # of one whole gradient at a time
            whole_gradient = safe_get_full_grad(parameter)
            return None if whole_gradient is None else whole_gradient.norm()

        norms = _norms(groups, norm_of) if by_group else {}
        engine.step()
        return float(engine.get_global_grad_norm() or 0.0), norms
    if scaler:
        scaler.unscale_(cast(Any, optimizer).optimizer)
    norms = _norms(groups, lambda parameter: parameter.grad)
    total = math.hypot(*norms.values())
    if math.isfinite(total):
        trained = [p for members in groups.values() for p in members]
        clip_grads_with_norm_(trained, clip_norm, torch.tensor(total))
        optimizer.step()
    if scaler:
        scaler.update()
    optimizer.zero_grad()
    return total, norms if by_group else {}


def _norms(
    groups: Mapping[str, Sequence[nn.Parameter]], gradient: Callable[[nn.Parameter], Tensor | None]
) -> dict[str, float]:
    """L2 norm of each group's gradient, from its parts or from their norms; every process must call it."""
    found = {name: [g for p in members if (g := gradient(p)) is not None] for name, members in groups.items()}
    return {name: float(whole(get_total_norm(gradients))) for name, gradients in found.items()}


def whole(value: Tensor) -> Tensor:
    """The whole tensor, which FSDP shards over the processes; every process must call it."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


@contextmanager
def same_statistics(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Within the `with`, all processes have the first one's BatchNorm statistics, which a checkpoint holds.

    Every process must call it; afterwards each has its own again.
    """
    if accelerator.num_processes == 1:
        yield
        return
    held = [b for m in model.modules() if isinstance(m, _BatchNorm) for b in m.buffers(recurse=False)]
    own = [buffer.clone() for buffer in held]
    for buffer in held:
        torch.distributed.broadcast(buffer, src=0)
    try:
        yield
    finally:
        for buffer, before in zip(held, own, strict=True):
            buffer.copy_(before)


def full_state(
    accelerator: Accelerator, model: nn.Module, state: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of `state`, gathered whole into the CPU's memory; every process must call it."""
    gathered: Any = nullcontext()
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed import zero

        gathered = zero.GatheredParameters([p for p in model.parameters() if p.requires_grad])
    with gathered:
        return {name: whole(value.detach()).cpu().clone() for name, value in state().items()}
