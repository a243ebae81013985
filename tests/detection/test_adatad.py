"""Owns: AdaTAD's backbone equals the authors', MOSS changes nothing at the start, and what trains."""

import json
import re

import pytest
import torch
from golden_adatad import ADAPTER_NAMES, assert_near, behind, read_golden, renamed
from safetensors.torch import save_file
from torch import nn
from transformers import VideoMAEConfig

from moss_vllm.core.detection_presets import DETECTION_B, DETECTION_L, DETECTION_S, DETECTORS
from moss_vllm.detection.adatad import AdaTAD
from moss_vllm.detection.build import build_adatad
from moss_vllm.encoders.video import AfterLayer
from moss_vllm.training import optim

MOSS = {"window": (3, 3, 3), "d_hidden": 8, "d_similarity": 4}
DETECTOR = {"dim": 16, "heads": 2, "levels": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A VideoMAE of the golden case: its config.json, and the weights in a file with the authors' names."""
    golden, settings = read_golden("backbone")
    path = tmp_path_factory.mktemp("videomae")
    VideoMAEConfig(
        hidden_size=settings["width"],
        num_hidden_layers=settings["depth"],
        num_attention_heads=settings["heads"],
        intermediate_size=settings["mlp_ratio"] * settings["width"],
        image_size=settings["native_px"],
    ).save_pretrained(path)
    weights = behind("weights.", golden)
    save_file({name: w for name, w in weights.items() if ".adapter." not in name}, path / "vit.safetensors")
    return path


def small(folder, temporal="moss", layers=(2,), **options):
    torch.manual_seed(0)
    options = {"temporal_options": MOSS if temporal == "moss" else {}} | options
    return build_adatad(
        encoder=folder,
        weights=folder / "vit.safetensors",
        classes=5,
        temporal=temporal,
        temporal_layers=layers,
        detector_options=DETECTOR,
        **options,
    )


def clip(batch=2, frames=32, height=32, width=32):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, frames, 3, height, width), dtype=torch.uint8, generator=generator)


def mask(batch=2, length=32, real=27):
    return torch.arange(length).expand(batch, -1) < real


ACTIONS = [torch.tensor([[3.0, 9.0], [4.0, 22.0]]), torch.tensor([[10.0, 13.0]])]
LABELS = [torch.tensor([0, 4]), torch.tensor([2])]


def total_loss(model, levels):
    losses = model.loss(levels, ACTIONS, LABELS)
    return losses.classes + losses.segments


def shaken(model):
    """The model with all that started as zero or near zero moved, so that every path matters."""
    torch.manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


# ---- the authors' values


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("size", ["native", "resized"])
def test_golden_backbone(folder, size, checkpointing):
    golden, settings = read_golden("backbone")
    model = small(folder, "none", checkpointing=checkpointing).eval()
    weights = behind("weights.blocks.", golden)
    state = {
        renamed(name.replace(".adapter.", "."), ADAPTER_NAMES): value
        for name, value in weights.items()
        if ".adapter." in name
    }
    model.adapters.load_state_dict(state)
    side = settings["native_px"] if size == "native" else None
    pixels = golden["pixels"][..., :side, :side].transpose(1, 2)
    expected = behind(f"{size}.", golden)
    features = model.features(pixels, settings["detector_length"])
    features.backward(expected["grad_output"])
    assert_near(features, expected["output"])
    gradients = behind("grad_weights.blocks.", expected)
    assert len(gradients) == 2 * 9
    for name, gradient in gradients.items():
        own = model.adapters.get_parameter(renamed(name.replace(".adapter.", "."), ADAPTER_NAMES)).grad
        assert_near(own, gradient)

    seen = []
    after = {
        layer: [
            AfterLayer(adapter, [adapter]),
            AfterLayer(lambda grid: seen.append(grid.mean((2, 3)).mT) or grid, []),
        ]
        for layer, adapter in enumerate(model.adapters, start=1)
    }
    with torch.no_grad():
        model.encoder(pixels, after)
    for block, mean in enumerate(seen):
        assert_near(mean, expected[f"after_block{block}_mean"])


