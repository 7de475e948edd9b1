"""Numbers of the documents that do not stand in a file under results/.

The rule: a number in README.md or docs/*.md is looked up among the numbers in files under results/,
after rounding to the digits that are printed. Percent and points may stand there as a share,
megabytes as bytes, minutes and milliseconds as seconds. In a column of ratios a number may be the
quotient of two numbers of its row. A comment `<!-- results: a b:c tables -->` names the files or
folders in which the numbers below it are looked up, up to the next comment or heading; behind a
colon stands a pattern of keys of a JSON file or of columns of a CSV file; `tables` are those that
`tools.summary` prints. Without a comment it is all of this.

Not looked up are code, links, years, numbers of papers at arXiv, parts of names ("conv_1"), whole
numbers below ten, tables that `tools.summary` prints, and what docs/not_measured.txt lists: phrases
whose numbers are no measurements, such as versions and constants.
"""

import csv
import functools
import itertools
import json
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

# By the unit behind a number or in the head of its table, what turns a value of a file into it.
SCALES = {"": 1, "(%|points)": 100, "MB": 1e-6, "GB": 1e-9, "min": 1 / 60, "ms": 1000}
NUMBER = re.compile(r"(?<![\w.,])(?<!\w-)\d+(?:,\d{3})*(?:\.\d+)?(?!\w|[.,]\d)")
# Not inside of words: no digests.
STORED = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")
SOURCE = re.compile(r"<!-- results: (.*?) -->")
# Code, the target of a link, tags and comments, addresses, numbers of papers, years.
HIDDEN = re.compile(
    r"`[^`]*`|\]\([^)]*\)|<[^>]*>|https?://\S+|(?:arXiv )?\b\d{4}\.\d{5}\b|\b(?:19|20)\d\d\b(?!\.)"
)


def unfounded(root: str | os.PathLike, printed: Sequence[str] = ()) -> list[str]:
    """Numbers of the documents that do not stand under results/, as "file:line: number".

    Parameters
    ----------
    root : path-like
        The repository.
    printed : sequence of str
        Lines of tables that are known to be right. Other lines may repeat their numbers.

    Returns
    -------
    list of str
    """
    root, printed = Path(root), frozenset(printed)
    repeated = {float(number) for line in printed for number in STORED.findall(line)}
    values = functools.cache(lambda source: _Values(root / "results", source, repeated))
    return [
        f"{where}: {number[0]} does not stand under results/ ({source})"
        for where, line, head, source in _lines(root, printed)
        for number in NUMBER.finditer(line)
        if len(number[0]) > 1 and not _is_founded(number, line, head, values(source))
    ]


def _is_founded(number, line, head, values):
    """Whether a match of `NUMBER` in a line, of a table with this head, is one of the values."""
    behind = line[number.end() :]
    if any(
        values.hold(number[0], scale)
        for unit, scale in SCALES.items()
        if re.match(rf"( to [\d.,]+)? ?{unit}", behind) or (head and re.search(unit, head))
    ):
        return True
    column = head.split("|")[line[: number.start()].count("|")] if head else ""
    quotient = "/" in column or "ratio" in column
    return quotient and _is_quotient(number[0], NUMBER.findall(line))


def _lines(root, printed):
    """Where each line of prose or of a table stands; the line, the table's head, its source."""
    allowed = root / "docs" / "not_measured.txt"
    phrases = allowed.read_text(encoding="utf-8").splitlines() if allowed.is_file() else []
    phrases = sorted((p for p in phrases if p and p[0] != "#"), key=len, reverse=True)
    for document in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        code, source, head = False, "* tables", ""
        for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("```"):
                code = not code
            elif not code and (line.startswith("#") or SOURCE.search(line)):
                source = found[1] if (found := SOURCE.search(line)) else "* tables"
            elif not code and line not in printed:
                line = HIDDEN.sub(" ", line)
                head = (head or line) if line.startswith("|") else ""
                for phrase in phrases:
                    line = line.replace(phrase, " ")
                yield f"{document.relative_to(root)}:{number}", line, head, source


def _is_quotient(text, numbers):
    """Whether a number is the quotient of two others, within the rounding of all three."""
    (low, high), *others = map(_bounds, (text, *(other for other in numbers if other != text)))
    return any(
        a[0] / b[1] <= high and low <= a[1] / b[0]
        for a, b in itertools.permutations(others, 2)
        if b[0] > 0
    )


def _bounds(text):
    half = 0.5 * 10.0 ** -len(text.partition(".")[2])
    value = float(text.replace(",", ""))
    return value - half, value + half


class _Values:
    """The numbers in some files under `results`."""

    def __init__(self, results, source, repeated):
        self._values, self._rounded = set(), {}
        for part in source.split():
            self._values |= repeated if part == "tables" else set()
            pattern, _, keys = part.partition(":")
            for path in sorted(results.glob(pattern)):
                for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                    for key, value in _entries(file):
                        if fnmatch(key, keys or "*"):
                            self._values.update(_floats(value))

    def hold(self, text, scale):
        """Whether one of them, scaled and rounded, is printed as `text`."""
        digits = len(text.partition(".")[2])
        if (digits, scale) not in self._rounded:
            # A half is rounded to even, or up.
            rounded = {
                f"{scale * value * nudge:.{digits}f}"
                for value in self._values
                for nudge in (1, 1 + 1e-12)
            }
            self._rounded[digits, scale] = rounded
        return text.replace(",", "") in self._rounded[digits, scale]


def _floats(value):
    if isinstance(value, str):
        # Thousands may be set off by commas.
        value = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", value)
        return {float(number) for number in STORED.findall(value)}
    return {abs(float(value))} if isinstance(value, int | float) else set()


def _entries(file):
    """Keys, joined by dots, and values of a file of results."""
    if file.suffix == ".json":
        yield from _leaves(json.loads(file.read_text(encoding="utf-8")))
    elif file.suffix == ".csv":
        with open(file, newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                yield from row.items()
    elif file.suffix == ".txt":
        yield "", file.read_text(encoding="utf-8")


def _leaves(value, key=""):
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for name, entry in pairs:
            # Layers and claims by their names.
            own = entry.get("layer", entry.get("id", name)) if isinstance(entry, dict) else name
            yield from _leaves(entry, f"{key}.{own}" if key else str(own))
    else:
        yield key, value
