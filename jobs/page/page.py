"""Renders self-contained pages: styles, script and pictures are inline, and nothing is requested.

A page of a command is a template that extends base.html.jinja and uses the macros of
pieces.html.jinja. Values of rows are escaped by the templates, and the content security policy
forbids every request and every script but the page's own.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2

from mediamill.schemas.errors import JobError

_ASSETS = Path(__file__).parent / "assets"


def render(template: Path, **values: Any) -> str:
    """Returns the page of a template file with these values.

    Files of the template's name that end in .css and .js are its further style and script.
    """
    style = _text(_ASSETS / "page.css") + _text(_beside(template, ".css"))
    script = _text(_ASSETS / "page.js") + _text(_beside(template, ".js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _ASSETS]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "percent": percent}
    return environment.get_template(template.name).render(
        style=style,
        script=script,
        style_hash=_content_hash(style),
        script_hash=_content_hash(script),
        **values,
    )


def check_place(page: Path) -> None:
    """Raises JobError when a page cannot be written there. Makes its folder."""
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with page.open("ab"):
            pass
        if not page.stat().st_size:
            page.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise JobError(
            f"{page}: the page cannot be written: found {reason}, expected a name in a folder that "
            "can be written"
        ) from error


def write(page: Path, text: str) -> None:
    """Writes a page, with its folder. Raises JobError when that is not possible."""
    check_place(page)
    page.write_text(text, encoding="utf-8", errors="replace")


def percent(share: float) -> str:
    """Formats a share: less than all never shows as 100 %, and more than none never as 0 %."""
    if share in (0.0, 1.0):
        return f"{share:.0%}".replace("%", " %")
    if share < 0.001:
        return "below 0.1 %"
    return f"{min(share, 0.999):.1%}".replace("%", " %")


def _count(number: float) -> str:
    return f"{number:,}"


def _beside(template: Path, suffix: str) -> Path:
    return template.with_name(template.name.partition(".")[0] + suffix)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _content_hash(text: str) -> str:
    """The source expression that allows exactly this text in the content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
