"""Actions: recordings made up here in both layouts; values by hand, splits by people, pieces, and every bad input by name."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm1b.errors import UserError
from lm1b.sequence_tasks.config import ActionsConfig
from lm1b.sequence_tasks.data.action_files import read_recordings
from lm1b.sequence_tasks.data.actions import deal_people
from lm1b.sequence_tasks.data.load import load_task
from lm1b.sequence_tasks.data.task import SPLITS, SplitName, Task

SAMPLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "wrist_motion"
CLASSES = ("Jump", "Walk")
PEOPLE = ("f1", "f2", "m1", "m2")
GROUPS = range(1, 26)


def task_of(folder: Path, **settings: int) -> Task:
    return load_task(ActionsConfig.model_validate({"kind": "actions", "path": str(folder), **settings}))


def write_text(path: Path, codes: list[tuple[int, int, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{x:02d} {y:02d} {z:02d}\n" for x, y, z in codes))


def text_path(folder: Path, action: str, person: str, number: int = 0) -> Path:
    return folder / action / f"Accelerometer-2011-03-24-10-24-3{number}-{action.lower()}-{person}.txt"


@pytest.fixture
def wrist(tmp_path: Path) -> Path:
    """Four people, each with a recording of two actions; which person, in x, and which action, in y."""
    for number, person in enumerate(PEOPLE):
        for label, action in enumerate(CLASSES):
            write_text(text_path(tmp_path, action, person), [(number, label, 63)] * 8)
    return tmp_path


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    """25 groups, each with two clips of two actions: which group, and which action, in the features."""
    for label, action in enumerate(CLASSES):
        (tmp_path / action).mkdir()
        for group in GROUPS:
            for clip in (1, 2):
                np.save(tmp_path / action / f"v_{action}_g{group:02d}_c{clip:02d}.npy", np.full((3, 4), group + 100 * label, np.float32))
    return tmp_path


def everything(task: Task, split: SplitName) -> tuple[torch.Tensor, torch.Tensor]:
    """x_TBD and the labels of a whole split."""
    stored = getattr(task, split)
    batch = stored.batch(torch.arange(len(stored)))
    return batch.x_TBD, batch.targets


def test_codes_become_g_and_two_samples_one_step(tmp_path: Path) -> None:
    write_text(text_path(tmp_path, "Walk", "f1"), [(0, 63, 21), (63, 63, 21), (0, 0, 42), (0, 0, 42), (9, 9, 9)])
    layout, recordings = read_recordings(tmp_path)
    assert (layout, recordings[0].action, recordings[0].person) == ("wrist accelerometer", "Walk", "f1")
    torch.testing.assert_close(recordings[0].x_TD, torch.tensor([[0.0, 1.5, -0.5], [-1.5, -1.5, 0.5]]))


def test_no_person_is_in_two_splits_and_every_action_in_all_three(wrist: Path) -> None:
    deals = set()
    for seed in range(1, 6):
        task = task_of(wrist, split_seed=seed)
        people = {name: set((everything(task, name)[0][0, :, 0] * 21 + 31.5).round().int().tolist()) for name in SPLITS}
        assert sorted(person for those in people.values() for person in those) == [0, 1, 2, 3]
        for name in SPLITS:
            x_TBD, labels_B = everything(task, name)
            assert set(labels_B.tolist()) == {0, 1}
            assert (x_TBD[0, :, 1] * 21 + 31.5).round().int().tolist() == labels_B.tolist()
        assert task.sources == task_of(wrist, split_seed=seed).sources
        deals.add(task.sources["train"])
    assert len(deals) > 1, "every seed deals the same"
    assert (task.asked, task.input_width, task.outputs) == ("label", 3, 2)
    assert str(wrist) not in str(task.sources)


def test_where_one_person_made_most_recordings_rare_actions_are_still_in_every_split() -> None:
    made = {"f1": 40, "m1": 5, "m2": 5} | {f"m{number}": 8 for number in range(3, 12)}
    classes, people = [], []
    for person, count in made.items():
        of_person = ["walk"] * count + (["rare"] * 2 if person in ("f1", "m1", "m2") else []) + (["alone"] * 3 if person == "f1" else [])
        classes += of_person
        people += [person] * len(of_person)
    for seed in range(5):
        split_of = deal_people(classes, people, seed)
        assert split_of.keys() == made.keys()
        assert {split_of[person] for person in ("f1", "m1", "m2")} == set(SPLITS)
        assert split_of["f1"] == "train"
        share = sum(split_of[person] == "train" for person in people) / len(people)
        assert 0.45 < share < 0.75


def test_an_action_of_too_few_people_is_left_out_and_named(wrist: Path) -> None:
    for person in PEOPLE[:2]:
        write_text(text_path(wrist, "Eat", person), [(1, 2, 3)] * 8)
    write_text(text_path(wrist, "Walk_MODEL", "f1"), [(1, 2, 3)] * 8)  # copies, in the accelerometer's own distribution
    task = task_of(wrist)
    assert task.outputs == 2
    assert task.sources["actions"] == "Jump, Walk"
    assert task.sources["left out"] == "not in all three splits: Eat (2 recordings by 2 people)"
    assert sum(len(everything(task, name)[1]) for name in SPLITS) == 8


def groups_in(task: Task, split: SplitName) -> set[int]:
    return set((everything(task, split)[0][0, :, 0] % 100).int().tolist())


def test_ucf_has_its_first_official_split_and_no_group_is_split(ucf: Path) -> None:
    task = task_of(ucf)
    groups = {name: groups_in(task, name) for name in SPLITS}
    assert groups["test"] == set(range(1, 8))
    assert len(groups["dev"]) == 3
    assert groups["train"] == set(range(8, 26)) - groups["dev"]
    assert {name: len(everything(task, name)[1]) for name in SPLITS} == {"train": 60, "dev": 12, "test": 28}
    x_TBD, labels_B = everything(task, "test")
    assert torch.equal((x_TBD[0, :, 0] >= 100).long(), labels_B)
    assert task.input_width == 4
    assert any(groups_in(task_of(ucf, split_seed=seed), "dev") != groups["dev"] for seed in (2, 3))


@given(steps=st.integers(2, 300), longest=st.integers(2, 80))
def test_pieces_hold_every_step_once_and_none_is_shorter_than_half_of_longest(
    tmp_path_factory: pytest.TempPathFactory, steps: int, longest: int
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    for number, group in enumerate(("g01", "g08", "g09")):
        for action in CLASSES:
            (folder / action).mkdir(exist_ok=True)
            recording = np.stack([np.arange(steps), np.full(steps, number)], axis=1).astype(np.float64)
            np.save(folder / action / f"v_{action}_{group}_c01.npy", recording)
    task = task_of(folder, longest=longest)
    for name in SPLITS:
        split = getattr(task, name)
        batch = split.batch(torch.arange(len(split)))
        assert len(split) == 2 * -(-steps // longest)
        assert int(batch.lengths_B.max()) <= longest
        assert int(batch.lengths_B.min()) >= (min(steps, longest / 2) if steps > longest else steps)
        rejoined = torch.cat([batch.x_TBD[:length, number, 0] for number, length in enumerate(batch.lengths_B.tolist())])
        assert rejoined.tolist() == list(range(steps)) * 2


def with_header(text: str) -> bytes:
    """A `.npy` file with this header, and no values."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "not a .npy file that can be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "not a .npy file that can be read"),
        (lambda path: path.write_text("features"), "not a .npy file that can be read"),
        (lambda path: np.save(path, np.array([{"a": 1}]), allow_pickle=True), "not a .npy file that can be read"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"(3, 4)", b"(3, 9)")), "not a .npy file that can be read"),
        *[
            (lambda path, text=text: path.write_bytes(with_header(text)), "not a .npy file that can be read")
            for text in (
                "{'descr': '<f4', (",
                f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**23}, 5), }}",
                "{'descr': ',', 'fortran_order': False, 'shape': (3, 4), }",
            )
        ],
        (
            lambda path: np.save(path, np.ones((3, 5), np.float32)),
            r"holds features of width 5, but .*v_Jump_g01_c01\.npy and most others are 4 wide",
        ),
        (lambda path: np.save(path, np.ones(4, np.float32)), r"holds float32 \[4\], expected floats \[T, D\]"),
        (lambda path: np.save(path, np.ones((3, 4, 1), np.float32)), r"holds float32 \[3, 4, 1\]"),
        (lambda path: np.save(path, np.ones((3, 4), np.int64)), r"holds int64 \[3, 4\], expected floats"),
        (lambda path: np.save(path, np.ones((3, 0), np.float32)), r"holds float32 \[3, 0\], expected floats"),
        (lambda path: np.save(path, np.ones((1, 4), np.float32)), "holds 1 steps, expected 2 or more"),
        (lambda path: np.save(path, np.full((3, 4), np.nan)), "holds numbers that are not finite"),
        (
            lambda path: path.rename(path.with_name("clip.npy")),
            "does not say whose recording it is: expected a name that ends as in `_g08_c01.npy`",
        ),
    ],
)
def test_feature_files_that_cannot_be_used_are_refused_by_name(ucf: Path, damage: Callable[[Path], object], message: str) -> None:
    path = ucf / "Walk" / "v_Walk_g03_c02.npy"
    damage(path)
    with pytest.raises(UserError, match=message) as caught:
        task_of(ucf)
    assert str(caught.value).startswith(str(path if path.exists() else path.with_name("clip.npy")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n1 2\n", "line 2: expected three integers from 0 to 63, found '1 2'"),
        ("1 2 3\n1 2 3 4\n", "line 2: expected"),
        ("1 2 64\n", "line 1: expected"),
        ("1 2 -3\n", "line 1: expected"),
        ("1 2 0.5\n", "line 1: expected"),
        ("1 2 " + "9" * 5000 + "\n", "line 1: expected"),
        ("1 2 3\n" * 3, "holds 3 samples, expected 4 or more"),
        ("", "holds 0 samples, expected 4 or more"),
        ("1 2 \xb3\n", "cannot be read as text"),
    ],
)
def test_text_files_that_cannot_be_used_are_refused_by_name(wrist: Path, text: str, message: str) -> None:
    path = text_path(wrist, "Walk", "m1")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        task_of(wrist)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_folder_that_cannot_be_split_is_refused(wrist: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none is not a folder"):
        task_of(wrist / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no recordings"):
        task_of(tmp_path / "empty")
    (tmp_path / "one" / "Walk").mkdir(parents=True)
    for person in PEOPLE:
        write_text(text_path(tmp_path / "one", "Walk", person), [(1, 2, 3)] * 8)
    with pytest.raises(UserError, match=r"one holds recordings of one action only \(Walk\)"):
        task_of(tmp_path / "one")
    for person in PEOPLE[:2]:
        for action in CLASSES:
            write_text(text_path(tmp_path / "two", action, person), [(1, 2, 3)] * 8)
    with pytest.raises(UserError, match=r"two holds recordings of 2 people \(f1, f2\), expected 3 or more"):
        task_of(tmp_path / "two")
    write_text(text_path(tmp_path / "two", "Jump", "m1"), [(1, 2, 3)] * 8)
    with pytest.raises(UserError, match="1 of 2 actions occur in train, dev and test, expected 2 or more: too few people"):
        task_of(tmp_path / "two")
    text_path(wrist, "Walk", "f3").with_name("walk.txt").write_text("1 2 3\n" * 8)
    with pytest.raises(UserError, match=r"walk\.txt does not say whose recording it is"):
        task_of(wrist)
    np.save(wrist / "Walk" / "v_Walk_g01_c01.npy", np.ones((3, 3)))
    with pytest.raises(UserError, match="holds both features"):
        task_of(wrist)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs ../shared/data/wrist_motion, which is not passed on")
def test_the_real_recordings_keep_twelve_actions() -> None:
    task = task_of(SAMPLE)
    assert task.outputs == 12
    assert task.sources["left out"] == "not in all three splits: Eat_meat (5 recordings by 1 people), Eat_soup (3 recordings by 1 people)"
    for name in SPLITS:
        x_TBD, labels_B = everything(task, name)
        assert set(labels_B.tolist()) == set(range(12))
        assert len(labels_B) > 150
        assert x_TBD.abs().max() <= 1.5
