"""Less kept for backward in the training step of a language model.

- `lean_mlps`: of down(silu(gate(x)) * up(x)) autograd keeps gate, silu(gate) and up, and the LoRA of `down`
  keeps their product; silu(gate) and the product are computed again in backward.
- `leave_casts_to_autocast`: LoRA layers share what they read.
- `cross_entropy`: logits of a part of the tokens at a time.

The first two give the values and gradients of a plain step to the bit, the last in another order of sums.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moss_vllm.core.lean import autocast_dtype

LOGITS_AT_ONCE = 2**25  # numbers; with a vocabulary of 152,000 those of 220 tokens
ACTIVATIONS = ("act_fn", "activation_fn")  # as transformers names them in its MLPs
# How to compute a tensor from what its node in autograd's graph keeps, by the node's name.
RECOMPUTE: dict[str, Callable[[Any], Tensor]] = {
    "SiluBackward0": lambda node: F.silu(node._saved_self),
    "MulBackward0": lambda node: node._saved_self * node._saved_other,
}


@contextmanager
def lean_mlps(language_model: nn.Module) -> Iterator[None]:
    """Inside, the gated MLPs of `language_model` keep two tensors of four.

    Layers are called as they are, with whatever adapters and hooks they have. In a layer that is checkpointed
    nothing changes.
    """
    # By their storage, which is not used again while they are here: the tensor, its node and its version.
    made: dict[int, tuple[Tensor, Any, int]] = {}

    def remember(tensor: Tensor) -> None:
        node: Any = tensor.grad_fn
        # A node keeps what its gradients need: all its inputs, where each of them has a gradient.
        if type(node).__name__ in RECOMPUTE and all(before for before, _ in node.next_functions):
            made[tensor.untyped_storage()._cdata] = (tensor, node, tensor._version)

    def pack(tensor: Tensor) -> tuple[Any, Any]:
        whole, node, version = made.get(tensor.untyped_storage()._cdata, (None, None, 0))
        if whole is not None and _are_alike(whole, tensor) and tensor._version == version:
            return node, tensor.shape
        if isinstance(tensor, nn.Parameter):
            return tensor, None  # itself: ZeRO-3 and FSDP exchange its data
        # What a node keeps of its own output would be a reference cycle.
        return tensor.detach(), tensor._version

    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        yield  # of several hooks the innermost alone apply, and somebody's own are there, such as save_on_cpu
        return
    with ExitStack() as undo:
        for mlp in language_model.modules():
            activation = next((getattr(mlp, name) for name in ACTIVATIONS if hasattr(mlp, name)), None)
            down = getattr(mlp, "down_proj", None)
            if isinstance(activation, nn.Module) and isinstance(down, nn.Module):
                for hook in (
                    activation.register_forward_hook(lambda module, args, output: remember(output)),
                    down.register_forward_pre_hook(lambda module, args: remember(args[0])),
                    down.register_forward_hook(lambda *_: made.clear(), always_call=True),
                ):
                    undo.callback(hook.remove)
        undo.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, _unpack))
        yield


def leave_casts_to_autocast(model: nn.Module) -> None:
    """Let LoRA without dropout read what its layer reads; run the model under autocast, which casts it.

    peft casts the input to float32 for each LoRA, and backward keeps a copy for each. With dropout each LoRA
    has an input of its own, so peft's cast stays.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            drops = any(not isinstance(dropout, nn.Identity) for dropout in module.lora_dropout.values())
            module.cast_input_dtype_enabled = drops or bool(module.lora_variant)  # such as DoRA


def cross_entropy(head: Any, hidden: Tensor, target: Tensor) -> Tensor:
    """Sum of the cross entropy of `head(hidden)`, of many tokens a part at a time.

    The gradient of a part follows its loss at once, and is kept in place of its logits. A head that trains
    computes all tokens together. So does one that DeepSpeed shards (ZeRO-3): each of its calls gathers the
    weights, which all processes must do equally often. So does float16, whose gradient
    needs the scale of the loss.

    Shape:
        hidden (N, C), target (N,) -> ().
    """
    at_once = tokens_at_once(getattr(head, "out_features", 1))
    whole = not hasattr(head, "out_features")
    whole |= any(parameter.requires_grad or hasattr(parameter, "ds_id") for parameter in head.parameters())
    whole |= torch.float16 in (hidden.dtype, autocast_dtype(hidden))
    if whole or len(target) <= at_once:
        return _loss(head, hidden, target)
    return cast(Tensor, _LossByParts.apply(hidden, target, head, at_once))  # type: ignore[no-untyped-call]


def _loss(head: Any, hidden: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).float(), target, reduction="sum")


class _LossByParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, target: Tensor, head: Any, at_once: int) -> Tensor:
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        for part, expected in zip(hidden.split(at_once), target.split(at_once), strict=True):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                read = part.detach().requires_grad_(ctx.needs_input_grad[0])
                loss = _loss(head, read, expected)
            losses.append(loss.detach())
            if ctx.needs_input_grad[0]:
                gradients += torch.autograd.grad(loss, read)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable  # the gradient that is kept has no graph
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad).to(gradient.dtype), None, None, None


def tokens_at_once(vocabulary: int) -> int:
    """Tokens whose logits are alive at the same time."""
    return max(1, LOGITS_AT_ONCE // vocabulary)


def _are_alike(whole: Tensor, tensor: Tensor) -> bool:
    same = (tensor.numel(), tensor.dtype) == (whole.numel(), whole.dtype)
    return same and tensor.is_contiguous() and whole.is_contiguous()


def _unpack(packed: tuple[Any, Any]) -> Tensor:
    kept, extra = packed
    if not isinstance(kept, Tensor):
        with torch.no_grad():
            return RECOMPUTE[type(kept).__name__](kept).view(extra)
    if extra is not None and kept._version != extra:  # torch compares them only where there are no hooks
        raise RuntimeError(
            f"a tensor {tuple(kept.shape)} that backward needs was changed in place after it was kept; use "
            "an operation that makes a new tensor"
        )
    return kept
