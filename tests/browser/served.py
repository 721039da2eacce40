"""The built book over a server that compresses as the public ones do."""

import gzip
import mimetypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

# What is compressed already, and is sent as it is.
PACKED = {".woff", ".woff2", ".png", ".jpg", ".webp", ".zip", ".gz"}


LOST = "404.html"  # shown for an address of any depth, so its links begin with a slash


@cache
def prefix(book: Path) -> str:
    """Where on its host a book with an address is, such as "/flatnb": only the page for
    what is not found says so. Else nothing."""
    lost = book / LOST
    text = lost.read_text(encoding="utf-8") if lost.is_file() else ""
    found = re.search(r'href="(/[^"/]*)/_static/', text)
    return found[1] if found else ""


def file_of(url: str, book: Path) -> Path:
    """The file that an address on the server names."""
    path = unquote(urlsplit(url).path).removeprefix(prefix(book))
    file = book / path.lstrip("/")
    return file / "index.html" if file.is_dir() else file


@cache
def sent(file: Path) -> bytes:
    """What goes over the wire for a file: gzip, if that makes it smaller."""
    body = file.read_bytes()
    return body if file.suffix in PACKED else gzip.compress(body, 6)


@contextmanager
def server(book: Path) -> Iterator[str]:
    """The address at which the pages of `book` are served while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = file_of(self.path, book)
            if not file.is_file():
                # A browser asks for an icon by itself, once.
                self.send_error(204 if self.path == "/favicon.ico" else 404)
                return
            body = sent(file)
            kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            self.send_response(200)
            if kind.startswith("text/") or kind.endswith(("script", "json")):
                kind += "; charset=utf-8"
            self.send_header("Content-Type", kind)
            if file.suffix not in PACKED:
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "max-age=3600")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}{prefix(book)}"
        listening.shutdown()
