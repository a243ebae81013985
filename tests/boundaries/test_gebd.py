"""Owns: BasicGEBD equals the authors', MOSS changes nothing at the start, and what trains."""

import re

import pytest
import torch
from golden_adatad import assert_near, behind
from golden_gebd import as_here, drawn_weights, load, read_golden, soften
from safetensors.torch import save_file
from torch import nn

from moss_vllm.boundaries.build import build_gebd
from moss_vllm.boundaries.loss import boundary_losses
from moss_vllm.core.boundary_presets import BOUNDARIES, BOUNDARY_R50, PAPER_TABLE_9, BoundaryPreset
from moss_vllm.training import optim

MOSS = {"window": (3, 3, 3), "d_hidden": 8, "d_similarity": 4}
NARROW = BoundaryPreset(
    weights="random",
    stem=6,
    planes=(3, 4, 5, 8),
    blocks=(1, 2, 1, 1),
    after_stage=2,
    d_frame=8,
    map_widths=(4, 4, 5, 6, 8),
    window=(3, 3, 3),
    d_hidden=8,
    d_similarity=4,
    rerun=None,
    paper=None,
)


@pytest.fixture(scope="module")
def golden():
    return read_golden("whole_model_narrow")


def narrow(golden=None, temporal="moss", **options):
    """The narrow model, with the golden weights if given."""
    torch.manual_seed(0)
    model = build_gebd(variant=NARROW, temporal=temporal, **options)
    if golden is not None:
        state = as_here(behind("weights.", golden[0]))
        report = model.load_state_dict(state, strict=False)
        assert not report.unexpected_keys
        left = {name for name in report.missing_keys if not name.endswith("num_batches_tracked")}
        assert all(re.search(model.temporal_prefix, name) for name in left)
    return model


def clip(batch=2, frames=12, height=40, width=32):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, frames, 3, height, width), dtype=torch.uint8, generator=generator)


def loss_of(model, clips):
    hard = torch.arange(clips.shape[1]).expand(len(clips), -1) % 7 == 3
    return boundary_losses(model(clips), soften(hard)).mean()


def shaken(model):
    """The model with all that started as zero moved, so that every path matters."""
    torch.manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


# ---- the authors' values


@pytest.mark.parametrize("chunk_frames", [None, 7])
def test_golden_narrow_model_in_evaluation(golden, chunk_frames):
    values, settings = golden
    model = narrow(golden, "none", chunk_frames=chunk_frames).eval()
    expected, stages = behind("eval.", values), []
    keep = {n: lambda grid: stages.append(grid) or grid for n in (1, 2, 3, 4)}
    with torch.no_grad():
        pooled = model.encoder(values["images"], keep)
        features = model.head.project(pooled).relu()
        logits = model(values["images"])
    for number, grid in enumerate(stages, start=1):
        assert_near(grid.mean((2, 3)), expected[f"stage{number}_mean"])
    assert_near(stages[-1][0, -1].permute(2, 0, 1), expected["stage4_last_frame"])
    assert_near(pooled, expected["stage4_mean"])
    assert_near(features, expected["features"])
    assert_near(model.head.compare(features)[:, 0], expected["similarity_frame0"])
    assert_near(logits, expected["logits"])
    assert_near(logits.sigmoid(), expected["scores"])
    assert settings["frozen_parameters"] == ["backbone.conv1.weight"]


@pytest.mark.parametrize("chunk_frames", [None, 7])
def test_golden_narrow_model_in_training(golden, chunk_frames):
    values, _ = golden
    model, expected = narrow(golden, "none", chunk_frames=chunk_frames).train(), behind("train.", values)
    logits = model(values["images"])
    assert_near(logits, expected["logits"])
    hard = values["hard_targets"]
    assert_near(boundary_losses(logits, hard, values["frame_masks"]).mean(), expected["loss_tapos_masked"])
    assert_near(boundary_losses(logits, hard).mean(), expected["loss_tapos_unmasked"])
    loss = boundary_losses(logits, soften(hard)).mean()
    assert_near(loss, expected["loss_kinetics"])
    loss.backward()
    gradients = as_here(behind("grad_weights.", expected))
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert gradients.keys() <= trained.keys() and len(gradients) > 4
    for name, gradient in gradients.items():
        assert_near(trained[name], gradient)


