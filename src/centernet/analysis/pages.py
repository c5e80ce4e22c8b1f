"""Write self-contained HTML pages from the templates of this package."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from ..utils.files import write_text

TEMPLATES = Path(__file__).with_name("templates")


def write_page(path: Path, template: str, curves: dict[str, Any] | None = None, **values: Any) -> None:
    """Render a template with ``values``, escaped for HTML, into ``path``.

    The page needs nothing else: style, scripts and images are inside. Its content security policy forbids all requests
    and all other scripts.

    Args:
        path: the file.
        template: name of the template.
        curves: what ``page_plots.py`` returns, for the template's ``show(curves)``.
        values: everything else that the template uses.

    Raises:
        UserError: the page cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader  # PyTorch depends on it

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    interactive = curves is not None and "library" in curves
    scripts = [_read(name) for name in ("page.js", *(["curves.js"] if interactive else []))]
    digests = [script_digest(script.encode()) for script in scripts]
    if curves is not None and interactive:
        digests.append(curves["digest"])
    frame = {"style": _read("style.css"), "scripts": scripts, "policy": _policy(digests)}
    write_text(path, environment.get_template(template).render(**frame, curves=curves, **values) + "\n")


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def script_digest(script: bytes) -> str:
    """Return the SHA-256 of a script, in base64, by which a policy allows it."""
    return base64.b64encode(hashlib.sha256(script).digest()).decode()


def _policy(digests: list[str]) -> str:
    """Return a content security policy that allows these scripts, and images and styles within the page."""
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )


def inline_image(data: bytes, kind: str) -> str:
    """Return an encoded image (``png``, ``jpeg``) as a URL that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
