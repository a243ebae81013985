"""MOSS: the sum over orders of self-similarity (Eq. 5), with every setting of Tables 4 and 10a."""

from collections.abc import Iterable, Iterator, Sequence
from operator import index
from typing import NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from moss_vllm.core.encoder import STSSEncoder, stss_path
from moss_vllm.core.recompute import recomputed
from moss_vllm.core.stss import Window, check_window
from moss_vllm.core.temporal import SECOND_ENCODERS

FUSIONS = ("none", "addition", "mlp", "conv")
MOST_ORDERS = 16  # the paper goes to 4, and each order costs as much as the first


class OrderMaps(NamedTuple):
    """Maps of one order: `similarity` (B, T, H, W, L, U, V) and `motion` (B, T, H, W, d_fuse)."""

    order: int
    similarity: Tensor
    motion: Tensor


class Fusion(nn.Module):
    """The input of order n >= 2 where it is not M^(n-1) alone.

    Shape:
        features (B, T, H, W, d_in), motion (B, T, H, W, d_motion) -> (B, T, H, W, d_motion).

    Reference: Table 4c, which states no sizes. Where F and M differ in width, "addition" projects F to that
    of M by a linear layer.
    """

    def __init__(self, kind: str, d_in: int, d_motion: int) -> None:
        super().__init__()
        self.kind = kind
        both = d_in + d_motion
        if kind == "addition":
            self.project: nn.Module = nn.Identity() if d_in == d_motion else nn.Linear(d_in, d_motion)
        elif kind == "mlp":
            self.project = nn.Sequential(nn.Linear(both, d_motion), nn.GELU(), nn.Linear(d_motion, d_motion))
        else:
            self.project = nn.Conv2d(both, d_motion, 3, padding=1)

    def forward(self, features: Tensor, motion: Tensor) -> Tensor:
        """F + M, or MLP([F, M]), or Conv2d([F, M])."""
        if self.kind == "addition":
            return cast(Tensor, self.project(features) + motion)
        both = torch.cat([features, motion], dim=-1)
        if self.kind == "mlp":
            return cast(Tensor, self.project(both))
        frames = self.project(rearrange(both, "b t h w c -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b t h w c", b=both.shape[0])


class MOSS(nn.Module):
    """Multi-Order Self-Similarity: motion features of a clip, summed over orders. No residual inside.

    With `checkpointing` only what each order reads is kept for backward, where the orders are computed again,
    one after another.

    Order n+1 reads order n's FC output. With `zero_init=True` that output is zero, and order n+1 would see a
    constant at the first step; so it reads M^(n) itself, before the FC (Eq. 3-5 as printed).

    Shape:
        (B, T, H, W, d_in) -> (B, T, H, W, d_out), for any T >= 1 and any H, W.

    Args:
        d_in: channels of the host's features.
        d_out: channels added back to the host.
        orders: the orders whose features are summed; lower ones are computed on the way (Table 4a, 4b).
        window: (L, U, V), odd, in frames and grid cells; or one such triple for each order (Table 10a).
        d_hidden: channels in which similarity is measured.
        d_similarity: D, the width of one encoded similarity map.
        d_fuse: channels after the temporal offsets are fused; 2 * D if not given, as in the ladder.
        fusion: input of orders above the first: "none" (M alone, the paper's choice), or "addition", "mlp" or
            "conv" of M and the input features (Table 4c).
        second: "stss", or the module that replaces the second and last order: "r2plus1d",
            "factorised_attention" or "difference" (Table 4d).
        zero_init: start with 0 as output, so that a host that adds it starts unchanged.
        input_fc: add the FC(F) of Eq. 5 (in the ladder, the adapter outside the module is that FC).

    Raises:
        ValueError: `orders` is empty, repeated or not from 1 to 16, `fusion` or `second` is unknown, the
            number of windows is not that of the orders, `second` comes with other orders than (1, 2), or a
            window or an input is wrong (see `stss`).

    Reference: Sec. 3.3, Eq. 5; Table 7 for the sizes.
    """

    checkpointing = False

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        orders: Iterable[int] = (1, 2),
        window: Sequence[int] | Sequence[Sequence[int]] = (5, 9, 9),
        d_hidden: int = 128,
        d_similarity: int = 64,
        d_fuse: int | None = None,
        fusion: str = "none",
        second: str = "stss",
        zero_init: bool = False,
        input_fc: bool = False,
    ) -> None:
        super().__init__()
        self.orders = _checked_orders(orders)
        if fusion not in FUSIONS:
            raise ValueError(f"unknown fusion '{fusion}'; choose one of {', '.join(FUSIONS)}")
        if second not in ("stss", *SECOND_ENCODERS):
            raise ValueError(f"unknown second '{second}'; choose one of stss, {', '.join(SECOND_ENCODERS)}")
        if second != "stss" and self.orders != (1, 2):
            raise ValueError(
                f"second='{second}' stands in for order 2 of orders=(1, 2), got orders={self.orders}"
            )
        d_fuse = 2 * d_similarity if d_fuse is None else d_fuse
        self.reads_fc_output = not zero_init
        d_read = d_out if self.reads_fc_output else d_fuse
        for n, size in enumerate(_window_of_each(window, max(self.orders)), start=1):
            if n == 2 and second != "stss":
                encoder = SECOND_ENCODERS[second](d_read, d_out, zero_init=zero_init)
            else:
                encoder = STSSEncoder(
                    d_in if n == 1 else d_read,
                    d_out if n in self.orders or self.reads_fc_output else None,
                    window=size,
                    d_hidden=d_hidden,
                    d_similarity=d_similarity,
                    d_fuse=d_fuse,
                )
            self.add_module(f"order{n}", encoder)
            if n > 1 and fusion != "none":
                self.add_module(f"fusion{n}", Fusion(fusion, d_in, d_read))
        self.input_fc = nn.Linear(d_in, d_out) if input_fc else None
        if zero_init:
            for linear in self.last_linears():
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)

    def last_linears(self) -> list[nn.Linear]:
        """The FCs of Eq. 5, whose sum is the output."""
        last = [cast(nn.Linear, self.get_submodule(f"order{n}.out_proj")) for n in self.orders]
        return last if self.input_fc is None else [*last, self.input_fc]

    def forward(self, x: Tensor) -> Tensor:
        """Eq. 5: the sum of each order's FC output, and of FC(F) with `input_fc`."""
        output = None if self.input_fc is None else self.input_fc(x)
        for n, _, _, projected in self._recursion(x):
            if n in self.orders:
                output = projected if output is None else output + projected
        return cast(Tensor, output)

    def path(self) -> str:
        """The way similarities are computed on the module's device, and the reason, in a line."""
        first = cast(STSSEncoder, self.get_submodule("order1"))
        return "self-similarity: {} path ({})".format(*stss_path(first.in_proj.weight.device, first.window))

    @torch.no_grad()
    def maps(self, x: Tensor) -> list[OrderMaps]:
        """Similarity and motion of each order, to be shown (Fig. 5); a replaced order has none.

        Raises:
            ValueError: in training mode, in which the call would change BatchNorm's statistics.
        """
        if self.training:
            raise ValueError("maps() in training mode would change the module; call eval() first")
        return [
            OrderMaps(n, cast(STSSEncoder, self.get_submodule(f"order{n}")).similarity(read), motion)
            for n, read, motion, _ in self._recursion(x)
            if motion is not None
        ]

    def _recursion(self, x: Tensor) -> Iterator[tuple[int, Tensor, Tensor | None, Tensor | None]]:
        """Eq. 3-4 order by order: n, the input of f, M^(n), and its FC output."""
        read = x
        for n in range(1, max(self.orders) + 1):
            encoder, fusion = self.get_submodule(f"order{n}"), self._modules.get(f"fusion{n}")
            read = read if fusion is None else fusion(x, read)
            if not isinstance(encoder, STSSEncoder):
                yield n, read, None, self._run(encoder, read)
                return  # a replaced order is the last
            motion = self._run(encoder, read)
            projected = None if encoder.out_proj is None else encoder.out_proj(motion)
            yield n, read, motion, projected
            read = cast(Tensor, projected) if self.reads_fc_output else motion

    def _run(self, encoder: nn.Module, read: Tensor) -> Tensor:
        again = self.checkpointing
        return cast(Tensor, recomputed(encoder, read, layers=[encoder]) if again else encoder(read))