# ---- MOSS in its place


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("temporal", ["moss", "stss1", "r2plus1d", "factorised_attention", "selfy"])
def test_with_a_module_adatad_starts_unchanged_to_the_bit(folder, temporal, in_chunks):
    plain = shaken(small(folder, "none")).eval()
    with_module = small(folder, temporal, layers=(1, 2), in_chunks=in_chunks).eval()
    report = with_module.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert {name.split(".")[0] for name in report.missing_keys} == {"moss", "moss2"}
    for mode in (False, True):
        outputs = []
        for model in (plain, with_module):
            torch.manual_seed(3)  # of drop-path
            outputs.append(model.train(mode)(clip(), mask()))
        for one, other in zip(*outputs, strict=True):
            assert torch.equal(one.cls_logits, other.cls_logits)
            assert torch.equal(one.distances, other.distances)
    nn.init.ones_(
        with_module.moss.get_parameter(
            "order1.out_proj.bias" if temporal in ("moss", "stss1") else "out_proj.bias"
        )
    )
    assert not torch.equal(plain.features(clip(), 32), with_module.features(clip(), 32))


@pytest.mark.parametrize("in_chunks, shapes", [(False, [(2, 16, 2, 3, 32)]), (True, [(4, 8, 2, 3, 32)])])
def test_moss_reads_the_window_after_its_layer_and_before_the_adapter(folder, in_chunks, shapes):
    model, seen, order = shaken(small(folder, in_chunks=in_chunks)).eval(), [], []
    model.moss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.moss.register_forward_hook(lambda *_: order.append("moss"))
    model.encoder.model.encoder.layer[1].register_forward_hook(lambda *_: order.append("layer 2"))
    model.adapters[1].register_forward_pre_hook(
        lambda _, inputs: order.append("adapter 2") or seen.append(inputs[0])
    )
    with torch.no_grad():
        model.features(clip(width=48), 32)
        motion = model.moss(seen[0]).reshape(seen[1].shape)
    assert order[:3] == ["layer 2", "moss", "adapter 2"]
    assert [tuple(seen[0].shape)] == shapes
    assert_near(seen[1], seen[0].reshape(seen[1].shape) + motion, 1e-6)


def test_checkpointing_gives_equal_gradients_and_batchnorm_one_update(folder):
    gradients, statistics = {}, {}
    for checkpointing in (False, True):
        model = shaken(small(folder, checkpointing=checkpointing, drop_path=0.3)).train()
        torch.manual_seed(6)  # of drop-path
        total_loss(model, model(clip(), mask())).backward()
        gradients[checkpointing] = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        statistics[checkpointing] = {n: b for n, b in model.named_buffers() if n.startswith("moss.")}
    assert all(torch.equal(one, gradients[True][name]) for name, one in gradients[False].items())
    assert all(torch.equal(one, statistics[True][name]) for name, one in statistics[False].items())
    counts = [int(value) for name, value in statistics[True].items() if name.endswith("num_batches_tracked")]
    assert set(counts) == {1} and len(counts) == 8


# ---- what trains


def test_only_adapters_moss_and_detector_train(folder):
    model = shaken(small(folder)).train()
    patterns = (model.frozen, model.adapter_prefix, model.temporal_prefix, model.detector_prefix)
    table = [optim.Rate(pattern, pattern, None if pattern == model.frozen else 1e-2) for pattern in patterns]
    groups = optim.parameter_groups(model, table)  # refuses a parameter that no pattern covers
    for name, parameter in model.named_parameters():
        assert len([pattern for pattern in patterns if re.search(pattern, name)]) == 1
        assert parameter.requires_grad == (not name.startswith("encoder."))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total_loss(model, model(clip(), mask())).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()} == trained
    torch.optim.AdamW(groups).step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert trained <= moved <= set(model.trained_names()) and "loss.normaliser" in moved
    assert model.trained_state().keys() == {name for name in before if not name.startswith("encoder.")}
    assert not any(
        module.training for module in model.encoder.model.modules() if isinstance(module, nn.LayerNorm)
    )


