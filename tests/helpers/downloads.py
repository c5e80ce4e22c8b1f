"""A local server for the download scripts, and the programs that they need."""

import re
import shutil
from http.server import BaseHTTPRequestHandler

DOWNLOADERS = [name for name in ("curl", "wget") if shutil.which(name)]
CLOSED = "http://127.0.0.1:9"  # nothing listens on the discard port


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.files`` with ranges, and follows ``server.cuts`` and ``server.ranges``."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        name = self.path.lstrip("/")
        if name not in server.files:
            self.send_error(404)
            return
        data = server.files[name]
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if match and server.ranges:
            start = int(match[1])
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cuts = server.cuts.get(name)
        length = cuts.pop(0) if cuts else len(data)
        self.wfile.write(data[start : start + length])
        self.close_connection = True

    def log_message(self, *_):
        pass


def only(folder, *programs):
    """A folder for PATH that has these programs and what the script takes for granted, nothing else."""
    folder.mkdir()
    for program in ("bash", "cat", "dirname", "mkdir", "mv", "rm", "rmdir", "sleep", "tr", "wc", *programs):
        (folder / program).symlink_to(shutil.which(program))
    return str(folder)


def error_line(result, status=1):
    """The one line of a failed run on standard error."""
    assert result.returncode == status, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
