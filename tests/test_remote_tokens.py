"""Tokens at a URL: the same arrays as on this machine, through a bounded cache, whatever happens to it. A real S3 server on loopback."""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from command_runs import run_script
from loopback_store import Fault, Proxy, in_environment, proxy_to, s3_server
from remote_tokens import CACHE_BYTES, URL, assert_same_batches, batches, remote
from tiny import REPOSITORY, environment, run_ranks, tiny_settings, write_corpus
from training_runs import assert_same_end, job, launch, losses, run_launches

from lm1b.config import parse_config
from lm1b.data.batches import LOOK_EVERY
from lm1b.data.preprocess.preprocess import preprocess
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.manifest import PAGE_BYTES, Manifest
from lm1b.data.tokens.page_cache import LOCKS, PageCache
from lm1b.data.tokens.pages import NEEDED_SECONDS
from lm1b.distributed import Ranks
from lm1b.errors import UserError
from lm1b.files import read_json, write_sealed_json
from lm1b.remote_errors import StoreError
from lm1b.training.same_everywhere import check_patience

SLOW_ENDS = """
import json, sys, time
from lm1b.config import parse_config
from lm1b.training.engine.process_group import start_ranks, stop_ranks
from lm1b.training.run import Run

class SlowRun(Run):
    def _make_batches(self):
        time.sleep(8 * self.ranks.rank)
        return super()._make_batches()

run = SlowRun(parse_config(json.load(open(sys.argv[1]))), start_ranks())
run.close()
del run
print("built")
stop_ranks()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of 20 pages and more."""
    folder = tmp_path_factory.mktemp("remote")
    write_corpus(folder / "corpus", sentences=60_000)
    preprocess(parse_config(tiny_settings(folder, "none")), progress=False)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[int]:
    with s3_server(folder) as port:
        yield port


