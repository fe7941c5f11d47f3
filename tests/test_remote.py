"""A store that is slow, fails, lies or is not there: asked again, then one line. A real S3-compatible server on loopback."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from loopback_store import Fault, Proxy, in_environment, proxy_to, s3_environment, s3_server
from tiny import free_port

from lm1b.errors import UserError, describe_os_error
from lm1b.files import LARGEST_JSON_BYTES
from lm1b.remote import LEAST_ANSWER_SECONDS, Store, is_url
from lm1b.remote_errors import StoreError, WrongBytes

DATA = bytes(range(256)) * 300


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3_server(tmp_path_factory.mktemp("s3")) as port:
        yield port


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv("LM1B_STORE_SECONDS", "20")
    with proxy_to(server) as proxy, in_environment(proxy.environment):
        fsspec.filesystem("s3").clear_instance_cache()
        files = fsspec.filesystem("s3")
        if not files.exists("bucket"):
            files.mkdir("bucket")
        files.pipe_file("bucket/folder/file", DATA)
        proxy.seen.clear()
        yield proxy
        fsspec.filesystem("s3").clear_instance_cache()


def said(error: pytest.ExceptionInfo[OSError]) -> str:
    text = describe_os_error(error.value)
    assert "\n" not in text
    return text


def test_files_come_and_go(proxy: Proxy, tmp_path: Path) -> None:
    store = Store("s3://bucket/folder/")
    assert store.read("file") == DATA
    assert store.read("file", 5, 900) == DATA[5:900]
    store.write("new/a", b"abc")
    (tmp_path / "large").write_bytes(DATA)
    store.put(tmp_path / "large", "new/b")
    assert store.list() == {"file": len(DATA), "new": None}
    assert store.list("new") == {"a": 3, "b": len(DATA)}
    store.get("new/b", tmp_path / "back", len(DATA), hashlib.sha256(DATA).hexdigest())
    assert (tmp_path / "back").read_bytes() == DATA
    assert store.read_if_there("new/a") == b"abc"
    store.delete("new/a")
    store.delete("new/b")
    assert store.read_if_there("new/a") is None
    assert store.list("new") == {}


@pytest.mark.parametrize("kind", ["503", "cut", "truncate", "flip"])
def test_a_fault_that_passes_is_not_noticed(proxy: Proxy, kind: str) -> None:
    def check(data: bytes) -> None:
        if hashlib.sha256(data).digest() != hashlib.sha256(DATA[:5000]).digest():
            raise WrongBytes("other bytes")

    proxy.faults.append(Fault("GET /bucket/folder/file", kind, times=2))  # type: ignore[arg-type]
    assert Store("s3://bucket/folder").read("file", 0, 5000, check) == DATA[:5000]
    assert sum("GET /bucket/folder/file" in request for request in proxy.seen) == 3


@pytest.mark.parametrize("kind", ["503", "cut", "truncate", "flip"])
def test_a_file_is_copied_whole_or_asked_for_again(proxy: Proxy, tmp_path: Path, kind: str) -> None:
    proxy.faults.append(Fault("GET /bucket/folder/file", kind, times=2))  # type: ignore[arg-type]
    Store("s3://bucket/folder").get("file", tmp_path / "copy", len(DATA), hashlib.sha256(DATA).hexdigest())
    assert (tmp_path / "copy").read_bytes() == DATA


@pytest.mark.parametrize("kind", ["503", "cut"])
def test_a_fault_that_stays_is_one_line_in_bounded_time(proxy: Proxy, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM1B_STORE_SECONDS", "2")
    proxy.faults.append(Fault("GET /bucket/folder/file", kind))  # type: ignore[arg-type]
    started_at = time.monotonic()
    with pytest.raises(StoreError) as error:
        Store("s3://bucket/folder").read("file")
    assert time.monotonic() - started_at < 18  # one request more than the patience
    text = said(error)
    assert text.startswith("s3://bucket/folder/file: could not be read: ")
    assert "times in" in text
    assert "run the same command again" in text


def test_what_is_wrong_each_time_is_said_to_be_damaged(proxy: Proxy) -> None:
    def check(data: bytes) -> None:
        raise WrongBytes("SHA-256 expected a, found b")

    with pytest.raises(StoreError) as error:
        Store("s3://bucket/folder").read("file", 0, 5, check)
    assert said(error) == ("s3://bucket/folder/file: damaged (SHA-256 expected a, found b), 3 times; put a sound copy there")


def test_a_write_that_fails_is_tried_again(proxy: Proxy) -> None:
    proxy.faults += [Fault("PUT /bucket/folder/again", "503", times=1), Fault("PUT /bucket/folder/again", "cut", times=1)]
    store = Store("s3://bucket/folder")
    store.write("again", DATA)
    assert store.read("again") == DATA


def test_no_bucket_is_said_at_once(proxy: Proxy) -> None:
    for use in (lambda store: store.read("x"), lambda store: store.write("x", b""), lambda store: store.read_if_there("x")):
        with pytest.raises(StoreError) as error:
            use(Store("s3://no-such-bucket/folder"))
        assert "s3://no-such-bucket/folder/x: could not be" in said(error)
        assert "check the bucket" in said(error)
    assert len(proxy.seen) <= 6


def test_no_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM1B_STORE_SECONDS", "1")
    with in_environment(s3_environment(free_port())):
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(StoreError) as error:
            Store("s3://bucket/folder").read("x")
    assert "tried" in said(error)


def test_no_credentials_is_said_at_once(proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        Store("s3://bucket/folder").write("x", b"")


def test_a_kind_that_is_not_known_or_not_installed() -> None:
    with pytest.raises(UserError, match="Protocol not known: nix; expected"):
        Store("nix://bucket/folder")
    with pytest.raises(UserError, match="pip install gcsfs"):
        Store("gs://bucket/folder")


def test_patience_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM1B_STORE_SECONDS", "long")
    with pytest.raises(UserError, match="LM1B_STORE_SECONDS=long: expected a number of seconds"):
        Store("file:///tmp")


def test_a_folder_of_this_machine_by_url(tmp_path: Path) -> None:
    assert is_url(f"file://{tmp_path}")
    assert not is_url(str(tmp_path))
    store = Store(f"file://{tmp_path}/new")
    store.write("a/b", b"abc")
    (tmp_path / "c").write_bytes(b"c")
    store.put(tmp_path / "c", "a/c")
    assert (tmp_path / "new" / "a" / "b").read_bytes() == b"abc"
    assert store.read("a/b", 1, 3) == b"bc"
    assert store.list("a") == {"b": 3, "c": 1}
    assert store.list("nothing") == {}
    store.delete("a/b")
    store.delete("a/b")
    with pytest.raises(StoreError, match="not there"):
        store.read("a/b")


def test_a_store_that_never_answers_is_given_up_when_patience_ends(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM1B_STORE_SECONDS", "2")
    proxy.faults.append(Fault("GET /bucket/folder/file", "delay", seconds=14))
    started_at = time.monotonic()
    with pytest.raises(StoreError, match="no answer in time"):
        Store("s3://bucket/folder").read("file", 0, 5)
    assert time.monotonic() - started_at < 2 + LEAST_ANSWER_SECONDS + 2


def test_a_full_disk_here_is_not_the_stores_fault(proxy: Proxy) -> None:
    with pytest.raises(OSError, match="No space left") as error:
        Store("s3://bucket/folder").get("file", Path("/dev/full"), len(DATA), hashlib.sha256(DATA).hexdigest())
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, "/dev/full")
    assert len(proxy.seen) == 1


def test_a_place_here_that_is_missing_is_not_the_stores_fault(proxy: Proxy, tmp_path: Path) -> None:
    here = tmp_path / "nothing" / "file"
    for copy in (lambda store: store.get("file", here, 1, ""), lambda store: store.put(here, "new")):
        with pytest.raises(FileNotFoundError) as error:
            copy(Store("s3://bucket/folder"))
        assert str(error.value.filename) == str(here)
    with pytest.raises(StoreError, match="could not be read: not there"):
        Store("s3://bucket/folder").get("nothing", tmp_path / "file", 1, "")


def test_a_programs_mistake_is_not_tried_again(tmp_path: Path) -> None:
    tries: list[int] = []

    def attempt() -> None:
        tries.append(1)
        raise TypeError("unexpected keyword argument")

    with pytest.raises(StoreError, match="unexpected keyword"):
        Store(f"file://{tmp_path}").retry("x", "read", attempt)
    assert len(tries) == 1


def test_a_json_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "manifest.json", "wb") as file:
        file.truncate(LARGEST_JSON_BYTES + 1)
    store = Store(f"file://{tmp_path}")
    for read in (store.read, store.read_if_there):
        with pytest.raises(StoreError, match="no such file of ours has more than 32 MiB"):
            read("manifest.json")
    assert store.read_if_there("manifest.json", None) == bytes(LARGEST_JSON_BYTES + 1)


def test_a_whole_file_that_is_cut_short_each_time_is_found_out(proxy: Proxy) -> None:
    proxy.faults.append(Fault("GET /bucket/folder/file", "truncate"))
    with pytest.raises(StoreError, match=f"{len(DATA)} bytes expected, found"):
        Store("s3://bucket/folder").read("file")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("s3://KEY:SECRET@bucket/folder", "s3://bucket/folder: "),
        ("s3://KEY:SEC/RET@bucket/folder", "s3://bucket/folder: "),
        ("s3://SECRET@bucket", "s3://bucket: "),
        ("https://host:8080/folder?X-Amz-Signature=SECRET", "https://host:8080/folder: "),
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str, named: str) -> None:
    with pytest.raises(UserError) as error:
        Store(url)
    assert str(error.value).startswith(named)
    assert not [word for word in ("SEC", "RET", "KEY") if word in str(error.value).replace("AWS_ACCESS_KEY_ID", "")]


def test_an_at_sign_in_a_path_is_no_credential(tmp_path: Path) -> None:
    (tmp_path / "a@b").write_bytes(b"c")
    assert Store(f"file://{tmp_path}").read("a@b") == b"c"
    assert Store(f"file://{tmp_path}/x@y").list() == {}
