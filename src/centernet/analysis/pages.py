"""Write self-contained HTML pages from the templates of this package."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from ..utils.files import write_text

TEMPLATES = Path(__file__).with_name("templates")


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a template with ``values``, escaped for HTML, into ``path``.

    The page needs nothing else: style, script and images are inside. Its content security policy forbids all requests
    and all other scripts.

    Raises:
        UserError: the page cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader  # PyTorch depends on it

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    frame = {"style": style, "script": script, "policy": _policy(script)}
    write_text(path, environment.get_template(template).render(**frame, **values) + "\n")


def _policy(*scripts: str) -> str:
    """Return a content security policy that allows these scripts, and images and styles within the page."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )


def inline_image(data: bytes, kind: str) -> str:
    """Return an encoded image (``png``, ``jpeg``) as a URL that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
