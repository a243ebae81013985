"""What must hold for MOSS in every host: checks on its tiny model, which raise AssertionError."""

import contextlib
import copy
import dataclasses
import inspect
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from host_models import _built, attach, fresh, inputs_of, logits, loss_of, stock_inputs, wake, with_lora
from tiny_hosts import Size, TinyHost
from torch import Tensor, nn

import moss_vllm
from moss_vllm.runtime.quiet import quiet
from moss_vllm.vlm.attach import attached, stock_model

ATTENTION_OUTPUT = r"(attn\.proj|out_proj|projection_layer)\."


def identity(tiny: TinyHost, folder: Path) -> None:
    """Bit-identical at the start, and after detaching a MOSS that moved it; all names are the stock's."""
    model, inputs = fresh(tiny), inputs_of(tiny)
    before, names = logits(model, inputs), list(model.state_dict())
    assert torch.equal(logits(attach(model), inputs), before)
    assert not torch.allclose(logits(wake(model), inputs), before, atol=1e-3)
    assert [name for name in model.state_dict() if ".moss." not in name] == names
    moss_vllm.detach(model)
    assert torch.equal(logits(model, inputs), before) and list(model.state_dict()) == names
    assert not any(hasattr(module, "stock_class") for module in model.modules())


def grid(tiny: TinyHost, folder: Path) -> None:
    """A changed patch of pixels moves its own cell of MOSS's grid, whose features go where the patch goes."""
    model = attach(fresh(tiny))
    host, tower = attached(model)
    for name, weight in tower.get_submodule(host.blocks).named_parameters():
        if re.search(ATTENTION_OUTPUT, name):
            weight.data.zero_()  # so that a token depends on its own patch alone
    clip = tiny.sizes[0]
    cell = (1, 2, 3)
    inputs = inputs_of(tiny, clip)
    changed = {**inputs, tiny.pixels: inputs[tiny.pixels].clone()}
    changed[tiny.pixels][patch_index(tiny, clip, cell)] += 1.0
    seen, stub = _listen(tower)
    for one in (inputs, changed):
        logits(model, one)
    rows = (seen[0] - seen[1]).abs().amax(-1).nonzero().flatten().tolist()
    t, y, x = cell
    expected = (t * clip[1] + y) * clip[2] + x
    assert rows == [expected], f"cell {expected} changed, MOSS saw {rows}"

    embeddings: list[Tensor] = []
    text = host_text(model)
    text.register_forward_pre_hook(
        lambda module, args, kwargs: embeddings.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    for one, row in ((inputs, None), (changed, None), (inputs, expected)):
        stub.row = row
        logits(model, one)
    by_pixel, by_moss = (
        (embeddings[0] - other).abs().amax(-1).nonzero().tolist() for other in embeddings[1:]
    )
    assert len(by_pixel) == 1 and by_moss == by_pixel, f"a patch reaches {by_pixel}, its motion {by_moss}"


def host_text(model: Any) -> nn.Module:
    """The language model."""
    return getattr(model.model, "language_model", None) or model.model.text_model


def patch_index(tiny: TinyHost, clip: Size, cell: Size) -> Any:
    """Where the pixels of a cell of the grid are; written down here apart from the package's way."""
    (_, rows, columns), (t, y, x) = clip, cell
    if tiny.make_inputs([clip], torch.Generator())[tiny.pixels].dim() == 2:  # patches in merge-block order
        block = (y // 2) * (columns // 2) + x // 2
        return t * rows * columns + 4 * block + 2 * (y % 2) + x % 2
    place = (t, slice(None), slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4))
    flat = tiny.make_inputs([clip], torch.Generator())[tiny.pixels].dim() == 4
    return place if flat else (0, *place)


class _Stub(nn.Module):
    """In MOSS's place: keeps what it is given, and answers with ones for one row of it."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = seen
        self.row: int | None = None

    def forward(self, tokens: Tensor, sizes: Any) -> Tensor:
        self.seen.append(tokens)
        features = torch.zeros_like(tokens)
        if self.row is not None:
            features[self.row] = torch.linspace(-1, 1, tokens.shape[1])
        return features


def _listen(tower: Any) -> tuple[list[Tensor], _Stub]:
    seen: list[Tensor] = []
    tower.moss = _Stub(seen)
    return seen, tower.moss


def inverse(tiny: TinyHost, folder: Path) -> None:
    """The order of tokens in raster and back is the stream's own, over clips of different sizes."""
    model = attach(fresh(tiny))
    host, tower = attached(model)
    calls: list[Any] = []

    def watched(tower: Any, stream: Tensor, sizes: Any, call: Any) -> Tensor:
        calls.append((stream, sizes, call))
        return host.to_raster(tower, stream, sizes, call)

    type(tower).host = dataclasses.replace(host, to_raster=watched)
    try:
        for sizes in [tiny.sizes] if tiny.mixes else [[size] for size in tiny.sizes]:
            logits(model, inputs_of(tiny, *sizes))
    finally:
        type(tower).host = host
    assert calls
    for stream, sizes, call in calls:
        raster = host.to_raster(tower, stream, sizes, call)
        assert raster.shape == (sum(t * h * w for t, h, w in sizes), stream.shape[-1])
        back = host.from_raster(tower, raster, sizes, call)
        first = stream.shape[1] - sizes[0][1] * sizes[0][2] if stream.dim() == 3 else 0  # class tokens
        assert back.shape == stream.shape and not back[:, :first].any()
        assert torch.equal(back[:, first:] if first else back, stream[:, first:] if first else stream)


def batch(tiny: TinyHost, folder: Path) -> None:
    """Two clips of different size in one batch equal each alone; of one size where a host takes no others."""
    model, sizes = wake(attach(fresh(tiny))), tiny.sizes
    joins = tiny.mixes or "mm_encoder_outputs" in inspect.signature(model.forward).parameters
    if not joins:  # transformers 5.17
        sizes = (sizes[0], sizes[0])
    generator = torch.Generator().manual_seed(1)
    both = tiny.make_inputs(sizes, generator) if tiny.mixes or not joins else None
    generator.manual_seed(1)
    alone = [tiny.make_inputs([size], generator) for size in sizes]
    singles = torch.cat([logits(model, one) for one in alone])
    if both is None:  # encoded one by one, then joined
        encoded = [model.model.get_video_features(one["pixel_values_videos"]) for one in alone]
        encoded[0].pooler_output = torch.cat([one.pooler_output for one in encoded], 1)
        both = _joined_words(alone) | {"mm_encoder_outputs": {"video": encoded[0]}}
    together = logits(model, both)
    torch.testing.assert_close(together, singles, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(singles[0], singles[1], atol=1e-2)


def _joined_words(alone: list[dict[str, Any]]) -> dict[str, Tensor]:
    longest = max(one["input_ids"].shape[1] for one in alone)
    return {
        name: torch.cat([nn.functional.pad(one[name], (longest - one[name].shape[1], 0)) for one in alone])
        for name in ("input_ids", "attention_mask")
    }


def generate(tiny: TinyHost, folder: Path) -> None:
    """generate() with a cache says what forward says, with MOSS; also through peft."""
    model, inputs = (
        wake(attach(fresh(tiny))),
        inputs_of(tiny, *(tiny.sizes if tiny.mixes else tiny.sizes[1:])),
    )
    settings = {
        "max_new_tokens": 3,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    said = model.generate(**inputs, **settings, eos_token_id=None, pad_token_id=0)
    assert len(said.logits) == 3
    torch.testing.assert_close(said.logits[0], logits(model, inputs), atol=2e-4, rtol=1e-4)
    through_peft = with_lora(copy.deepcopy(model)).eval().generate(**inputs, **settings)
    torch.testing.assert_close(through_peft.logits[0], said.logits[0], atol=2e-4, rtol=1e-4)
    plain = moss_vllm.detach(model).generate(**stock_inputs(inputs), **settings)
    assert not torch.allclose(said.logits[0], plain.logits[0], atol=1e-3)
    assert not torch.allclose(said.logits[2], plain.logits[2], atol=1e-3)  # from the cache


def gradients(tiny: TinyHost, folder: Path) -> None:
    """Gradients reach MOSS, projector and LoRA, every weight of them, and nothing else."""
    model = wake(with_lora(attach(fresh(tiny)))).train()
    loss_of(model, inputs_of(tiny)).backward()
    host, _ = attached(model)
    parts = (r"\.moss\.modules_to_save\.", rf"{host.projector}\.modules_to_save\.", r"\.lora_[AB]\.")
    reached = {name for name, weight in model.named_parameters() if weight.grad is not None}
    wanted = {n for n, _ in model.named_parameters() if any(re.search(part, n) for part in parts)}
    assert reached == wanted, (
        f"too few {sorted(wanted - reached)[:3]}, too many {sorted(reached - wanted)[:3]}"
    )
    for part in parts:
        grads = [w.grad for n, w in model.named_parameters() if re.search(part, n)]
        assert grads and any(bool(grad.abs().sum()) for grad in grads), f"no gradient in {part}"
    with model.disable_adapter(), torch.no_grad():
        model.eval()
        plain = logits(_built(tiny.name), stock_inputs(inputs_of(tiny)))
        # Equal but for rounding: which kernel multiplies may depend on where a copied weight lies in memory.
        torch.testing.assert_close(logits(model, inputs_of(tiny)), plain)


def use_checkpoints(model: Any, *, reentrant: bool) -> None:
    """Gradient checkpointing, by its name from transformers 5.23 on or the one before."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})


def frozen(tiny: TinyHost, folder: Path) -> None:
    """A frozen tower keeps nothing for backward, whatever peft and checkpointing ask for."""
    model = with_lora(attach(fresh(tiny)))
    model.enable_input_require_grads()
    use_checkpoints(model.get_base_model(), reentrant=False)
    host, tower = attached(model)
    wanted: list[bool] = []
    last = tower.get_submodule(host.blocks)[-1]
    last.register_forward_hook(lambda module, args, output: wanted.append(_first(output).requires_grad))
    loss_of(model.train(), inputs_of(tiny)).backward()
    next(tower.get_submodule(host.blocks)[0].parameters()).requires_grad_(True)
    loss_of(model, inputs_of(tiny))
    assert wanted[0] is False and wanted[-1] is True


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def checkpointing(tiny: TinyHost, folder: Path) -> None:
    """A trained tower has the same gradients with both modes of gradient checkpointing."""
    found = []
    for mode in (None, False, True):
        model = wake(attach(fresh(tiny))).train()
        if mode is not None:
            use_checkpoints(model, reentrant=mode)
        loss_of(model, inputs_of(tiny)).backward()
        found.append({n: w.grad for n, w in model.named_parameters() if w.grad is not None})
    plain, *others = found
    host, _ = attached(model)
    assert any(name.startswith(f"{host.tower}.{host.blocks}.0.") for name in plain)
    for other in others:
        assert other.keys() == plain.keys()
        for name, grad in plain.items():
            torch.testing.assert_close(other[name], grad, atol=1e-6, rtol=1e-4)


def saved(tiny: TinyHost, folder: Path) -> None:
    """Saved and loaded again the model is bit-equal, with BatchNorm's statistics; with peft and without."""
    base = folder / "base"
    fresh(tiny).save_pretrained(base)
    for kind in ("alone", "peft"):
        with quiet():
            stock = type(_built(tiny.name)).from_pretrained(base)
        model = attach(stock)
        model = wake(with_lora(model) if kind == "peft" else model)
        with torch.no_grad():
            model.train()(**inputs_of(tiny))  # moves the statistics
        inputs = inputs_of(tiny)
        moss_vllm.save(model.eval(), folder / kind)
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            again = moss_vllm.load(folder / kind)
        assert torch.equal(logits(again, inputs), logits(model, inputs))
        mine, loaded = model.state_dict(), again.state_dict()
        assert mine.keys() == loaded.keys()
        apart = ".moss.original_module."  # drawn anew, and never run but as zero
        assert all(torch.equal(mine[name], loaded[name]) for name in mine if apart not in name)
        assert any("running_mean" in name for name in mine)
        assert isinstance(stock_model(again), type(_built(tiny.name)))


def deepcopied(tiny: TinyHost, folder: Path) -> None:
    """A deep copy has a MOSS of its own."""
    model = wake(attach(fresh(tiny)))
    inputs = inputs_of(tiny)
    before, other = logits(model, inputs), copy.deepcopy(model)
    assert torch.equal(logits(other, inputs), before)
    for weight in attached(other)[1].moss.parameters():
        weight.data.zero_()
    assert torch.equal(logits(model, inputs), before)
    plain = logits(_built(tiny.name), stock_inputs(inputs))
    assert torch.equal(logits(other, inputs), plain)


def half(tiny: TinyHost, folder: Path) -> None:
    """A bfloat16 model with MOSS in float32: bit-identical at the start, then moved by it, and trained."""
    model, inputs = fresh(tiny).to(torch.bfloat16), inputs_of(tiny)
    before = logits(model, stock_inputs(inputs))
    assert torch.equal(logits(attach(model), inputs), before) and before.dtype == torch.bfloat16
    _, tower = attached(model)
    assert {weight.dtype for weight in tower.moss.parameters()} == {torch.float32}
    assert not torch.allclose(logits(wake(model, 1.0), inputs), before, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(model.train(), inputs).backward()
    grads = [weight.grad for weight in tower.moss.parameters()]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads)
    assert all(bool(grad.isfinite().all()) for grad in grads)


def images(tiny: TinyHost, folder: Path) -> None:
    """A clip of one step of time is an image: MOSS leaves it as it is, yet each weight has a gradient."""
    model, (_, rows, columns) = wake(attach(fresh(tiny))), tiny.sizes[0]
    inputs = inputs_of(tiny, (1, rows, columns))
    plain = logits(_built(tiny.name), stock_inputs(inputs))
    assert torch.equal(logits(model, inputs), plain)
    loss_of(model.train(), inputs).backward()
    assert all(weight.grad is not None for weight in attached(model)[1].moss.parameters())


def compiled(tiny: TinyHost, folder: Path) -> None:
    """torch.compile gives the same logits, with the tower as it is; one graph of all it refuses."""
    model, inputs = wake(attach(fresh(tiny))), inputs_of(tiny)
    plain = logits(model, inputs)
    for whole in (False, True):
        torch._dynamo.reset()
        try:
            said = logits(torch.compile(model, backend="eager", fullgraph=whole), inputs)
        except Exception as error:  # of many kinds, and often for a reason of the host's own
            assert whole, error
        else:
            assert not whole, "one graph was made of all"
            torch.testing.assert_close(said, plain, atol=1e-5, rtol=1e-4)


CHECKS: dict[str, Callable[[TinyHost, Path], None]] = {
    "identity": identity,
    "grid": grid,
    "inverse": inverse,
    "images": images,
    "batch": batch,
    "generate": generate,
    "gradients": gradients,
    "frozen": frozen,
    "checkpointing": checkpointing,
    "save": saved,
    "deepcopy": deepcopied,
    "bfloat16": half,
    "compile": compiled,
}


if __name__ == "__main__":
    raise SystemExit("experiments/host_checks.py is a part of other commands, not a command")
