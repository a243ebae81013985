"""Owns: a step's gradient does not depend on how its clips are split; a resumed run equals a straight one.

Also: nothing is lost in silence - rejected rows, a loss that is not finite and parameters without a gradient
are named.
"""

import gzip
import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from launching import logged
from torch import nn

from moss_vllm.data.rows import CAPTION_PROMPT, Rejected, Turn
from moss_vllm.training import engines
from moss_vllm.training import loop as training
from moss_vllm.training.loop import Loop
from moss_vllm.training.optim import Rate, parameter_groups, with_rates
from moss_vllm.training.row_order import RowOrder, StepBatches
from moss_vllm.training.run_folder import latest_checkpoint
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import attach_lora, trained_state
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.batches import TrainingSet
from moss_vllm.vlm.families import VIDEO_LLAMA3
from moss_vllm.vlm.loss import AnswerLoss
from moss_vllm.vlm.video_llama3.chat import encode

pytestmark = pytest.mark.usefixtures("one_process")


CAPTIONS = (
    "It turns.",
    "The red circle moves left slowly.",
    "The blue heart shakes 2 times.",
    "It stays still.",
)
VIDEO_LLM_RATES = VIDEO_LLAMA3.rates
RATES = {"moss": 3e-3, "projector": 3e-3, "llm lora": 3e-3}


class Clips(TrainingSet):
    """Eight encoded clips of unequal length; those of `bad` are rejected."""

    def __init__(self, processor, noise_clip, *, bad=(), count=8):
        self.processor, self.bad, self.asked = processor, bad, []
        self.rows = [
            encode(processor, noise_clip(i, frames=2 + i % 3), [Turn(CAPTION_PROMPT, CAPTIONS[i % 4])])
            for i in range(count)
        ]

    @property
    def shares(self):
        return [(len(self.rows), 1.0)]

    def __getitem__(self, index):
        self.asked.append(index)
        return Rejected(f"clip{index}", "torn") if index in self.bad else (f"clip{index}", self.rows[index])


@pytest.fixture
def clips(processor, noise_clip):
    return Clips(processor, noise_clip)


@pytest.fixture
def run(tiny_base, moss, processor, tmp_path, clips):
    """A function that trains a new model and returns the logged lines and the trained weights."""

    def start(
        loop,
        *,
        out="run",
        dataset=clips,
        use_moss=True,
        resume=None,
        dropout=0.0,
        seed=0,
        rates=RATES,
        evaluate=None,
    ):
        torch.manual_seed(seed)
        settings = moss if use_moss else None
        base = load_base(tiny_base, moss=settings)
        model = attach_lora(base, rank=4, alpha=4, dropout=dropout)
        table = [row for row in VIDEO_LLM_RATES if use_moss or row.name != "moss"]
        table = with_rates(table, {row.name: rates[row.name] for row in table if row.lr is not None})
        record = {"base_model": str(tiny_base), "base_revision": None, "moss": settings}
        lines = training.train(
            engines.start(),
            AnswerLoss(model),
            parameter_groups(model, table),
            dataset,
            loop,
            out=tmp_path / out,
            keeper=checkpoint.Keeper(model, processor, record),
            resume=resume,
            evaluate=evaluate,
        )
        return lines, trained_state(model)

    return start


def loop(steps, **settings):
    return Loop(
        **{"steps": steps, "batch_size": 4, "workers": 0, "save_every": 1000, "evaluate_every": 1, **settings}
    )


def losses(lines):
    return [line["loss"] for line in lines]


def distance(one, other):
    return sum(float((one[name].float() - other[name].float()).square().sum()) for name in one) ** 0.5


# ---- the order of rows


def batches(rows, settings, *, rank=0, processes=1, start=0):
    return StepBatches(
        RowOrder([(rows, 1.0)], settings.seed),
        range(start, settings.steps),
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        rank=rank,
        processes=processes,
    )


def order(rows, *, processes, start=0, **settings):
    """Rows of each step, as sets: the processes' and micro-batches' rows together."""
    settings = loop(6, **settings)
    per_process = [
        list(batches(rows, settings, rank=rank, processes=processes, start=start))
        for rank in range(processes)
    ]
    micro = settings.accumulate
    return [
        sorted(
            row
            for batches in per_process
            for batch in batches[step * micro : (step + 1) * micro]
            for row in batch
        )
        for step in range(settings.steps - start)
    ]


def test_a_step_has_the_same_rows_however_it_is_split():
    whole = order(10, processes=1, batch_size=4)
    assert order(10, processes=2, batch_size=2) == whole
    assert order(10, processes=1, batch_size=2, accumulate=2) == whole
    assert order(10, processes=2, batch_size=1, accumulate=2) == whole
    assert order(10, processes=4, batch_size=1) == whole
    assert whole[0] != whole[1]


