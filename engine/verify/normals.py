"""The random numbers: Philox against the published answers, the normals of every backend against NumPy's."""

import numpy as np
import torch

from .. import noise
from .compare import Comparison, compare

# Random123's kat_vectors for philox4x32-10: the two words of the key and the four of the counter, and the result.
PHILOX_KNOWN = (
    ((0,) * 6, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 6, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0xA4093822, 0x299F31D0, 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
SEEDS = (0, 1, 42, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 0xDEADBEEFCAFEF00D, 2**64 - 1)
DRAWS = (0, 1, 2**32 - 1, 2**32, 2**63 - 1)


def philox_comparison() -> Comparison:
    """`noise.philox_ref` on NumPy against the published answers."""
    total = Comparison()
    for words, result in PHILOX_KNOWN:
        w = [np.asarray([word], dtype=np.int64) for word in words]
        found = noise.philox_ref((w[0], w[1]), (w[2], w[3], w[4], w[5]), np)
        total += compare(torch.tensor([int(word[0]) for word in found]), torch.tensor(result))
    return total


def normal_comparison(backend: str, device: torch.device) -> Comparison:
    """`noise.normal` of a backend against NumPy's: 9 seeds, 5 draws, a length that fills no block."""
    total = Comparison()
    for draw in DRAWS:
        got = noise.normal(SEEDS, draw, (3, 7, 53), backend=backend, device=device).cpu()
        total += compare(got, torch.from_numpy(noise.normal_ref(SEEDS, draw, (3, 7, 53), xp=np)))
    return total
