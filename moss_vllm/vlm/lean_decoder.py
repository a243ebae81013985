"""A language model that trains with less kept for backward; values and gradients are the same to the bit.

    down(silu(gate(x)) * up(x))

Of a gated MLP autograd keeps gate, silu(gate) and up, and the LoRA of `down` their product. Two of these
four are a cheap function of the others: `lean_mlps` computes them again when backward asks for them. Layers
are called as they are, with whatever adapters and hooks they have. In a layer that is checkpointed nothing
changes.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 2**25  # numbers; with a vocabulary of 152,000 those of 220 tokens
ACTIVATIONS = ("act_fn", "activation_fn")  # as transformers names them in its MLPs
# How to make a tensor again from what its node in autograd's graph keeps, by the node's name.
AGAIN: dict[str, Callable[[Any], Tensor]] = {
    "SiluBackward0": lambda node: F.silu(node._saved_self),
    "MulBackward0": lambda node: node._saved_self * node._saved_other,
}


@contextmanager
def lean_mlps(language_model: nn.Module) -> Iterator[None]:
    """Inside, the gated MLPs of `language_model` keep two tensors of four."""
    made: dict[int, Tensor] = {}  # by their storage, which is not used again while they are here

    def remember(tensor: Tensor) -> None:
        if type(tensor.grad_fn).__name__ in AGAIN:
            made[tensor.untyped_storage()._cdata] = tensor

    def pack(tensor: Tensor) -> Any:
        whole = made.get(tensor.untyped_storage()._cdata)
        if whole is None or tensor.numel() != whole.numel() or tensor.dtype != whole.dtype:
            return tensor
        return whole.grad_fn, tensor.shape

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

    peft would make it float32 before, and backward would keep a copy for each LoRA of what several read. With
    dropout each reads its own.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            drops = any(not isinstance(dropout, nn.Identity) for dropout in module.lora_dropout.values())
            module.cast_input_dtype_enabled = drops


def cross_entropy(head: Any, hidden: Tensor, target: Tensor) -> Tensor:
    """Sum of the cross entropy of `head(hidden)`, of many tokens a part at a time.

    The gradient of a part follows its loss at once, and is kept in place of its logits. A head that trains
    computes all tokens together. So does one that DeepSpeed shards (ZeRO-3): each of its calls gathers the
    weights, which all processes must do equally often.

    Shape:
        hidden (N, C), target (N,) -> ().
    """
    at_once = tokens_at_once(head.out_features)
    trains = any(parameter.requires_grad for parameter in head.parameters())
    if len(target) <= at_once or trains or hasattr(head.weight, "ds_id"):
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


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    node, shape = packed
    with torch.no_grad():
        return AGAIN[type(node).__name__](node).view(shape)
