"""A page of HTML that needs no other file: text, figures with captions, and tables."""

import base64
import io
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

# isort: split
import matplotlib.pyplot as plt

TEMPLATES = Path(__file__).resolve().parent / "templates"
# Title and what to see, of the figures of a network.
CAPTIONS = {
    name: (caption["title"], caption["see"])
    for name, caption in tomllib.loads(
        (TEMPLATES / "captions.toml").read_text(encoding="utf-8")
    ).items()
}


def png(figure: Figure) -> bytes:
    """The bytes of a matplotlib figure as PNG; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def render(
    title: str,
    lines: Sequence[str],
    figures: Iterable[tuple[str, str, bytes]],
    tables: Iterable[tuple[str, str, str, list[dict[str, str]]]],
    opened: int = 2,
) -> str:
    """Render templates/page.html.

    Parameters
    ----------
    title : str
    lines : sequence of str
        Paragraphs below the title.
    figures : iterable of (str, str, bytes)
        Title, caption and PNG of each figure.
    tables : iterable of (str, str, str, list of dict)
        Title, remark, what failed (remark and failure may be empty), and rows: dicts of column to
        cell.
    opened : int
        So many tables are unfolded and stand above the figures; the others can be unfolded.

    Returns
    -------
    str
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [(name, caption, base64.b64encode(image).decode()) for name, caption, image in figures]
    return environment.get_template("page.html").render(
        title=title, lines=lines, figures=shown, tables=list(tables), opened=opened
    )
