"""A pool that a web server has, by aiohttp; without it a sentence."""

import functools
import http.server
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from commands import ROOT
from pools import run

from distill_utils.runs.errors import UserError
from distill_utils.selection.pool import Pool


class Plain(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Ranges(Plain):
    """Sends the part of a file that is asked for, as web servers and object stores do."""

    def do_GET(self):
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked:
            return super().do_GET()
        data, begin = Path(self.translate_path(self.path)).read_bytes(), int(asked[1])
        part = data[begin : int(asked[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def served(made, request):
    """The URL of a pool, from a server of the kind that the test asks for."""
    pytest.importorskip("aiohttp")
    handler = functools.partial(request.param, directory=made.folder.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{made.folder.name}"
        server.shutdown()


@pytest.mark.parametrize("served", [Ranges], indirect=True)
@pytest.mark.parametrize("kind", ["static", "rounds"])
def test_a_pool_on_a_web_server_gives_the_same_bytes(kind, served, made, prior, tmp_path):
    flags = ["--fraction", 0.45, "--fraction_vas", 0.3]
    flags += ["--target_variance", prior] if kind == "static" else ["--num_iters", 4]
    run("vas", served, tmp_path / "far.npy", *flags)
    run("vas", made.folder, tmp_path / "near.npy", *flags)
    assert (tmp_path / "far.npy").read_bytes() == (tmp_path / "near.npy").read_bytes()


@pytest.mark.parametrize("served", [Plain], indirect=True)
def test_a_server_that_sends_whole_files_only_wants_a_cache(served, made, prior, tmp_path):
    flags = ["--fraction_vas", 0.3, "--target_variance", prior]
    with pytest.raises(UserError, match=f"{served}/.*parquet cannot be read: .* range requests"):
        run("vas", served, tmp_path / "far.npy", *flags)
    run("vas", f"simplecache::{served}", tmp_path / "far.npy", *flags)
    run("vas", made.folder, tmp_path / "near.npy", *flags)
    assert (tmp_path / "far.npy").read_bytes() == (tmp_path / "near.npy").read_bytes()


@pytest.mark.parametrize("served", [Ranges], indirect=True)
def test_a_folder_that_the_server_does_not_have_gets_a_sentence(served):
    with pytest.raises(UserError, match=f"{served}/none does not exist"):
        Pool(f"{served}/none", None, "l14_img")


def test_without_aiohttp_a_sentence_names_it():
    program = (
        "import sys; sys.modules['aiohttp'] = None; from distill_utils.selection.pool import Pool; "
        "Pool('http://127.0.0.1:9/pool', None, 'l14_img')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "UserError: http://127.0.0.1:9/pool cannot be read: " in last and '"aiohttp"' in last
