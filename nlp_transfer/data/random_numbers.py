"""Counter-based random numbers, which do not depend on the process or the batch."""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2 ** 64 divided by the golden ratio: the increment of SplitMix64


def splitmix64(state: np.ndarray) -> np.ndarray:
    """Return the outputs of SplitMix64 (Steele et al. 2014) for states, uint64 of any shape."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
