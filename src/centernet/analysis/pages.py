"""Write self-contained HTML pages from the templates of this package."""

import base64
from pathlib import Path
from typing import Any

from ..utils.files import write_text

TEMPLATES = Path(__file__).with_name("templates")


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a template with ``values``, escaped for HTML, into ``path``. Raises UserError if it cannot be written."""
    from jinja2 import Environment, FileSystemLoader  # PyTorch depends on it

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    write_text(path, environment.get_template(template).render(style=style, **values) + "\n")


def inline_image(data: bytes, kind: str) -> str:
    """Return an encoded image (``png``, ``jpeg``) as a URL that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
