"""Downloads from a server on the loopback address that cuts, forgets, lies and fills the disk."""

import hashlib
import os
import re
import resource
import subprocess
import sys

import pytest
from commands import ROOT

from data import fetching
from data.fetching import Known, fetch, unpack
from distill_utils.runs.errors import UserError
from distill_utils.runs.locks import locked

CONTENT = bytes(range(256)) * 40_000  # 10 MB: several blocks
WHOLE = Known(len(CONTENT), f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")


@pytest.fixture(autouse=True)
def one_file(server):
    server.files["/file"] = CONTENT


def fetched(server, tmp_path, known=WHOLE):
    path = tmp_path / "new/file"
    return fetch(f"{server.address}/file", path, known, announce=lambda text: None), path


# --- one file ---


def test_a_file_comes_whole_and_is_not_asked_for_again(server, tmp_path):
    assert fetched(server, tmp_path) == (True, tmp_path / "new/file")
    assert (tmp_path / "new/file").read_bytes() == CONTENT and not list(tmp_path.rglob("*.part"))
    assert not fetched(server, tmp_path)[0] and server.asked == [("/file", None)]


def test_a_cut_connection_goes_on_where_it_was(server, tmp_path):
    server.cuts = [3_000_001, 0, 4_000_000]
    _, path = fetched(server, tmp_path)
    ranges = [None, "bytes=3000001-", "bytes=3000001-", "bytes=7000001-"]
    assert path.read_bytes() == CONTENT and [asked for _, asked in server.asked] == ranges


def test_another_call_goes_on_too(server, tmp_path):
    server.cuts = [2_000_000] + [0] * fetching._TRIES
    with pytest.raises(UserError, match=r"2,000,000 of 10,240,000 bytes; 2,000,000 bytes are kept"):
        fetched(server, tmp_path)
    assert (tmp_path / "new/file.part").read_bytes() == CONTENT[:2_000_000]
    _, path = fetched(server, tmp_path)
    assert path.read_bytes() == CONTENT and server.asked[-1][1] == "bytes=2000000-"


def test_a_server_without_parts_of_files_begins_anew(server, tmp_path):
    server.ranges, server.cuts = False, [3_000_000, 1_000]
    _, path = fetched(server, tmp_path)
    assert path.read_bytes() == CONTENT and len(server.asked) == 3


def test_a_server_that_always_begins_anew_and_cuts_is_given_up(server, tmp_path):
    server.ranges, server.cuts = False, [3_000_000] * 100
    with pytest.raises(UserError, match="the connection ended after 3,000,000"):
        fetched(server, tmp_path)
    assert len(server.asked) == fetching._TRIES


def test_a_server_that_says_no_length(server, tmp_path):
    server.lengths = False
    assert fetched(server, tmp_path, Known())[1].read_bytes() == CONTENT


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 5])
@pytest.mark.parametrize("known", [WHOLE, Known(digest=WHOLE.digest)])
def test_a_part_that_is_whole_or_too_long(server, tmp_path, length, known):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/file.part").write_bytes((CONTENT + b"12345")[:length])
    assert fetched(server, tmp_path, known)[1].read_bytes() == CONTENT


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_is_busy_is_asked_again(server, tmp_path, status):
    server.answers = [status, status]
    assert fetched(server, tmp_path)[1].read_bytes() == CONTENT and len(server.asked) == 3


# --- what ends in one sentence ---


@pytest.mark.parametrize(
    "known, words",
    [
        (Known(7), "has 10,240,000 bytes, and 7 were expected"),
        (Known(digest="sha256:00"), "its sha256 begins with"),
        (Known(digest="md5:0123456789abcdef"), "its md5 begins with .* not 0123456789ab"),
        (Known(entries=3), "is not a JSON file"),
    ],
)
def test_a_file_that_is_not_the_one_expected_is_removed(server, tmp_path, known, words):
    with pytest.raises(UserError, match=words):
        fetched(server, tmp_path, known)
    assert {file.name for file in (tmp_path / "new").iterdir()} == {".file.lock"}


def test_a_list_of_another_length_is_not_the_one_expected(server, tmp_path):
    server.files["/file"] = b'["one", "two"]'
    with pytest.raises(UserError, match="no JSON list of 3 entries"):
        fetched(server, tmp_path, Known(entries=3))
    assert fetched(server, tmp_path, Known(entries=2))[1].read_bytes() == b'["one", "two"]'


