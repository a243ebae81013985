"""The Triton kernels of `stss_triton.py`: correlation and Linear in one pass, and the two gradients.

A program owns a tile of BY x BX positions of one frame. The halo of a tile is the part of another frame that
its windows reach: (BY + U - 1) x (BX + V - 1) positions, row after row, U x V of them for each position.
Tensor cores multiply the whole tile by the whole halo: 2 to 4 times the pairs in the windows, but each halo
is read once. Names in capitals are sizes; those that begin with B are sizes of blocks.
"""

# Triton has no type hints, and reads only `constexpr` in those of a kernel.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import os

import triton
import triton.language as tl
from triton import next_power_of_2

# Triton reads the variable too, when it decorates a function.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MAX_HALO = 512  # a larger one fits neither the registers nor shared memory
SMALLEST_TILE = {"BY": 4, "BX": 8}


def fits(rows: int, columns: int) -> bool:
    """Whether the smallest tile with a window of `rows` x `columns` has a halo that fits."""
    return _halo({"U": rows, "V": columns, **SMALLEST_TILE}) <= MAX_HALO


def _halo(a):
    return (a["BY"] + a["U"] - 1) * (a["BX"] + a["V"] - 1)


def _fitting(configs, arguments, **constants):
    """The configurations whose halo fits; those with a BK read the halo in parts."""
    sizes = {**arguments, **constants}
    return [c for c in configs if "BK" in c.kwargs or _halo({**sizes, **c.kwargs}) <= MAX_HALO]


def _autotune(*choices):
    """Tune (BY, BX, other blocks, warps, stages) per key; the interpreter runs one small configuration."""
    configs = [
        triton.Config({"BY": rows, "BX": columns, **blocks}, num_warps=warps, num_stages=stages)
        for rows, columns, blocks, warps, stages in choices
    ]
    if INTERPRETED:
        configs = [triton.Config({"BY": 4, "BX": 4, **dict.fromkeys(choices[0][2], 16)})]
    return triton.autotune(
        configs,
        key=["C", "D", "L", "U", "V"],  # without H and W, or each shape of clip would be tuned anew
        prune_configs_by={"early_config_prune": _fitting},
    )


_derived = triton.heuristics(
    {
        "BH": lambda a: max(16, next_power_of_2(_halo(a))),
        "BUV": lambda a: max(16, next_power_of_2(a["U"] * a["V"])),
    }
)


