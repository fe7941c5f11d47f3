"""Which action a sequence of feature vectors shows (Talathi 2015: CNN features of UCF-101; here also a wrist accelerometer).

    recordings (action_files.py) -> people dealt to the splits -> pieces of at most `longest` steps -> one label each

1. No person is in two splits. UCF-101: its first official split: groups 1 to 7 are for test, and of the others (8 to 25) one in six,
   chosen by the seed, for dev. Wrist accelerometer: `deal_people` deals them by the seed. One person, f1, made 347 of its 839 recordings.
2. An action that does not occur in all three splits is left out and named in `sources`. With the wrist accelerometer these are
   Eat_meat and Eat_soup, which only f1 recorded; Brush_teeth, Descend_stairs and Use_telephone were recorded by three people each.
3. A recording longer than `longest` is cut into as few pieces as possible, all as long as each other (within a step), so that none is
   shorter than half of `longest`. A piece is a sequence: error rates count pieces.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from lm1b.errors import UserError
from lm1b.randomness import derive_key, permutation, uniform
from lm1b.sequence_tasks.config import ActionsConfig
from lm1b.sequence_tasks.data.action_files import Recording, read_recordings
from lm1b.sequence_tasks.data.task import SPLITS, SplitName, StoredSequences, Task, constant_answer_nats, stored

LAST_TEST_GROUP = 7
DEV_SHARE_OF_GROUPS = 1 / 6
SHARES = np.array([0.6, 0.2, 0.2])  # of the recordings, by split
NUM_DEALS = 2000


def actions_task(config: ActionsConfig) -> Task:
    """Recordings of actions in three splits; all are held in memory. baseline_loss is that of dev's own label frequencies.

    Raises UserError for recordings that cannot be used, and for too few actions or people to split.
    """
    folder = Path(config.path)
    layout, recordings = read_recordings(folder)
    actions = sorted({recording.action for recording in recordings})
    if len(actions) < 2:
        raise UserError(f"{folder} holds recordings of one action only ({actions[0]}), expected 2 or more")
    people = sorted({recording.person for recording in recordings})
    if len(people) < 3:
        raise UserError(
            f"{folder} holds recordings of {len(people)} people ({', '.join(people)}), expected 3 or more: one a split at least"
        )
    if layout == "UCF-101 features":
        split_of = _official_split(people, config.split_seed)
        rule = f"groups: 1 to {LAST_TEST_GROUP} test (first official split), dev chosen from the others by seed {config.split_seed}"
    else:
        split_of = deal_people(
            [recording.action for recording in recordings], [recording.person for recording in recordings], config.split_seed
        )
        rule = f"people dealt by seed {config.split_seed}"

    found = {action: {split_of[recording.person] for recording in recordings if recording.action == action} for action in actions}
    kept = [action for action in actions if len(found[action]) == len(SPLITS)]
    if len(kept) < 2:
        raise UserError(
            f"{folder}: {len(kept)} of {len(actions)} actions occur in train, dev and test, expected 2 or more: too few people to split"
        )
    of_split = {name: [one for one in recordings if one.action in kept and split_of[one.person] == name] for name in SPLITS}
    splits = {name: _cut(chosen, kept, config.longest) for name, chosen in of_split.items()}
    return Task(
        name=f"actions, {layout}",
        asked="label",
        input_width=recordings[0].x_TD.shape[1],
        outputs=len(kept),
        train=splits["train"],
        dev=splits["dev"],
        test=splits["test"],
        baseline_loss=constant_answer_nats(splits["dev"].targets),
        sources={
            "layout": layout,
            "split": rule,
            **{name: _counts(of_split[name], splits[name]) for name in SPLITS},
            "actions": ", ".join(kept),
            "left out": _reasons(recordings, [action for action in actions if action not in kept]),
            "pieces": f"recordings longer than {config.longest} steps are cut into equal pieces",
        },
    )


def _official_split(groups: list[str], seed: int) -> dict[str, SplitName]:
    """UCF-101's first split, with some of the training groups for dev. groups: g01, g02, ..."""
    split_of: dict[str, SplitName] = {group: "test" if int(group[1:]) <= LAST_TEST_GROUP else "train" for group in groups}
    training = [group for group in groups if split_of[group] == "train"]
    num_dev = max(1, round(DEV_SHARE_OF_GROUPS * len(training)))
    for chosen in permutation(derive_key(seed, "groups"), len(training))[:num_dev].tolist():
        split_of[training[chosen]] = "dev"
    return split_of


def deal_people(classes: list[str], people: list[str], seed: int) -> dict[str, SplitName]:
    """Who goes into which split, so that no one is in two of them and every class is in all three.

    classes, people: of each recording. Where few people made most recordings, a deal drawn at random often leaves a class out of a
    split. So NUM_DEALS of them are drawn from the seed, each person put into a split at random, by SHARES. One of those that keep most
    classes in all three splits is taken: the one whose classes' recordings deviate least from SHARES.
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


def _cut(recordings: list[Recording], actions: list[str], longest: int) -> StoredSequences:
    """A split's recordings in pieces of at most `longest` steps."""
    pieces, labels = [], []
    for recording in recordings:
        num_pieces = -(-len(recording.x_TD) // longest)
        pieces += recording.x_TD.tensor_split(num_pieces)
        labels += [actions.index(recording.action)] * num_pieces
    return stored(pieces, torch.tensor(labels))


def _counts(recordings: list[Recording], split: StoredSequences) -> str:
    """What a split holds, in words."""
    people = sorted({recording.person for recording in recordings})
    return f"{len(people)} people ({', '.join(people)}), {len(recordings)} recordings, {len(split)} sequences, {len(split.x_ND)} steps"


def _reasons(recordings: list[Recording], left_out: list[str]) -> str:
    """Each action that is left out, with how many recordings by how many people it has."""
    if not left_out:
        return "nothing"
    num_recordings = Counter(recording.action for recording in recordings)
    num_people = {action: len({one.person for one in recordings if one.action == action}) for action in left_out}
    named = ", ".join(f"{action} ({num_recordings[action]} recordings by {num_people[action]} people)" for action in left_out)
    return f"not in all three splits: {named}"