def test_another_file_of_that_name_is_kept(server, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/file").write_bytes(b"mine")
    with pytest.raises(UserError, match="file is there, but it has 4 bytes, not 10,240,000: remove it"):
        fetched(server, tmp_path)
    assert (tmp_path / "new/file").read_bytes() == b"mine" and not server.asked


def test_a_status_that_stays_is_said_at_once(server, tmp_path):
    with pytest.raises(UserError, match="/nothing cannot be fetched: the server answers 404 Not Found"):
        fetch(f"{server.address}/nothing", tmp_path / "file", WHOLE)
    assert len(server.asked) == 1


def test_no_network_is_one_sentence(server, tmp_path):
    server.close()
    with pytest.raises(UserError, match=r"cannot be fetched: Connection refused\.$"):
        fetched(server, tmp_path)


def test_a_folder_that_cannot_be_made_is_one_sentence(server, tmp_path):
    (tmp_path / "new").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        fetched(server, tmp_path)


def in_a_process(server, path, **options):
    """A process that fetches the file as a program would."""
    program = (
        "import sys; from data.fetching import Known, fetch; from distill_utils.runs import signals\n"
        f"sys.exit(signals.run_program(lambda _: fetch('{server.address}/file', '{path}', Known())))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-u", "-c", program], env=environment, **pipes, **options)


def test_a_full_disk_keeps_what_came(server, tmp_path):
    """A process may write no longer file than 5 MB; the next may."""
    limit = (resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))
    process = in_a_process(server, tmp_path / "file", preexec_fn=lambda: resource.setrlimit(*limit))
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2 and len(server.asked) == 1
    assert re.search(r"^error: .*file\.part cannot be written: File too large\.$", said, re.M)
    kept = (tmp_path / "file.part").stat().st_size
    assert 0 < kept <= 5_000_000
    fetch(f"{server.address}/file", tmp_path / "file", WHOLE)
    assert (tmp_path / "file").read_bytes() == CONTENT and server.asked[-1][1] == f"bytes={kept}-"


def test_one_of_two_waits_and_finds_the_file(server, tmp_path):
    with locked(tmp_path / ".file.lock"):  # as a process that fetches it
        process = in_a_process(server, tmp_path / "file")
        assert "waiting for another process" in process.stdout.readline()
        (tmp_path / "file").write_bytes(CONTENT)
    assert "is there already" in process.communicate(timeout=120)[0]
    assert process.returncode == 0 and not server.asked


# --- archives ---


def test_unpacking_goes_on_where_it_was(tmp_path, zipped):
    (tmp_path / "a.zip").write_bytes(zipped({"in/": b"", "in/a.jpg": b"aaa", "in/deep/b.jpg": b"bb"}))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"old")  # of the right size: there already
    unpack(tmp_path / "a.zip", tmp_path)
    assert (tmp_path / "in/a.jpg").read_bytes() == b"old" and (
        tmp_path / "in/deep/b.jpg"
    ).read_bytes() == b"bb"
    (tmp_path / "in/a.jpg").write_bytes(b"torn off")
    unpack(tmp_path / "a.zip", tmp_path)
    assert (tmp_path / "in/a.jpg").read_bytes() == b"aaa" and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["../out", "in/../../out", "/out", "in\\..\\..\\out"])
def test_an_archive_that_reaches_outside_is_not_unpacked(tmp_path, name, zipped):
    (tmp_path / "a.zip").write_bytes(zipped({"in/a.jpg": b"aaa", name: b"bad"}))
    with pytest.raises(UserError, match="reaches outside its folder"):
        unpack(tmp_path / "a.zip", tmp_path / "folder")
    assert {file.name for file in tmp_path.iterdir()} == {"a.zip"}


def test_a_broken_archive_is_one_sentence(tmp_path, zipped):
    content = zipped({"in/a.jpg": b"a" * 1000})
    for broken in (content[:-30], content.replace(b"aaaa", b"aaab", 1), b"no zip"):
        (tmp_path / "a.zip").write_bytes(broken)
        with pytest.raises(UserError, match="a.zip cannot be unpacked"):
            unpack(tmp_path / "a.zip", tmp_path)
        assert not list(tmp_path.rglob("a.jpg")) and not list(tmp_path.rglob("*.tmp"))
