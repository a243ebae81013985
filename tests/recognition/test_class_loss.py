"""Owns: a classifier's loss is the sum over its views, and a batch without a clip changes nothing."""

import torch
import torch.nn.functional as F
from torch import nn

from moss_vllm.data.rows import Rejected
from moss_vllm.recognition.batches import NO_LABEL, ActionTrainingSet
from moss_vllm.recognition.loss import ClassLoss
from moss_vllm.recognition.views import ViewSettings

VIEWS = ViewSettings(frames=2, size_px=16, train_scale=24, test_scale=24, repeats=2)


class Means(nn.Module):
    """Scores from the mean colour of a view."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 7, generator=torch.Generator().manual_seed(0)))

    def forward(self, video):
        return video.mean((1, 3, 4)) @ self.weight


def batch_of(split):
    dataset = ActionTrainingSet(split, VIEWS, seed=0)
    return dataset.collate([dataset[index] for index in range(3)])


def test_the_loss_is_the_sum_over_views_with_smoothed_labels(split):
    batch, model = batch_of(split), Means()
    assert batch["video"].shape == (6, 2, 3, 16, 16) and batch["count"] == 6
    loss = ClassLoss(model, smoothing=0.1)(batch["video"], batch["labels"])
    shares = model(batch["video"]).log_softmax(-1)
    wanted = torch.full_like(shares, 0.1 / 7).scatter_(1, batch["labels"][:, None], 0.9 + 0.1 / 7)
    torch.testing.assert_close(loss, -(wanted * shares).sum())
    plain = ClassLoss(model, smoothing=0.0)(batch["video"], batch["labels"])
    torch.testing.assert_close(
        plain, F.cross_entropy(model(batch["video"]), batch["labels"], reduction="sum")
    )
    rounded = ClassLoss(model, torch.bfloat16)(batch["video"], batch["labels"])
    assert rounded.dtype == torch.float32 and rounded != loss
    torch.testing.assert_close(rounded, loss, rtol=0.05, atol=0)


def test_a_batch_without_a_clip_has_no_loss_no_gradient_and_leaves_the_statistics(split, classifier):
    settings = ViewSettings(frames=2, size_px=14, train_scale=24, test_scale=24)
    dataset = ActionTrainingSet(split, settings, seed=0)
    batch = dataset.collate([Rejected("clip 0", "is broken")])
    assert batch["labels"].tolist() == [NO_LABEL] and batch["count"] == 0 and batch["row_ids"] == []
    objective = ClassLoss(classifier.train())
    before = {name: value.clone() for name, value in classifier.named_buffers()}
    assert any(name.endswith("running_var") for name in before)
    loss = objective(batch["video"], batch["labels"])
    loss.backward()
    assert classifier.training and not classifier.encoder.training
    trained = [p for p in classifier.parameters() if p.requires_grad]
    assert loss.item() == 0 and all(p.grad is not None and not p.grad.any() for p in trained)
    assert all(torch.equal(before[name], value) for name, value in classifier.named_buffers())
    full = dataset.collate([dataset[0], Rejected("clip 1", "is broken"), dataset[2]])
    assert full["labels"].tolist() == [0, 1] and full["count"] == 2
    objective(full["video"], full["labels"]).backward()
    assert not any(torch.equal(before[name], value) for name, value in classifier.named_buffers())