def test_a_step_at_the_start_reaches_moss_through_its_last_layers(folder):
    model = small(folder).train()
    total_loss(model, model(clip(), mask())).backward()
    moved = {name for name, parameter in model.moss.named_parameters() if parameter.grad.any()}
    assert moved == {f"order{n}.out_proj.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    assert all(adapter.up.weight.grad.any() for adapter in model.adapters)


def test_it_reloads_from_what_is_trained(folder):
    model, other = shaken(small(folder)).eval(), small(folder).eval()
    report = other.load_state_dict(model.trained_state(), strict=False)
    assert not report.unexpected_keys and all(name.startswith("encoder.") for name in report.missing_keys)
    assert torch.equal(model(clip(), mask())[0].cls_logits, other(clip(), mask())[0].cls_logits)


def test_bfloat16_autocast_is_near_float32(folder):
    model = shaken(small(folder, drop_path=0.0)).eval()
    expected = model(clip(), mask())
    with torch.autocast("cpu", torch.bfloat16):
        levels = model(clip(), mask())
    for one, other in zip(levels, expected, strict=True):
        assert_near(one.cls_logits.float(), other.cls_logits.detach(), 0.05)
    total_loss(model, levels).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


# ---- sizes, and what is refused


@pytest.mark.parametrize("batch, frames, height, width, length", [(1, 16, 16, 48, 16), (2, 48, 64, 32, 40)])
def test_any_clip_of_whole_chunks_and_patches(folder, batch, frames, height, width, length):
    model, clips = shaken(small(folder)).eval(), clip(batch, frames, height, width)
    levels = model(clips, mask(batch, length, length))
    assert [level.cls_logits.shape[2] for level in levels] == [length, length // 2, length // 4]
    alone = model(clips[-1:], mask(1, length, length))
    torch.testing.assert_close(levels[0].cls_logits[-1:], alone[0].cls_logits)


@pytest.mark.parametrize(
    "preset, temporal, millions",
    [
        (DETECTION_S, "none", 1.01 + 26.70),
        (DETECTION_B, "none", 4.00 + 27.29),
        (DETECTION_B, "moss", 4.00 + 27.29 + 1.211),
        (DETECTION_L, "moss", 14.2 + 27.68 + 2.718),
    ],
)
def test_trained_parameters_of_the_presets(preset, temporal, millions):
    with torch.device("meta"):
        model = build_adatad(variant=preset, temporal=temporal, weights="random")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained / 1e6 == pytest.approx(millions, abs=0.02)
    assert tuple(model.temporal_names) == ((preset.after_layer,) if temporal == "moss" else ())


def test_the_miniature_has_its_presets_sizes():
    model = build_adatad(variant="mini", classes=8, weights="random").eval()
    assert (model.encoder.name, model.detector.levels) == ("videomae_mini", 4)
    assert (model.moss.order1.window, tuple(model.temporal_names)) == ((5, 5, 5), (1,))
    levels = model(clip(1, 32, 64, 64), mask(1))
    assert [level.cls_logits.shape for level in levels] == [(1, 8, 32 // 2**i) for i in range(4)]
    wider = build_adatad(variant="mini", classes=8, weights="random", detector_options={"dim": 32})
    assert (wider.detector.levels, wider.detector.head.cls_out.in_channels) == (4, 32)


def test_presets_have_the_rows_of_table_8():
    for preset in DETECTORS.values():
        for row in (preset.published, preset.rerun, preset.paper):
            if row is not None:
                assert len(row) == 6 and sum(row[:5]) / 5 == pytest.approx(row[5], abs=0.061)


def test_what_is_refused_names_the_remedy(folder):
    with pytest.raises(ValueError, match=r"temporal modules after layers \[4\]; .* has 1 to 3"):
        small(folder, layers=(2, 4))
    with pytest.raises(ValueError, match="unknown variant 'h'; choose one of s, b, l"):
        build_adatad(variant="h", weights="random")
    with pytest.raises(ValueError, match="unknown temporal module 'mos'; choose one of moss"):
        small(folder, "mos")
    model = small(folder)
    with pytest.raises(ValueError, match="reads 32 channels, .* has 16; build it with the encoder's d_in"):
        narrow = type("Narrow", (), {"depth": 3, "d_in": 16, "name": json.dumps("narrow")})
        AdaTAD(narrow(), model.detector)
    with pytest.raises(ValueError, match=r"2 clips with a mask of shape \(1, 32\); give \(B, T\)"):
        model(clip(), mask(1))
    with pytest.raises(ValueError, match="24 frames is not whole chunks of 16"):
        model(clip(frames=24), mask(length=24))
