"""RandAugment with one draw for all frames of a clip."""

import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from timm.data.auto_augment import posterize, rand_augment_transform

# Only timm's older operations read translate_const, in pixels.
CLASSIFIERS = {"translate_const": int(256 * 0.45), "interpolation": Image.Resampling.BICUBIC}
# timm ignores an unknown section, replaces an unknown set of operations by its default one, and keeps one of
# two sections with the same name; here each is refused.
_SECTION = re.compile(r"(mstd|mmax|inc|[mnp])\d{1,4}(?:\.\d{1,4})?|(t)(?:weights|3aw?)")


class ClipRandAugment:
    """timm's RandAugment with one choice of operations and magnitudes for all frames of a clip.

    All random numbers come from the generator that the caller passes.

    Args:
        config: timm's notation, e.g. "rand-m7-n4-mstd0.5-inc1".
        hparams: timm's further arguments, instead of those of the paper's classifiers.

    Raises:
        ValueError: a notation that timm refuses, or would not follow in full.

    Reference: Table 7; bicubic filter and grey filling as in the authors' code.
    """

    def __init__(self, config: str, hparams: Mapping[str, Any] | None = None) -> None:
        self.config = config
        sections = [_SECTION.fullmatch(section) for section in config.split("-")[1:]]
        names = [match[1] or match[2] for match in sections if match]
        try:
            if len(set(names)) < len(sections):
                raise ValueError("a section is unknown, or there twice")
            policy = rand_augment_transform(config, dict(CLASSIFIERS if hparams is None else hparams))
            self.ops, self.count, self.weights = policy.ops, policy.num_layers, policy.choice_weights
            if self.weights is not None and self.count > len(self.ops):
                raise ValueError(f"it draws {self.count} different operations, there are {len(self.ops)}")
        except (AssertionError, ValueError) as error:
            reason = f" ({error})" if str(error) else ""
            raise ValueError(
                f"randaugment is {config!r}{reason}; write it as 'rand-m7-n4-mstd0.5-inc1'"
            ) from error

    def __call__(self, images: Sequence[Image.Image], rng: np.random.Generator) -> list[Image.Image]:
        """The frames, all changed alike; a chosen operation is applied with its own probability."""
        chosen = rng.choice(len(self.ops), self.count, replace=self.weights is None, p=self.weights)
        images = list(images)
        for op in (self.ops[i] for i in chosen):
            is_drawn, magnitude = rng.random() <= op.prob, op.magnitude
            if op.magnitude_std == math.inf:
                magnitude = rng.uniform(0, magnitude)
            elif op.magnitude_std > 0:
                magnitude = rng.normal(magnitude, op.magnitude_std)
            magnitude = max(0.0, min(magnitude, op.magnitude_max or 10.0))
            arguments = _level(op, magnitude, int(rng.integers(2**32)))
            if is_drawn:
                images = [op.aug_fn(image, *arguments, **op.kwargs) for image in images]
        return images


def _level(op: Any, magnitude: float, seed: int) -> tuple[float, ...]:
    """An operation's arguments; timm draws signs from Python's own generator, whose state is put back."""
    state = random.getstate()
    random.seed(seed)
    try:
        level = op.level_fn(magnitude, op.hparams) if op.level_fn else ()
    finally:
        random.setstate(state)
    # At the largest magnitudes timm 1.0 asks for 0 bits or fewer, which Pillow 13 refuses.
    return tuple(max(1, bits) for bits in level) if op.aug_fn is posterize else level
