"""Corpus paths, patience, streamed sources and their cache: with real files, commands and processes."""

from __future__ import annotations

import errno
import hashlib
import logging
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from roberta_dist.corpus.cache import ContentCache, WrongContent
from roberta_dist.corpus.opening import open_store
from roberta_dist.corpus.retry import with_retries
from roberta_dist.corpus.storage import Content, LocalStore, ReadOptions
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.remote_path import is_remote, shown
from roberta_dist.units import GIB

pytestmark = pytest.mark.unit


def content_of(data: bytes) -> Content:
    return Content(hashlib.sha256(data).hexdigest(), len(data))


def options(tmp_path: Path, retry_s: float = 0.5, cache_bytes: int = GIB) -> ReadOptions:
    return ReadOptions(retry_s, str(tmp_path / "cache"), cache_bytes / GIB)


def cached(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache" / "content").iterdir()}


# Paths


@pytest.mark.parametrize("path", ["/a/b", "corpora/mine", "~/mine", "./a:b"])
def test_a_folder_is_local(path):
    assert not is_remote(path)
    assert isinstance(open_store(path), LocalStore)


@pytest.mark.parametrize(
    "path",
    [
        "https://me:hunter2@host/mine",
        "http://hunter2@host/mine",
        "https://host/mine?sig=hunter2",
        "https://host/mine/{}?sig=hunter2",
        "s3://key:hunter2@bucket/mine",
        "pipe:curl -sf https://me:hunter2@host/mine/{}",
        "pipe:curl -sf 'https://host/mine/{}?se=2030&sig=hunter2'",
    ],
)
def test_a_secret_in_a_path_is_refused_and_not_repeated(path):
    with pytest.raises(ConfigError, match="carries a user name, password or query") as caught:
        open_store(path)
    assert "hunter2" not in str(caught.value)


def test_a_variable_in_a_command_is_no_secret(tmp_path):
    for command in (
        'curl "https://host/{}?$SIGNATURE"',
        'curl "https://host/{}?sig=$SIG"',
        "curl https://$USER:$PASSWORD@host/{}",
    ):
        store = open_store(f"pipe:{command}", options(tmp_path))
        assert store.child("train").where("shard-0.tar") == "pipe:curl … train/shard-0.tar"


@pytest.mark.parametrize("path", ["ftp://host/mine", "pipe:cat mine", "file:///mine"])
def test_a_path_of_no_known_form_says_what_there_is(path):
    with pytest.raises(ConfigError, match=r"has no \{\}"):
        open_store(path)


def test_shown_text_has_no_secret():
    text = "GET https://me:pw@host/a?sig=x failed, then http://k@h/b (s3://bucket/c?x=1)"
    assert shown(text) == "GET https://host/a failed, then http://h/b (s3://bucket/c)"


# Patience


def test_passing_errors_are_tried_again_and_logged(caplog):
    failures = [OSError("first"), OSError(errno.EIO, "second")]

    def read() -> str:
        if failures:
            raise failures.pop(0)
        return "read"

    with caplog.at_level(logging.WARNING):
        assert with_retries(read, "/mine/shard.tar", retry_s=60) == "read"
    assert [record.message.split(":")[0] for record in caplog.records] == ["/mine/shard.tar"] * 2


def test_patience_ends():
    calls = []

    def read() -> None:
        calls.append(1)
        raise OSError("still busy")

    with pytest.raises(OSError, match="still busy"):
        with_retries(read, "x", retry_s=0.4)
    assert 2 <= len(calls) <= 5


@pytest.mark.parametrize("kind", [FileNotFoundError, PermissionError, ValueError])
def test_what_waiting_does_not_repair_is_raised_at_once(kind):
    calls = []

    def read() -> None:
        calls.append(1)
        raise kind("no")

    with pytest.raises(kind):
        with_retries(read, "x", retry_s=60)
    assert len(calls) == 1


# Streamed sources


def corpus(tmp_path: Path, **files: bytes) -> tuple[Path, dict[str, Content]]:
    """A folder behind a command that notes each file it streams."""
    folder = tmp_path / "source" / "train"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder, {name: content_of(data) for name, data in files.items()}


def streaming(tmp_path: Path, contents, cache_bytes: int = GIB, command: str | None = None):
    noting = f"echo {{}} >> {tmp_path}/log; cat {tmp_path}/source/{{}}"
    store = open_store(f"pipe:{command or noting}", options(tmp_path, cache_bytes=cache_bytes))
    return store.child("train").with_contents(contents)


def streamed(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().split()


def test_each_file_is_streamed_once(tmp_path):
    _, contents = corpus(tmp_path, a=b"0123456789" * 1000, b=b"other")
    store = streaming(tmp_path, contents)
    assert store.read_range("a", 5, 10) == b"5678901234"
    assert streaming(tmp_path, contents).read_range("a", 9_995, 100) == b"56789"
    assert store.read_range("b", 0, 5) == b"other"
    assert store.fingerprint("b").bytes == 5
    assert streamed(tmp_path) == ["train/a", "train/b"]
    assert cached(tmp_path) == {contents["a"].sha256, contents["b"].sha256}


def test_any_scheme_of_gopen_may_be_a_template(tmp_path):
    _, contents = corpus(tmp_path, a=b"0123456789")
    template = f"file://{tmp_path}/source/{{}}"
    store = open_store(template, options(tmp_path)).child("train").with_contents(contents)
    assert store.read_range("a", 2, 3) == b"234"
    with pytest.raises(FileNotFoundError, match="train/none: not there"):
        store.read_bytes("none")


def test_files_of_one_name_are_kept_apart(tmp_path):
    """webdataset's own cache serves the second corpus from the first one's file."""
    _, wiki = corpus(tmp_path, **{"shard-000000.tar": b"wiki"})
    streaming(tmp_path, wiki).read_range("shard-000000.tar", 0, 4)
    (tmp_path / "source" / "train" / "shard-000000.tar").write_bytes(b"book")
    books = {"shard-000000.tar": content_of(b"book")}
    assert streaming(tmp_path, books).read_range("shard-000000.tar", 0, 4) == b"book"
    assert streaming(tmp_path, wiki).read_range("shard-000000.tar", 0, 4) == b"wiki"


def test_other_content_than_the_manifests_is_refused(tmp_path):
    folder, contents = corpus(tmp_path, a=b"0123456789")
    (folder / "a").write_bytes(b"0123456780")
    with pytest.raises(OSError, match=r"train/a: 10 bytes with sha256 .*, the manifest names"):
        streaming(tmp_path, contents).read_range("a", 0, 1)
    assert streamed(tmp_path) == ["train/a"] * 2  # the transport may be at fault once
    assert cached(tmp_path) == set()


def test_a_stream_that_breaks_once_is_streamed_again(tmp_path):
    _, contents = corpus(tmp_path, a=b"0123456789" * 100)
    flag = tmp_path / "broke"
    command = f"if [ -e {flag} ]; then cat {tmp_path}/source/{{}}; else touch {flag}; head -c 300 {tmp_path}/source/{{}}; exit 7; fi"
    store = streaming(tmp_path, contents, command=command)
    assert store.read_range("a", 990, 10) == b"0123456789"


def test_a_failing_command_is_not_quoted(tmp_path):
    store = streaming(tmp_path, {}, command="false 'Authorization: hunter2' {}")
    with pytest.raises(OSError, match=r"pipe:false … train/manifest\.json: exit code 1") as caught:
        store.read_bytes("manifest.json")
    assert "hunter2" not in repr(caught.value)
    missing = streaming(tmp_path, {}, command="no-such-command {}")
    with pytest.raises(OSError, match="no such command"):
        missing.read_bytes("manifest.json")


# The cache


def test_a_damaged_copy_is_forgotten_and_streamed_again(tmp_path):
    _, contents = corpus(tmp_path, a=b"0123456789")
    store = streaming(tmp_path, contents)
    store.read_range("a", 0, 1)
    (tmp_path / "cache" / "content" / contents["a"].sha256).write_bytes(b"xxxxxxxxxx")
    assert store.read_range("a", 0, 1) == b"x"
    store.forget("a")
    assert store.read_range("a", 0, 1) == b"0"


def test_the_least_recently_used_makes_room(tmp_path):
    files = {name: name.encode() * 1000 for name in "abc"}
    _, contents = corpus(tmp_path, **files)
    store = streaming(tmp_path, contents, cache_bytes=2500)
    for name in "abac":
        assert store.read_range(name, 0, 1) == name.encode()
        time.sleep(0.02)  # modification times must differ
    assert cached(tmp_path) == {contents["a"].sha256, contents["c"].sha256}
    assert store.read_range("b", 999, 1) == b"b"
    assert streamed(tmp_path) == [f"train/{name}" for name in "abcb"]


def test_a_file_in_use_is_never_removed(tmp_path):
    files = {name: name.encode() * 1000 for name in "ab"}
    contents = {name: content_of(data) for name, data in files.items()}
    cache = ContentCache(options(tmp_path, retry_s=0.2, cache_bytes=1500))
    with cache.open(contents["a"], lambda handle: write(handle, files["a"])) as held:
        other = cache.open(contents["b"], lambda handle: write(handle, files["b"]))
        with pytest.raises(ConfigError, match=r"every file is in use: data\.cache_gib="), other:
            pass
        assert held.read() == files["a"] and cached(tmp_path) == {contents["a"].sha256}
    with cache.open(contents["b"], lambda handle: write(handle, files["b"])) as other:
        assert other.read() == files["b"]
    assert cached(tmp_path) == {contents["b"].sha256}


def write(handle, data: bytes) -> None:
    handle.seek(0)
    handle.write(data)
    handle.truncate()


def test_a_shard_larger_than_the_cache_names_the_limit(tmp_path):
    _, contents = corpus(tmp_path, a=b"a" * 1000)
    store = streaming(tmp_path, contents, cache_bytes=999)
    with pytest.raises(ConfigError, match=r"does not fit into the cache: data\.cache_gib="):
        store.read_range("a", 0, 1)


def test_a_failed_fill_leaves_nothing(tmp_path):
    cache = ContentCache(options(tmp_path))
    with pytest.raises(WrongContent), cache.open(content_of(b"right"), lambda h: write(h, b"bad")):
        pass
    assert cached(tmp_path) == set()


def test_what_a_killed_process_left_is_replaced(tmp_path):
    _, contents = corpus(tmp_path, a=b"0123456789")
    part = tmp_path / "cache" / "content" / f"{contents['a'].sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half of something else, longer than the file")
    assert streaming(tmp_path, contents).read_range("a", 0, 100) == b"0123456789"
    assert cached(tmp_path) == {contents["a"].sha256}


def test_threads_and_processes_share_one_stream(tmp_path):
    data = bytes(range(256)) * 4096
    _, contents = corpus(tmp_path, a=data)
    slow = f"echo {{}} >> {tmp_path}/log; sleep 0.3; cat {tmp_path}/source/{{}}"
    store = streaming(tmp_path, contents, command=slow)
    script = (
        "import sys\n"
        "from roberta_dist.corpus.opening import open_store\n"
        "from roberta_dist.corpus.storage import Content, ReadOptions\n"
        "store = open_store(sys.argv[1], ReadOptions(5.0, sys.argv[2])).child('train')\n"
        "store = store.with_contents({'a': Content(sys.argv[3], int(sys.argv[4]))})\n"
        "assert store.read_range('a', 256, 4) == bytes(range(4))\n"
    )
    arguments = [f"pipe:{slow}", str(tmp_path / "cache"), contents["a"].sha256, str(len(data))]
    others = [
        subprocess.Popen([sys.executable, "-c", script, *arguments]) for _ in range(2)
    ]  # fmt: skip
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda start: store.read_range("a", start, 4), range(0, 1024, 256)))
    assert read == [bytes(range(4))] * 4
    assert [other.wait(60) for other in others] == [0, 0]
    assert streamed(tmp_path) == ["train/a"]
