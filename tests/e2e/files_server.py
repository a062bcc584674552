"""A web server for one folder, slow if it is told to be, over TLS if it is given a certificate."""
import http.server
import ssl
import threading
import time
import urllib.parse
from pathlib import Path


class FilesServer:
    """Serves `folder` with ranges. `pause` is between two pieces of 64 KiB. Use as a context manager."""

    def __init__(self, folder, pause=0.0, certificate=None, host="localhost"):
        self.folder, self.pause = Path(folder), pause
        self.ranges, self.seen = [], []  # of files without the list; path and headers of all requests
        files = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                files.answer(self)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_):
                pass  # clients that are killed

        self.server = Server((host, 0), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"http{'s' if certificate else ''}://{host}:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request):
        path = self.folder / urllib.parse.unquote(request.path).lstrip("/")
        if not path.is_file():
            request.send_error(404)
            return
        self.seen.append((request.path, dict(request.headers)))
        content, asked = path.read_bytes(), request.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if path.name != "SHA256SUMS":
            self.ranges.append(start)
        request.send_response(206 if asked else 200)
        if asked:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        for at in range(start, len(content), 1 << 16):
            request.wfile.write(content[at:at + (1 << 16)])
            time.sleep(self.pause)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