def checkpoint_moss(model: nn.Module, on: bool) -> bool:
    """Set `checkpointing` of every MOSS in `model`; returns whether there is one."""
    found = [module for module in model.modules() if isinstance(module, MOSS)]
    for module in found:
        module.checkpointing = on
    return bool(found)


def _checked_orders(orders: Iterable[int]) -> tuple[int, ...]:
    try:
        chosen = sorted(index(n) for n in orders)
    except TypeError:
        chosen = []
    if not chosen or len(set(chosen)) < len(chosen) or chosen[0] < 1 or chosen[-1] > MOST_ORDERS:
        raise ValueError(
            f"orders={orders} are not different orders from 1 to {MOST_ORDERS}; the paper uses (1, 2)"
        )
    return tuple(chosen)


def _window_of_each(window: Sequence[int] | Sequence[Sequence[int]], orders: int) -> list[Window]:
    if not isinstance(window, Iterable) or not all(isinstance(size, Iterable) for size in window):
        return [check_window(cast(Sequence[int], window))] * orders  # one window for all
    sizes = cast(list[Sequence[int]], list(window))
    if len(sizes) != orders:
        raise ValueError(
            f"window={window} names {len(sizes)} windows for {orders} orders; give one (L, U, V) for all, or "
            "one for each order up to the highest"
        )
    return [check_window(size) for size in sizes]
