"""A local HTTP server that serves files well, and badly in all ways that servers have."""

import contextlib
import http.server
import re
import threading


class WeightServer:
    """Serves `files` (bytes by name); `faults` names what goes wrong with the next requests.

    Faults: `cut` (half of what is left, then the connection ends), `stall` (half, then silence),
    `long` (claims more bytes than come), `short` (claims fewer), `page` (an HTML page, as if all
    were well), `moved` (another file from now on), `norange` (all of it, whatever was asked for),
    `wrongrange` (another part than was asked for), or a status such as `503`.
    """

    def __init__(self):
        self.files, self.faults, self.requests, self.version = {}, [], [], "1"
        self.released = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    outer.answer(self)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/weights"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        fault = self.faults.pop(0) if self.faults else None
        name = handler.path.rpartition("/")[2]
        if fault is not None and fault.isdecimal():
            return handler.send_error(int(fault))
        if name not in self.files:
            return handler.send_error(404)
        if fault == "moved":
            self.files[name], self.version = self.files["other"], "2"
        data, start = self.files[name], 0
        tag = f'"{self.version}"'
        if fault == "page":
            data = b"<!DOCTYPE html><html><body>Please log in</body></html>"
        elif wanted and fault != "norange" and handler.headers.get("If-Range") == tag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if fault == "wrongrange":
                start += 1
        whole = len(data)
        if start >= whole:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{whole}")
            return handler.end_headers()
        body = data[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("ETag", tag)
        claimed = len(body) + {"long": 1000, "short": -1000}.get(fault, 0)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        handler.send_header("Content-Length", str(claimed))
        handler.end_headers()
        if fault in ("cut", "stall"):
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            if fault == "stall":
                self.released.wait(20)
            return None
        handler.wfile.write(body[: max(0, claimed)])
        return None


@contextlib.contextmanager
def serving(**files):
    """A `WeightServer` while the block runs."""
    server = WeightServer()
    server.files.update(files)
    try:
        yield server
    finally:
        server.close()
