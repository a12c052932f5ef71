"""A web server on the loopback address that can cut connections and forget what it was asked."""

import http.server
import re
import threading


class Server:
    """`files`: path -> bytes. `asked`: (path, Range or None) of each request.

    cuts: for successive requests, after how many bytes the connection ends, None for at its end. answers: for
    successive requests, a status in place of the file. ranges, lengths: whether it gives parts of files, and
    says how long they are.
    """

    def __init__(self):
        self.files, self.asked, self.cuts, self.answers = {}, [], [], []
        self.ranges, self.lengths = True, True
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.handle_error = lambda *_: None  # a client that went away
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def answer(self, handler):
        asked = handler.headers.get("Range")
        self.asked.append((handler.path, asked))
        content = self.files.get(handler.path)
        status = self.answers.pop(0) if self.answers else 200 if content is not None else 404
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.ranges else 0
        if status == 200 and start:
            status = 206 if start < len(content) else 416
        handler.send_response(status)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if status == 416:
            handler.send_header("Content-Range", f"bytes */{len(content)}")
        body = content[start:] if status in (200, 206) else b""
        if self.lengths:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.cuts.pop(0) if self.cuts else None])

    def close(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