@triton.jit
def _locate(number, H, W, BY: tl.constexpr, BX: tl.constexpr):
    """Frame (64-bit: it is multiplied into addresses), first row and first column of tile `number`."""
    across = tl.cdiv(W, BX)
    tiles = across * tl.cdiv(H, BY)
    tile = number % tiles
    return (number // tiles).to(tl.int64), tile // across * BY, tile % across * BX


@triton.jit
def _positions(y0, x0, i, WIDTH: tl.constexpr, H, W):
    """Position in the frame of entry `i` of a block WIDTH wide, and whether the frame has it."""
    y, x = y0 + i // WIDTH, x0 + i % WIDTH
    return y * W + x, (y >= 0) & (y < H) & (x >= 0) & (x < W)


@triton.jit
def _similarity(x, scale, number, offset, T, H, W, C: tl.constexpr, L: tl.constexpr, U: tl.constexpr,
                V: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr,
                BUV: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """S (Eq. 2) of tile `number` at `offset`, counted from 0 to L - 1: (BY*BX, BUV) float32, 0 in padding.

    The features are multiplied first and scaled to cosines afterwards: unit features would be rounded to x's
    dtype, by more than the difference between a moving and a resting position.
    """
    BQ: tl.constexpr = BY * BX
    WIDTH: tl.constexpr = BX + V - 1
    frame, y0, x0 = _locate(number, H, W, BY, BX)
    other = frame + offset - L // 2
    t = frame % T + offset - L // 2
    channels = tl.where((t >= 0) & (t < T), C, 0)  # outside the clip nothing is multiplied: S stays 0
    query, query_inside = _positions(y0, x0, tl.arange(0, BQ), WIDTH=BX, H=H, W=W)
    halo = tl.arange(0, BH)
    key, key_inside = _positions(y0 - U // 2, x0 - V // 2, halo, WIDTH=WIDTH, H=H, W=W)
    key_inside = key_inside & (halo < (BY + U - 1) * WIDTH)
    c = tl.arange(0, BC)
    query_at = x + frame * H * W * C + query[:, None] * C + c[None, :]
    key_at = x + other * H * W * C + key[None, :] * C + c[:, None]
    product = tl.zeros((BQ, BH), tl.float32)
    for start in range(0, channels, BC):
        inside = start + c < C
        a = tl.load(query_at + start, mask=query_inside[:, None] & inside[None, :], other=0.0)
        b = tl.load(key_at + start, mask=key_inside[None, :] & inside[:, None], other=0.0)
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        product = tl.dot(a, b, product, input_precision=PRECISION)
    here = tl.load(scale + frame * H * W + query, mask=query_inside, other=0.0)
    there = tl.load(scale + other * H * W + key, mask=key_inside & (channels > 0), other=0.0)
    product = product * here[:, None] * there[None, :]

    # S[q, uv] = product[q, index of uv's position in the halo]. A 1-D gather uses shared memory; a 2-D gather
    # shuffles each register past all lanes, which takes longer than the products. All rows of `product` begin
    # at the same bank; with blocks of 4 queries by 8 keys a warp writes to all 32 banks.
    product = product.reshape(BQ // 4, 4, BH // 8, 8).permute(0, 2, 1, 3).reshape(BQ * BH)
    i = tl.arange(0, BQ * BUV)
    q, uv = i // BUV, i % BUV
    inside = uv < U * V
    seen = tl.where(inside, (q // BX + uv // V) * WIDTH + q % BX + uv % V, 0)
    at = q // 4 * (4 * BH) + seen // 8 * 32 + q % 4 * 8 + seen % 8
    return tl.where(inside, tl.gather(product, at, 0), 0.0).reshape(BQ, BUV)


@_autotune(
    (4, 8, {"BC": 64, "BD": 64}, 4, 2),
    (4, 8, {"BC": 32, "BD": 32}, 4, 3),
    (8, 8, {"BC": 64, "BD": 64}, 8, 2),
    (8, 8, {"BC": 32, "BD": 64}, 8, 3),
)
@_derived
@triton.jit
def forward(x, scale, weight, z, T, H, W, C: tl.constexpr, D: tl.constexpr, L: tl.constexpr, U: tl.constexpr,
            V: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr,
            BUV: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Z = S W^T, (frames, L, H, W, D); grid (tiles of all frames, L)."""
    number, offset = tl.program_id(0), tl.program_id(1)
    similarity = _similarity(x, scale, number, offset, T, H, W, C, L, U, V,
                             BY, BX, BH, BC, BUV, UPCAST, PRECISION)  # fmt: skip
    if not UPCAST:
        similarity = similarity.to(x.dtype.element_ty)
    frame, y0, x0 = _locate(number, H, W, BY, BX)
    query, query_inside = _positions(y0, x0, tl.arange(0, BY * BX), WIDTH=BX, H=H, W=W)
    uv, d = tl.arange(0, BUV), tl.arange(0, BD)
    weight_at = weight + d[None, :] * (U * V) + uv[:, None]
    z_at = z + (frame * L + offset) * H * W * D + query[:, None] * D + d[None, :]
    for start in range(0, D, BD):
        inside = start + d < D
        w = tl.load(weight_at + start * (U * V), mask=inside[None, :] & (uv < U * V)[:, None], other=0.0)
        if UPCAST:
            w = w.to(tl.float32)
        block = tl.dot(similarity, w, input_precision=PRECISION)
        tl.store(z_at + start, block.to(z.dtype.element_ty), mask=query_inside[:, None] & inside[None, :])


@_autotune(
    (4, 8, {"BC": 64, "BD": 64}, 8, 2),
    (4, 8, {"BC": 32, "BD": 128}, 8, 2),
    (8, 8, {"BC": 32, "BD": 64}, 8, 2),
)
@_derived
@triton.jit
def backward_weight(x, scale, grad_z, partial, frames, T, H, W, C: tl.constexpr, D: tl.constexpr,
                    L: tl.constexpr, U: tl.constexpr, V: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
                    BH: tl.constexpr, BC: tl.constexpr, BUV: tl.constexpr, BD: tl.constexpr,
                    UPCAST: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Parts of dW = dZ^T S, (programs, D, U*V) float32; grid (programs, blocks of D).

    Each program sums over its share of all (tile, offset) and keeps its part of dW in registers.
    """
    uv, d = tl.arange(0, BUV), tl.program_id(1) * BD + tl.arange(0, BD)
    total = tl.zeros((BD, BUV), tl.float32)
    items = frames * tl.cdiv(H, BY) * tl.cdiv(W, BX) * L
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        number, offset = item // L, item % L
        similarity = _similarity(x, scale, number, offset, T, H, W, C, L, U, V,
                                 BY, BX, BH, BC, BUV, UPCAST, PRECISION)  # fmt: skip
        frame, y0, x0 = _locate(number, H, W, BY, BX)
        query, query_inside = _positions(y0, x0, tl.arange(0, BY * BX), WIDTH=BX, H=H, W=W)
        grad_at = grad_z + (frame * L + offset) * H * W * D + query[:, None] * D + d[None, :]
        grad = tl.load(grad_at, mask=query_inside[:, None] & (d < D)[None, :], other=0.0)
        if UPCAST:
            grad = grad.to(tl.float32)
        else:
            similarity = similarity.to(x.dtype.element_ty)
        total = tl.dot(tl.trans(grad), similarity, total, input_precision=PRECISION)
    to = partial + tl.program_id(0).to(tl.int64) * (D * U * V) + d[:, None] * (U * V) + uv[None, :]
    tl.store(to, total, mask=(d < D)[:, None] & (uv < U * V)[None, :])


@_autotune(
    (8, 8, {"BK": 32, "BC": 64}, 4, 3),
    (8, 8, {"BK": 32, "BC": 128}, 4, 3),
    (8, 8, {"BK": 32, "BC": 256}, 8, 3),
    (8, 8, {"BK": 64, "BC": 128}, 8, 3),
    (8, 8, {"BK": 64, "BC": 256}, 8, 2),
)
@triton.jit
def backward_unit(x, scale, grad_s, grad_unit, T, H, W, C: tl.constexpr, D: tl.constexpr, L: tl.constexpr,
                  U: tl.constexpr, V: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr, BK: tl.constexpr,
                  BC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gradient to the unit features, float32, from dS (frames, L, H, W, U*V); grid (tiles, blocks of C).

    Positions p and n are compared twice in S, as S[p, n - p] and as S[n, p - n], and both times p's feature
    is multiplied by n's: dunit[p] = sum over n of (dS[p, n - p] + dS[n, p - n]) unit[n]. So one product
    serves both entries, and only the program that owns p writes dunit[p].
    """
    BQ: tl.constexpr = BY * BX
    WIDTH: tl.constexpr = BX + V - 1
    HALO: tl.constexpr = (BY + U - 1) * WIDTH
    frame, y0, x0 = _locate(tl.program_id(0), H, W, BY, BX)
    t = (frame % T).to(tl.int32)
    q, c = tl.arange(0, BQ), tl.program_id(1) * BC + tl.arange(0, BC)
    query, query_inside = _positions(y0, x0, q, WIDTH=BX, H=H, W=W)
    total = tl.zeros((BQ, BC), tl.float32)
    for start in range(0, HALO, BK):
        halo = start + tl.arange(0, BK)
        key, key_inside = _positions(y0 - U // 2, x0 - V // 2, halo, WIDTH=WIDTH, H=H, W=W)
        key_inside = key_inside & (halo < HALO)
        u, v = halo[None, :] // WIDTH - q[:, None] // BX, halo[None, :] % WIDTH - q[:, None] % BX
        seen = (u >= 0) & (u < U) & (v >= 0) & (v < V) & query_inside[:, None] & key_inside[None, :]
        ours = query[:, None] * (U * V) + u * V + v
        # dS[n, p - n] is loaded as (key, query), so that a warp reads along the U*V of one key.
        u, v = halo[:, None] // WIDTH - q[None, :] // BX, halo[:, None] % WIDTH - q[None, :] % BX
        seen_back = (u >= 0) & (u < U) & (v >= 0) & (v < V) & query_inside[None, :] & key_inside[:, None]
        theirs = key[:, None] * (U * V) + (U - 1 - u) * V + V - 1 - v
        for offset in range(tl.maximum(0, L // 2 - t), tl.minimum(L, T + L // 2 - t)):
            other = frame + offset - L // 2
            here, there = frame * L + offset, other * L + L - 1 - offset
            a = tl.load(grad_s + here * H * W * (U * V) + ours, mask=seen, other=0.0).to(tl.float32)
            b = tl.load(grad_s + there * H * W * (U * V) + theirs, mask=seen_back, other=0.0).to(tl.float32)
            keys = tl.load(x + other * H * W * C + key[:, None] * C + c[None, :],
                           mask=key_inside[:, None] & (c < C)[None, :], other=0.0)  # fmt: skip
            there_scale = tl.load(scale + other * H * W + key, mask=key_inside, other=0.0)
            grad = (a + tl.trans(b)) * there_scale[None, :]
            if UPCAST:
                keys = keys.to(tl.float32)
            total = tl.dot(grad.to(keys.dtype), keys, total, input_precision=PRECISION)
    to = grad_unit + frame * H * W * C + query[:, None] * C + c[None, :]
    tl.store(to, total, mask=query_inside[:, None] & (c < C)[None, :])