@pytest.fixture
def proxy(server: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The store, holding the tokens as preprocessing made them."""
    monkeypatch.setenv("LM1B_STORE_SECONDS", "20")
    with proxy_to(server) as proxy, in_environment(proxy.environment):
        files = fresh_s3()
        if not files.exists("lm1b"):
            files.mkdir("lm1b")
        for path in (folder / "tokens").iterdir():
            if path.is_file() and not path.name.startswith("."):
                files.put_file(str(path), f"lm1b/tokens/{path.name}")
        proxy.seen.clear()
        yield proxy
        fresh_s3()


def fresh_s3() -> Any:
    """A client of the present endpoint: fsspec keeps those it has made."""
    fsspec.filesystem("s3").clear_instance_cache()
    return fsspec.filesystem("s3")


@pytest.mark.parametrize("cache_bytes", [CACHE_BYTES, 64 << 20])
def test_batches_are_those_of_the_local_folder(folder: Path, proxy: Proxy, tmp_path: Path, cache_bytes: int) -> None:
    tokens = remote(tmp_path, cache_bytes)
    per_epoch = batches(tokens).steps_per_epoch
    assert_same_batches(folder, tokens, range(0, per_epoch + 20, 7))
    assert PageCache(tmp_path, cache_bytes).total_bytes() <= cache_bytes


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_whole_splits_are_those_of_the_local_folder(folder: Path, proxy: Proxy, tmp_path: Path, split: Any) -> None:
    for expected, found in zip(
        TokenDirectory.open(folder / "tokens").split(split).joined(), remote(tmp_path).split(split).joined(), strict=True
    ):
        assert np.array_equal(expected, found)


def test_every_slice_is_that_of_the_local_folder(folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    here, there = (tokens.split("train").tokens(0) for tokens in (TokenDirectory.open(folder / "tokens"), remote(tmp_path, 1 << 30)))
    generator = np.random.default_rng(1)
    at_edges = [(page * PAGE_BYTES - 128) // 2 + d for page in (1, 2) for d in (-1, 0, 1)]
    places = [*generator.integers(0, len(here) + 50, 60).tolist(), *at_edges, 0, len(here)]
    for start in places:
        for count in (0, 1, 30, 40_000, len(here)):
            assert np.array_equal(here[start : start + count], there[start : start + count]), (start, count)


def test_the_cache_stays_within_its_bound_under_several_readers(folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    largest, stop, cache = [0], threading.Event(), PageCache(tmp_path, CACHE_BYTES)

    def watch() -> None:
        while not stop.is_set():
            largest[0] = max(largest[0], cache.total_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    readers = [threading.Thread(target=lambda: [remote(tmp_path).split("train").joined()]) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    stop.set()
    watcher.join()
    assert 0 < largest[0] <= CACHE_BYTES


def test_what_is_in_the_cache_is_not_fetched_again(folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    remote(tmp_path, 1 << 30).split("train").joined()
    first = sum(".npy" in request for request in proxy.seen)
    assert first == len(list(tmp_path.glob("pieces/*/*")))
    remote(tmp_path, 1 << 30).split("train").joined()
    assert sum(".npy" in request for request in proxy.seen) == first


def test_two_readers_at_once_fetch_each_page_once(folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    readers = [threading.Thread(target=lambda: remote(tmp_path, 1 << 30).split("train").joined()) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    requests = [request for request in proxy.seen if ".npy" in request]
    assert len(requests) == len(set(requests)) == len(list(tmp_path.glob("pieces/*/*")))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_page_in_the_cache_is_fetched_anew(folder: Path, proxy: Proxy, tmp_path: Path, damage: str) -> None:
    expected = remote(tmp_path, 1 << 30).split("train").joined()[0]
    proxy.seen.clear()
    pages = list(tmp_path.glob("pieces/*/*"))
    for path in pages:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes({"flip": data, "cut": data[:-9], "empty": b""}[damage])
    assert np.array_equal(remote(tmp_path, 1 << 30).split("train").joined()[0], expected)
    assert sum(".npy" in request for request in proxy.seen) == len(pages)
    proxy.seen.clear()
    remote(tmp_path, 1 << 30).split("train").joined()
    assert sum(".npy" in request for request in proxy.seen) == 0


def test_a_killed_reader_leaves_a_cache_that_works(folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from remote_tokens import remote; from pathlib import Path\n"
        f"while True: remote(Path({str(tmp_path)!r})).split('train').joined(); print('once', flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "once\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (tmp_path / "pieces" / "00").mkdir(exist_ok=True)
    (tmp_path / "pieces" / "00" / f"{'0' * 64}.{process.pid}.partial").write_bytes(b"x" * PAGE_BYTES)
    tokens = remote(tmp_path)
    assert not list(tmp_path.glob("pieces/*/*.partial"))
    assert_same_batches(folder, tokens, range(0, 500, 11))
    assert PageCache(tmp_path, CACHE_BYTES).total_bytes() <= CACHE_BYTES


def test_a_lower_limit_is_kept_from_the_start(folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    remote(tmp_path, 1 << 30).split("train").joined()
    assert PageCache(tmp_path, 1 << 30).total_bytes() > CACHE_BYTES
    assert PageCache(tmp_path, CACHE_BYTES).total_bytes() <= CACHE_BYTES


def test_what_else_lies_in_the_cache_does_no_harm(folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    remote(tmp_path)
    (tmp_path / "pieces" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "pieces" / "00" / "folder").mkdir(parents=True)
    assert_same_batches(folder, remote(tmp_path), range(0, 100, 11))
    assert PageCache(tmp_path, CACHE_BYTES).total_bytes() <= CACHE_BYTES


def test_a_needed_page_does_not_wait_for_one_that_cannot_be_fetched(folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    """A prefetch of another page holds the same lock for as long as it asks a store that does not answer."""
    tokens = remote(tmp_path)
    found: list[np.ndarray] = []
    with contextlib.ExitStack() as locks:
        for number in range(LOCKS):
            file = locks.enter_context(open(tmp_path / "locks" / f"{number:02d}.lock", "ab"))
            fcntl.flock(file, fcntl.LOCK_EX)
        reader = threading.Thread(target=lambda: found.append(tokens.split("train").tokens(0)[:100]), daemon=True)
        reader.start()
        reader.join(NEEDED_SECONDS + 10)
        assert found, "still waiting"
    assert np.array_equal(found[0], TokenDirectory.open(folder / "tokens").split("train").tokens(0)[:100])


def test_a_manifest_cannot_name_a_page_over_and_over(folder: Path, tmp_path: Path) -> None:
    manifest = read_json(folder / "tokens" / "manifest.json")
    shard, num_pages = manifest["splits"]["train"]["shards"][0], 20_000
    shard["ends_bytes"], shard["ends_pieces"] = num_pages * PAGE_BYTES, ["0" * 64] * num_pages
    path = tmp_path / "manifest.json"
    write_sealed_json(path, {name: value for name, value in manifest.items() if name != "seal"})
    with pytest.raises(UserError, match="ends_bytes"):
        Manifest.read(path)


def test_more_patience_than_the_other_ranks_have_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = (parse_config(tiny_settings(folder, "none", tokens={"directory": place})) for place in (str(folder / "tokens"), URL))
    alone, two = (Ranks(0, size, torch.device("cpu")) for size in (1, 2))
    monkeypatch.delenv("LM1B_STORE_SECONDS", raising=False)
    check_patience(there, two)
    monkeypatch.setenv("LM1B_STORE_SECONDS", "50")
    check_patience(there, alone)
    check_patience(here, two)
    with pytest.raises(UserError, match="LM1B_STORE_SECONDS=50 and 10 s must be less than LM1B_TIMEOUT_SECONDS=60"):
        check_patience(there, two)


@pytest.mark.parametrize("name", ["train-00001.tokens.npy", "validation-00001.ends.npy", "vocabulary.txt", "manifest.json"])
def test_a_flipped_byte_in_the_store_is_named(folder: Path, proxy: Proxy, tmp_path: Path, name: str) -> None:
    def read_all() -> None:
        tokens = remote(tmp_path)
        for split in ("train", "validation"):
            tokens.split(split).joined()

    files = fresh_s3()
    data = bytearray(files.cat_file(f"lm1b/tokens/{name}"))
    place = data.index(b'"tokens_sha256": "') + 30 if name == "manifest.json" else len(data) // 2  # inside a value: it is still JSON
    data[place] ^= 1
    files.pipe_file(f"lm1b/tokens/{name}", bytes(data))
    with pytest.raises((StoreError, UserError)) as error:
        read_all()
    text = str(error.value)
    assert f"{URL}/{name}" in text
    assert "damaged" in text
    assert "\n" not in text


@pytest.mark.parametrize("kind", ["503", "cut", "truncate", "flip"])
def test_passing_faults_are_not_noticed(folder: Path, proxy: Proxy, tmp_path: Path, kind: Any) -> None:
    proxy.faults += [Fault(r"\.npy", kind, times=2)]
    assert_same_batches(folder, remote(tmp_path), range(0, 300, 7))


def test_what_the_coming_steps_read_is_fetched_before_they_ask(folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    made = batches(remote(tmp_path, 1 << 30), block_tokens=500)  # blocks lie anywhere: two or three for each lane of these steps
    made.at(0, 0, 8)
    seen = -1
    while seen != len(proxy.seen):
        seen = len(proxy.seen)
        time.sleep(0.5)
    for step in range(1, LOOK_EVERY):
        made.at(step, 0, 8)
    assert len(proxy.seen) == seen


def test_where_there_are_no_tokens(folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"s3://lm1b/nothing: no manifest\.json, so no prepared tokens there"):
        remote(tmp_path, url="s3://lm1b/nothing")
    with pytest.raises(StoreError, match="check the bucket"):
        remote(tmp_path, url="s3://no-such-bucket/tokens")


def test_preprocessing_to_a_url_is_refused(folder: Path) -> None:
    config = parse_config(tiny_settings(folder, "none", tokens={"directory": URL}))
    with pytest.raises(UserError, match=r"tokens\.directory=s3://lm1b/tokens: preprocessing writes to a folder of this machine"):
        preprocess(config)


def test_a_file_url_is_read_alike(folder: Path, tmp_path: Path) -> None:
    assert_same_batches(folder, remote(tmp_path, url=f"file://{folder}/tokens"), range(0, 100, 9))


def test_two_ranks_train_from_a_cache_smaller_than_the_corpus(folder: Path, proxy: Proxy, tmp_path: Path) -> None:
    length: Any = {"training": {"total_steps": 60, "gap_every": None}, "batches": {"block_tokens": 3000}, "checkpoints": {"every": 60}}
    there = {"directory": URL, "cache_directory": str(tmp_path / "cache"), "cache_bytes": 3 * PAGE_BYTES}
    jobs = [job(folder, "here", **length), job(folder, "there", tokens=there, **length)]
    proxy.faults += [Fault(r"\.npy", "503", times=3), Fault(r"\.npy", "flip", times=2)]
    seen = run_launches(folder, "both", [launch(2, jobs)])
    assert [report["error"] for rank in seen[0] for report in rank] == [None] * 4
    assert losses(folder, "here") == losses(folder, "there")
    assert len(losses(folder, "there")) == 60
    assert_same_end(folder, "here", "there", 0)
    assert PageCache(tmp_path / "cache", 1 << 30).total_bytes() <= 3 * PAGE_BYTES
    assert sum("train" in request and "tokens.npy" in request for request in proxy.seen) > 10


def test_a_rank_that_reads_the_sentence_ends_slowly_is_waited_for(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny_settings(folder, "slow_ends")))
    with in_environment({"LM1B_TIMEOUT_SECONDS": "5"}):
        assert run_ranks(["-c", SLOW_ENDS, str(config)], 2).count("built") == 2


def test_a_store_that_stays_away_ends_the_training_in_one_line(
    folder: Path, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM1B_STORE_SECONDS", "2")
    proxy.faults.append(Fault(r"train.*tokens\.npy", "503"))
    there = {"directory": URL, "cache_directory": str(tmp_path / "cache")}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny_settings(tmp_path, "run", tokens=there, corpus={"path": str(folder / "corpus")})))
    done = run_script("launch/train.py", "--config", str(config))
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "lm1b: error:" in line]
    assert f"{URL}/train" in line
    assert "times in" in line
    assert "Traceback" not in done.stderr