@pytest.mark.slow
def test_golden_model_of_true_size():
    values, settings = read_golden("whole_model_true_size")
    with torch.device("meta"):
        model = build_gebd(temporal="none", weights="random")
    model = model.to_empty(device="cpu")
    load(model, drawn_weights())
    expected, stages = behind("eval.", values), []
    keep = {n: lambda grid: stages.append(grid[0, 0]) or grid for n in (1, 2, 3, 4)}
    with torch.no_grad():
        features = model.eval().head.project(model.encoder(values["images"], keep)).relu()
        maps = model.head.compare(features)
        logits = model(values["images"])
    for number, frame in enumerate(stages, start=1):
        assert_near(frame.mean((0, 1)), expected[f"stage{number}_mean_frame0"])
    assert_near(features, expected["features"])
    assert_near(maps, expected["similarity"])
    assert_near(model.head.map_encoder(maps.flatten(0, 1)[:, None])[None], expected["encoded"])
    assert_near(logits, expected["logits"])
    assert_near(logits.sigmoid(), expected["scores"])

    expected, encoded = behind("train.", values), []
    model.train().head.map_encoder.register_forward_hook(lambda _, maps, out: encoded.append(out[None]))
    logits = model(values["images"])
    loss = boundary_losses(logits, soften(values["hard_targets"])).mean()
    loss.backward()
    assert_near(encoded[0], expected["encoded"])
    assert_near(logits, expected["logits"])
    assert_near(loss, expected["loss_kinetics"])
    for name, statistic in as_here(behind("after.", expected)).items():
        assert_near(model.get_buffer(name), statistic)
    assert_near(model.head.classifier.out.weight.grad[0], expected["grad_classifier_out"])
    names = as_here({name: torch.empty(1, 1, 1) for name in settings["grad_norms_of"]})
    for name, norm in zip(names, expected["grad_norms"], strict=True):
        assert model.get_parameter(name).grad.norm().item() == pytest.approx(norm.item(), rel=2e-3)


# ---- MOSS in its place


@pytest.mark.parametrize("temporal", ["moss", "stss1", "r2plus1d", "factorised_attention", "selfy"])
def test_with_a_module_it_starts_unchanged_to_the_bit(golden, temporal):
    plain = shaken(narrow(golden, "none"))
    options = {"temporal_layers": (2, 4)}
    if temporal in ("r2plus1d", "factorised_attention"):
        options["temporal_options"] = {}
    with_module = narrow(None, temporal, **options)
    report = with_module.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert {name.split(".")[0] for name in report.missing_keys} == {"moss", "moss2"}
    for mode in (False, True):
        one, other = (model.train(mode)(clip()) for model in (plain, with_module))
        assert torch.equal(one, other)
    last = "order1.out_proj.bias" if temporal in ("moss", "stss1") else "out_proj.bias"
    nn.init.ones_(with_module.moss.get_parameter(last))
    assert not torch.equal(plain.features(clip()), with_module.features(clip()))


def test_moss_reads_the_whole_clip_after_stage_2_and_is_added():
    model, seen = shaken(narrow(chunk_frames=5)).eval(), []
    model.moss.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    model.encoder.model.layer3.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.features(clip())
    (grid, motion), *chunks = seen
    assert grid.shape == (2, 12, 5, 4, 16) and grid.is_contiguous()
    after = torch.cat(chunks).reshape(2, 12, 16, 5, 4).permute(0, 1, 3, 4, 2)
    assert_near(after, grid + motion, 1e-6)
    assert motion.abs().max() > 1e-3 and len(chunks) == 5


def test_computing_again_gives_equal_gradients_and_batchnorm_one_update():
    gradients, statistics = {}, {}
    for chunk in (None, 24, 5):
        model = shaken(narrow(chunk_frames=chunk)).train()
        loss_of(model, clip()).backward()
        gradients[chunk] = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        statistics[chunk] = {n: b for n, b in model.named_buffers() if not n.startswith("encoder.")}
    for name, gradient in gradients[None].items():
        assert torch.equal(gradient, gradients[24][name])  # one chunk
        assert_near(gradients[5][name], gradient, 1e-5)
    for name, statistic in statistics[None].items():
        assert torch.equal(statistic, statistics[24][name])
        assert_near(statistics[5][name].float(), statistic.float(), 1e-5)
    counts = {int(b) for name, b in statistics[5].items() if name.endswith("num_batches_tracked")}
    assert counts == {1}


# ---- what trains


def test_all_but_the_first_convolution_and_the_norms_of_the_resnet_train():
    model = shaken(narrow()).train()
    patterns = (model.frozen, model.encoder_prefix, model.temporal_prefix, model.head_prefix)
    table = [optim.Rate(pattern, pattern, None if pattern == model.frozen else 1e-2) for pattern in patterns]
    groups = optim.parameter_groups(model, table)  # refuses a parameter that no pattern covers
    for name, parameter in model.named_parameters():
        assert len([pattern for pattern in patterns if re.search(pattern, name)]) == 1
        assert parameter.requires_grad == (name != "encoder.model.conv1.weight")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss_of(model, clip()).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()} == trained
    torch.optim.SGD(groups).step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    norms = {name for name in before if re.search(r"^encoder\.model\.(.*\.)?(bn\d|downsample\.1)\.", name)}
    assert moved == set(before) - norms - {"encoder.model.conv1.weight"} and len(norms) == 4 * (1 + 3 * 5 + 4)


