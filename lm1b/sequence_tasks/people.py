"""Dealing people to train, dev and test, so that no one is in two of them and every class is in all three.

Where few people made most recordings, a deal drawn at random often leaves a class out of a split. So many deals are drawn from one
seed; of those that keep most classes the one is taken whose classes are nearest to the shares wanted.
"""

from __future__ import annotations

import numpy as np
import torch

from lm1b.randomness import derive_key, uniform
from lm1b.sequence_tasks.data import SplitName

SPLITS: tuple[SplitName, ...] = ("train", "dev", "test")
SHARES = np.array([0.6, 0.2, 0.2])
NUM_DEALS = 2000


def deal_people(classes: list[str], people: list[str], seed: int) -> dict[str, SplitName]:
    """Who goes into which split.

    classes, people: of each recording. The deal is one of NUM_DEALS in which each person is put into a split at random, by SHARES.
    First counts how many classes have recordings in all three splits, then how little the classes' recordings deviate from SHARES.
    """
    class_names, class_of_R = np.unique(classes, return_inverse=True)
    names, person_of_R = np.unique(people, return_inverse=True)
    recordings_CP = np.zeros((len(class_names), len(names)))
    np.add.at(recordings_CP, (class_of_R, person_of_R), 1)
    shares_CP = recordings_CP / recordings_CP.sum(1, keepdims=True)

    draws_KP = uniform(derive_key(seed, "people"), torch.arange(NUM_DEALS * len(names)).reshape(NUM_DEALS, -1)).numpy()
    split_KP = np.searchsorted(SHARES.cumsum()[:2], draws_KP)
    in_split_KPS = split_KP[:, :, None] == np.arange(3)
    shares_KCS = np.einsum("cp,kps->kcs", shares_CP, in_split_KPS.astype(float))
    num_whole_K = (shares_KCS > 0).all(2).sum(1)
    deviation_K = np.abs(shares_KCS - SHARES).sum((1, 2))
    best = np.lexsort((deviation_K, -num_whole_K))[0]
    return {str(name): SPLITS[split] for name, split in zip(names, split_KP[best], strict=True)}