def test_a_batch_may_cross_an_epoch_or_hold_several():
    rows = [row for batch in batches(3, loop(6)) for row in batch]
    assert sorted(rows) == sorted(list(range(3)) * 8)


def test_a_later_start_is_the_rest_of_the_sequence():
    assert order(10, processes=1, start=4) == order(10, processes=1)[4:]
    rest = batches(10, loop(6, accumulate=3), start=4)
    assert len(rest) == len(list(rest)) == 6


def test_the_seed_decides_the_order():
    assert order(10, processes=1, seed=0) == order(10, processes=1, seed=0) != order(10, processes=1, seed=1)


# ---- the gradient


@pytest.mark.slow
@pytest.mark.parametrize("use_moss", [False, True])
def test_accumulation_equals_one_large_batch(run, use_moss, monkeypatch):
    if use_moss:  # batch statistics depend on the micro-batch; the rest of MOSS must not
        monkeypatch.setattr(nn.BatchNorm2d, "train", lambda self, mode=True: nn.Module.train(self, False))
    # Adam divides by the gradient's own size, which blows rounding up where a gradient is all but zero, by as
    # much as the rates are high: they are low here, and the first gradient is the exact comparison.
    low = {"rates": dict.fromkeys(RATES, 3e-6), "use_moss": use_moss}
    whole, weights = run(loop(3), out="whole", **low)
    parts, again = run(loop(3, batch_size=2, accumulate=2), out="parts", **low)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    assert parts[0]["grad_norm"] == pytest.approx(whole[0]["grad_norm"], rel=1e-5)
    assert parts[2]["grad_norm"] == pytest.approx(whole[2]["grad_norm"], rel=1e-2)
    assert [line["clips"] for line in parts] == [4, 4, 4]
    _, start = run(loop(0), out="start", use_moss=use_moss)
    assert distance(again, weights) < 0.01 * distance(start, weights)


def test_the_loss_is_the_mean_over_answer_tokens(run, clips, tiny_base):
    (line, *_), _ = run(loop(1, batch_size=8), use_moss=False)
    batch = clips.collate([clips[i] for i in range(8)])
    model = load_base(tiny_base)
    inputs = {key: value for key, value in batch.items() if key not in ("row_ids", "rejected")}
    with torch.no_grad():
        assert line["loss"] == pytest.approx(float(model(**inputs).loss), rel=1e-5)


@pytest.mark.slow
def test_the_loss_goes_down_on_eight_clips(run):
    lines, _ = run(loop(16, batch_size=8), rates=dict.fromkeys(RATES, 2e-2))
    assert losses(lines)[0] > 4 and losses(lines)[-1] < 1.5