def test_a_step_at_the_start_reaches_moss_through_its_last_layers():
    model = narrow().train()
    loss_of(model, clip()).backward()
    moved = {name for name, parameter in model.moss.named_parameters() if parameter.grad.any()}
    assert moved == {f"order{n}.out_proj.{kind}" for n in (1, 2) for kind in ("weight", "bias")}


def test_it_reloads_whole_from_its_state_alone(golden):
    model, other = shaken(narrow(golden)).eval(), narrow().eval()
    assert set(model.trained_names()) == set(model.trained_state())
    other.load_state_dict(model.trained_state())
    assert torch.equal(model(clip()), other(clip()))


@pytest.mark.parametrize("chunk_frames", [None, 5])
def test_bfloat16_autocast_is_near_float32(golden, chunk_frames):
    model = narrow(golden, chunk_frames=chunk_frames).eval()
    expected, kinds = model(clip()).detach(), set()
    keep = {n: lambda grid: kinds.add(grid.dtype) or grid for n in (1, 2, 3, 4)}
    with torch.autocast("cpu", torch.bfloat16):
        logits, pooled = model(clip()), model.encoder(clip(), keep)
    assert kinds == {torch.bfloat16} and pooled.dtype == torch.bfloat16
    assert_near(logits, expected, 0.05)
    boundary_losses(logits, torch.ones_like(logits)).mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# ---- sizes, and what is refused


@pytest.mark.parametrize("batch, frames, height, width", [(1, 1, 32, 32), (3, 5, 33, 70), (1, 30, 64, 48)])
def test_any_clip(batch, frames, height, width):
    model = shaken(narrow()).eval()
    logits = model(clip(batch, frames, height, width))
    assert logits.shape == (batch, frames)
    alone = model(clip(batch, frames, height, width)[-1:])
    torch.testing.assert_close(logits[-1:], alone)


@pytest.mark.parametrize(
    "options, millions",
    [
        ({"temporal": "none"}, 30.98),
        ({"temporal": "moss"}, 30.98 + 1.112),
        ({"temporal": "stss1"}, 30.98 + 0.581),
        ({"temporal": "moss", "temporal_options": {"d_similarity": 96, "d_hidden": 256}}, 30.98 + 2.388),
    ],
)
def test_parameters_of_true_size(options, millions):
    with torch.device("meta"):
        model = build_gebd(weights="random", **options)
    count = sum(p.numel() for p in model.parameters())  # the frozen norms' are buffers
    assert count / 1e6 == pytest.approx(millions, abs=0.006)
    parts = {"encoder": 23.45, "head.project": 1.05, "head.temporal_conv": 0.002}
    parts |= {"head.map_encoder": 4.90, "head.classifier": 1.57}
    for part, expected in parts.items():
        size = sum(p.numel() for p in model.get_submodule(part).parameters()) / 1e6
        assert size == pytest.approx(expected, abs=0.006)


def test_the_miniature_is_small_and_sees_its_grid():
    model = build_gebd(variant="mini")
    assert sum(p.numel() for p in model.parameters()) < 200_000
    seen = []
    model.moss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    assert torch.isfinite(model(clip(1, 4, 64, 64))).all()
    assert seen == [(1, 4, 8, 8, 64)]


def test_the_preset_has_the_rows_of_table_9():
    assert BOUNDARIES["r50"] is BOUNDARY_R50
    assert BOUNDARY_R50.rerun == (76.9, 86.4, 60.1, 71.2) and BOUNDARY_R50.paper == (79.4, 89.0, 68.5, 76.6)
    assert round(BOUNDARY_R50.paper.kinetics - BOUNDARY_R50.rerun.kinetics, 1) == 2.5  # as the text says
    assert round(BOUNDARY_R50.paper.tapos - BOUNDARY_R50.rerun.tapos, 1) == 8.4
    assert len(PAPER_TABLE_9) == 7 and max(PAPER_TABLE_9.values()) == BOUNDARY_R50.paper


def test_what_is_refused_names_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="a module after stage 5; the given ResNet has stages 1 to 4"):
        narrow(temporal_layers=(2, 5))
    with pytest.raises(ValueError, match="a module after stage 0"):
        narrow().encoder(clip(), {0: lambda grid: grid})
    with pytest.raises(ValueError, match="unknown variant 'r18'; choose one of r50, mini"):
        build_gebd(variant="r18")
    with pytest.raises(ValueError, match="unknown temporal module 'mos'; choose one of moss"):
        narrow(temporal="mos")
    save_file(narrow().encoder.model.state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match="of another shape"):
        build_gebd(weights=tmp_path / "resnet.safetensors")
