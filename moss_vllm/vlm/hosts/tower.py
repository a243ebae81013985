"""A vision tower with MOSS: a subclass of its own class, which puts hooks on for the length of a call.

    block 1 .. k --> .. last block --> norm --+--> the rest of the tower
                 \\--> raster (t, h, w) --> MOSS --^

No forward is copied, no weight renamed. The subclasses go by the names of the host's classes: transformers
looks up by them what a model can record and how its weights were once called.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moss_vllm.vlm.hosts.host import FRAMES_PER_CLIP, Host, counts

NOT_COMPILED = "MOSS puts hooks on the vision tower for the length of a call: the tower is not compiled"


@functools.cache
def tower_class(stock: Any, host: Host) -> type[nn.Module]:
    """The class of a tower with MOSS; an object of it has `moss`, `moss_sizes` and `told`."""

    @functools.wraps(stock.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward_with_moss(self, args, kwargs)

    return _subclass(stock, {"forward": forward, "stock_class": stock, "host": host, "told": None})


@functools.cache
def model_class(stock: Any, host: Host) -> type[nn.Module]:
    """The class of a model, or of what it has below its head, that tells its tower of clips."""
    names = set(host.tells) | ({"forward", "generate"} if host.takes_frames_per_clip else set())
    head = hasattr(stock, "generate")
    methods = {
        name: telling(getattr(stock, name), host, host.tells.get(name))
        for name in names
        if hasattr(stock, name) and head == (name == "generate")
    }
    return _subclass(stock, {**methods, "stock_class": stock}) if methods else stock


def _subclass(stock: type[nn.Module], own: Mapping[str, Any]) -> type[nn.Module]:
    named = {"__module__": stock.__module__, "__qualname__": stock.__qualname__, "__doc__": stock.__doc__}
    return cast(type[nn.Module], type(stock.__name__, (stock,), {**named, **own}))


def telling(method: Callable[..., Any], host: Host, tell: Callable[[Any, Any, Any], Any] | None) -> Any:
    """The method, which tells the tower what it knows of clips; its signature stays, for `generate`."""

    @functools.wraps(method)
    def told_method(self: Any, *args: Any, **kwargs: Any) -> Any:
        tower = host.tower_of(self)
        told = tower.told
        if host.takes_frames_per_clip and (own := kwargs.pop(FRAMES_PER_CLIP, None)) is not None:
            told = counts(own)
        if tell is not None:
            told = tell(self, _arguments(method, self, args, kwargs), told)
        with _set(tower, "told", told):
            return method(self, *args, **kwargs)

    return told_method


@torch.compiler.disable(reason=NOT_COMPILED)
def forward_with_moss(tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The forward of the tower's own class, with MOSS's features of block k added to its norm's output."""
    host: Host = tower.host
    call = _arguments(tower.stock_class.forward, tower, args, kwargs)
    sizes = host.sizes(tower, call)
    blocks, norm = tower.get_submodule(host.blocks), tower.get_submodule(host.norm)
    after = tower.moss_sizes["after_layer"]
    tapped: list[Tensor] = []

    def tap(module: nn.Module, args: Any, kwargs: Any) -> None:
        tapped.append(_stream(args, kwargs))

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + _motion(tower, tapped.pop(), sizes, call).to(output)

    def cut(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        stream = _stream(args, kwargs).detach()
        return ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})

    with ExitStack() as hooks:

        def hook(handle: RemovableHandle) -> None:
            hooks.callback(handle.remove)

        if not _is_trained(tower):
            # A frozen tower keeps nothing for backward: neither a checkpoint of each block, nor all of it
            # where `enable_input_require_grads` makes the output of its patch embedding require a gradient.
            hook(blocks[0].register_forward_pre_hook(cut, with_kwargs=True))
            for block in blocks:
                if getattr(block, "gradient_checkpointing", False):
                    hooks.enter_context(_set(block, "gradient_checkpointing", False))
        # What goes into the next module is tapped: what comes out of a checkpointed block has no graph in
        # versions of transformers that checkpoint hooks along (up to 5.22).
        following = blocks[after] if after < len(blocks) else norm
        hook(following.register_forward_pre_hook(tap, with_kwargs=True))
        if not host.adds_to_hidden_state:
            hook(norm.register_forward_hook(add))
        output = tower.stock_class.forward(tower, *args, **kwargs)
    if host.adds_to_hidden_state:
        states = list(output.hidden_states)  # the projector reads the last, as `refused` has checked
        states[-1] = states[-1] + _motion(tower, tapped.pop(), sizes, call).to(states[-1])
        output.hidden_states = tuple(states)
    return output


def _motion(tower: Any, stream: Tensor, sizes: list[Any], call: Mapping[str, Any]) -> Tensor:
    """MOSS's features of a block's stream, in the order and shape of the stream."""
    weight = next(tower.moss.parameters())
    # Autocast chooses the number format by itself: a float32 copy of the stream would be kept for backward.
    cast = weight.dtype if not torch.is_autocast_enabled(stream.device.type) else stream.dtype
    stream = stream.to(weight.device, cast)
    if torch.is_grad_enabled() and tower.moss.training and not stream.requires_grad:
        stream.requires_grad_()  # without it ZeRO-3 is never told that MOSS's backward pass is over
    raster = tower.host.to_raster(tower, stream, sizes, call)
    features = tower.moss(raster, sizes)
    return tower.host.from_raster(tower, features, sizes, call)


def _is_trained(tower: Any) -> bool:
    """Whether a weight of the tower in or before its blocks is trained."""
    apart = ("moss.", *tower.host.trained_after)
    return any(p.requires_grad for name, p in tower.named_parameters() if not name.startswith(apart))


def _stream(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _arguments(
    method: Callable[..., Any], this: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name, those of **kwargs among them."""
    signature = inspect.signature(method)
    bound = dict(signature.bind(this, *args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound.update(bound.pop(name, {}))
    return bound


@contextmanager
def _set(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