def test_lines_carry_scheduled_rates(run, tmp_path):
    lines, _ = run(loop(4, warmup_share=0.5), use_moss=False)
    # Two steps up (1/2, 1), two down the cosine (1, 1/2).
    assert [line["lr"]["projector"] for line in lines] == pytest.approx([1.5e-3, 3e-3, 3e-3, 1.5e-3])
    written = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert written == lines and [line["step"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_trace_names_moss_and_the_parts_of_a_step(run, tmp_path):
    _, weights = run(loop(5))
    _, traced = run(loop(5, profile_steps=1), out="traced")
    assert all(torch.equal(weights[name], traced[name]) for name in weights)
    (file,) = (tmp_path / "traced" / "profile").iterdir()
    with gzip.open(file) as text:
        names = {event.get("name", "") for event in json.load(text)["traceEvents"]}
    assert {"step 4", "AnswerLoss", "Optimizer.step#AdamW.step"} <= names and "step 5" not in names
    for kind in ("VideoMOSS", "STSSEncoder", "VideoLlama3VisionEncoderLayer", "Qwen2DecoderLayer"):
        assert any(name.startswith(f"{kind} model.base_model.") for name in names), kind


# ---- resuming


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_equals_the_straight_run_bit_for_bit(run, tmp_path, accumulate):
    # Dropout makes it depend on the random state, too; seed 7 gives another start, of which nothing may stay.
    settings = loop(4, batch_size=4 // accumulate, accumulate=accumulate, save_every=2)
    straight, weights = run(settings, out="straight", dropout=0.3)
    half = tmp_path / "straight" / "step-000002"
    resumed, again = run(settings, out="resumed", dropout=0.3, seed=7, resume=half)
    assert losses(resumed) == losses(straight)[2:]
    assert [line["lr"] for line in resumed] == [line["lr"] for line in straight][2:]
    different = [name for name in weights if not torch.equal(weights[name], again[name])]
    assert [name for name in different if ".original_module." not in name] == []
    assert sum(name.endswith("running_mean") and bool(weights[name].any()) for name in weights) == 8


@pytest.mark.slow
def test_elapsed_time_goes_on_over_the_lives_of_a_run(run, tmp_path):
    first, _ = run(loop(2, save_every=1), use_moss=False)
    half = tmp_path / "run" / "step-000001"
    progress = json.loads((half / "state" / "progress.json").read_text())
    assert (
        0 < first[0]["elapsed_s"] < first[1]["elapsed_s"] and progress["elapsed_s"] >= first[0]["elapsed_s"]
    )
    (half / "state" / "progress.json").write_text(json.dumps({**progress, "elapsed_s": 1000.0}))
    second, _ = run(loop(2, save_every=1), use_moss=False, resume=half)
    assert 1000 < second[0]["elapsed_s"] < 1100


@pytest.mark.slow
def test_checkpoints_load_and_hold_no_base_model(run, tmp_path, tiny_base):
    _, weights = run(loop(3, save_every=2))
    folders = sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir())
    assert folders == ["step-000002", "step-000003"]  # nothing unfinished is left
    loaded = trained_state(checkpoint.load(tmp_path / "run" / "step-000003").model)
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    state = tmp_path / "run" / "step-000003" / "state"
    assert (state / "optimizer.safetensors").is_file()


@pytest.mark.slow
def test_the_newest_checkpoints_are_kept_and_the_one_resumed_from(run, tmp_path):
    def there():
        return sorted(int(path.name[5:]) for path in (tmp_path / "run").glob("step-*"))

    run(loop(4, save_every=1, keep=2), use_moss=False)
    assert there() == [3, 4]
    run(loop(7, save_every=1, keep=1), use_moss=False, resume=tmp_path / "run" / "step-000004")
    assert there() == [4, 7] and not list((tmp_path / "run").glob(".*"))


def test_latest_checkpoint_ignores_what_is_unfinished(tmp_path):
    assert latest_checkpoint(tmp_path) is latest_checkpoint(tmp_path / "nowhere") is None
    for name in ("step-000900", "step-001000", ".step-002000.unfinished", "step-last"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-003000").write_text("a file")
    assert latest_checkpoint(tmp_path).name == "step-001000"


@pytest.mark.slow
def test_going_back_moves_later_checkpoints_aside(run, tmp_path, capsys):
    run(loop(4, save_every=1), use_moss=False)
    out = tmp_path / "run"
    run(loop(4, save_every=10), use_moss=False, resume=out / "step-000001")
    assert latest_checkpoint(out).name == "step-000004" and len(logged(out)) == 4
    aside = sorted(path.name.rsplit("-", 1)[0] for path in (out / "abandoned").iterdir())
    assert aside == ["step-000002", "step-000003", "step-000004"]
    assert "was written after step 1, where this run resumes" in capsys.readouterr().out


@pytest.mark.slow
def test_a_checkpoint_of_another_folder_does_not_touch_the_run_there(run, tmp_path):
    for name in ("one", "other"):
        run(loop(2, save_every=1), use_moss=False, out=name)
    before = {path: path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="other/step-000002 is there already; .*name another --out"):
        run(loop(2), use_moss=False, out="other", resume=tmp_path / "one" / "step-000001")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_going_on_in_another_order_of_rows_is_refused(run, tmp_path, clips, capsys):
    run(loop(2, save_every=1), use_moss=False)
    half = tmp_path / "run" / "step-000001"
    for changed in ({"seed": 5}, {"batch_size": 3}, {"accumulate": 2}):
        name = "seed" if "seed" in changed else "clips_a_step"
        with pytest.raises(
            ValueError, match=f"was trained with {name}=.*: rows would be skipped or repeated"
        ):
            run(loop(2, **changed), use_moss=False, resume=half)
    with pytest.raises(ValueError, match="step-000002 is beyond the last step, 1; raise --steps"):
        run(loop(1), use_moss=False, resume=tmp_path / "run" / "step-000002")
    lines, _ = run(loop(3), use_moss=False, resume=half)
    assert [line["step"] for line in lines] == [2, 3]
    assert "steps was 2, is 3: the learning rate follows the new schedule now" in capsys.readouterr().out


@pytest.mark.slow
def test_a_step_without_a_clip_leaves_the_statistics_of_moss(run, processor, noise_clip):
    first, second = ([*order(8, processes=1)[step]] for step in (0, 1))
    _, one = run(loop(1), dataset=Clips(processor, noise_clip))
    _, two = run(loop(2, max_bad_share=1.0), out="two", dataset=Clips(processor, noise_clip, bad=set(second)))
    statistics = [name for name in one if "running_" in name]
    assert first != second and len(statistics) == 16
    assert all(torch.equal(one[name], two[name]) for name in statistics)


# ---- what goes wrong


def test_rejected_rows_are_named_once_and_cost_no_other_row(run, processor, noise_clip, tmp_path, capsys):
    dataset = Clips(processor, noise_clip, bad={3})
    lines, _ = run(loop(4, max_bad_share=1 / 8), dataset=dataset, use_moss=False)  # two epochs
    assert sorted(dataset.asked) == sorted(list(range(8)) * 2)
    assert sum(line["clips"] for line in lines) == 2 * 7
    assert sorted(line["clips"] for line in lines) == [3, 3, 4, 4]
    rejected = (tmp_path / "run" / "rejected-0.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in rejected] == [{"row_id": "clip3", "reason": "torn"}]
    assert capsys.readouterr().err.count("row clip3 not used: torn") == 1


def test_a_step_of_rejected_rows_only_changes_nothing(run, processor, noise_clip):
    bad = set(order(8, processes=1)[0])
    dataset = Clips(processor, noise_clip, bad=bad)
    lines, weights = run(loop(1, max_bad_share=1.0), dataset=dataset)
    assert (lines[0]["loss"], lines[0]["grad_norm"], lines[0]["clips"]) == (0.0, 0.0, 0)
    assert not any(value.any() for name, value in weights.items() if "lora_B" in name)


def test_one_bad_row_early_does_not_stop_a_run_that_allows_it(run, processor, noise_clip):
    first = order(8, processes=1)[0][0]
    dataset = Clips(processor, noise_clip, bad={first})  # 1 of the first 4, 1 of 8 in all
    lines, _ = run(loop(1, max_bad_share=0.125), dataset=dataset, use_moss=False)
    assert lines[0]["clips"] == 3


def test_a_loss_that_is_not_finite_names_its_rows(run, clips, tmp_path):
    clips.rows[3]["pixel_values_videos"].fill_(float("nan"))
    step = next(i for i, rows in enumerate(order(8, processes=1)) if 3 in rows)
    with pytest.raises(
        RuntimeError, match=rf"the loss of step {step + 1} is nan; rows .*clip3.*lower the learning"
    ):
        run(loop(4, save_every=1))
    assert latest_checkpoint(tmp_path / "run") == (tmp_path / "run" / f"step-{step:06d}" if step else None)


def test_a_folder_that_is_taken_away_ends_the_run_and_is_not_made_anew(run, tmp_path):
    out = tmp_path / "run"

    def take_away(step):
        out.rename(tmp_path / "elsewhere")

    gone = "run was removed, moved or replaced while the run wrote to it; nothing more is written"
    with pytest.raises(RuntimeError, match=gone):  # at the next step
        run(loop(3), use_moss=False, evaluate=take_away)
    shutil.rmtree(tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match=gone):  # at the save
        run(loop(1), use_moss=False, evaluate=take_away)
    assert not out.exists()


def test_a_trained_parameter_without_gradient_is_an_error(run, monkeypatch):
    attach = attach_lora

    def with_spare(base, **settings):
        base.register_parameter("spare", nn.Parameter(torch.zeros(2)))
        return attach(base, **settings)

    monkeypatch.setattr("test_loop.attach_lora", with_spare)
    spare = Rate("spare", r"\.spare$", 0.1)
    monkeypatch.setattr(f"{__name__}.VIDEO_LLM_RATES", (*VIDEO_LLM_RATES, spare))
    with pytest.raises(
        RuntimeError, match=r"1 trained parameters get no gradient, e\.g\. base_model\.model\.spare"
    ):
        run(loop(1), rates={**RATES, "spare": 0.1})


@pytest.mark.parametrize("limit, factor", [(6.5, 0.5), (100.0, 1.0), (float("inf"), 1.0)])
def test_a_gradient_is_clipped_by_the_norm_of_all_groups(limit, factor):
    weights = [nn.Parameter(torch.zeros(size)) for size in (1, 2, 3, 4)]
    for weight, gradient in zip(weights, ([3.0], [0.0, 4.0], [0.0, 12.0, 0.0]), strict=False):
        weight.grad = torch.tensor(gradient)
    groups = {"first": weights[:2], "second": weights[2:3], "untouched": weights[3:]}
    one, sgd = Accelerator(), torch.optim.SGD(weights, lr=1.0)
    how = {"by_group": True}
    total, norms = engines.step(one, nn.Identity(), sgd, groups, limit, **how)
    assert total == pytest.approx(13) and norms == pytest.approx({"first": 5, "second": 12, "untouched": 0})
    moved = torch.cat([weight.detach() for weight in weights[:3]])
    assert moved.tolist() == pytest.approx([-3 * factor, 0, -4 * factor, 0, -12 * factor, 0], abs=1e-5)
    weights[0].grad = torch.tensor([float("nan")])
    total, _ = engines.step(one, nn.Identity(), sgd, groups, limit, **how)
    assert total != total and torch.cat([weight.detach() for weight in weights[:3]]).equal(moved)
