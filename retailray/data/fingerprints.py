"""Short digests by which rows are found again."""

import hashlib
from collections.abc import Iterable

import numpy as np


def fingerprints(texts: Iterable[str]) -> np.ndarray:
    """The first 64 bits of the SHA-256 of each text, uint64 ``(N,)``; two of a million texts agree once in 10 million
    times."""
    return np.array([int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts], np.uint64)
