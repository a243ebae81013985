"""What tests of random views draw from, and the RandAugment of Table 7."""

import numpy as np

RAND = "rand-m7-n4-mstd0.5-inc1"


def rng(seed=0):
    return np.random.default_rng(seed)
