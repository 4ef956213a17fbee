"""The HTML page: what a parser and what a reader finds in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charrnn import page
from charrnn.errors import InputError
from charrnn.page import Cell, Section, percent

VOID = {"meta", "br", "!doctype"}


class Reader(HTMLParser):
    """Takes a page apart; every tag has to be closed in its turn."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.letters: list[tuple[str, str, str]] = []  # class, tip, text
        self.text: dict[str, str] = {}
        self.attributes: list[tuple[str, str, Any]] = []
        self.feed(content.decode())
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "i" and "pre" in self.open:
            found = dict(attrs)
            self.letters.append((found.get("class") or "", found["data-t"] or "", ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.text[tag] = self.text.get(tag, "") + data
        if self.open[-1:] == ["i"] and "pre" in self.open:
            shade, tip, text = self.letters[-1]
            self.letters[-1] = shade, tip, text + data


CELLS = [
    Cell("<", 0.0, "'<'  0 bits"),
    Cell("&", 0.04, '"\'" & <b>'),
    Cell("\u21b5\n", 1.0, "'\\n'"),
    Cell("é", np.nan, ""),
    Cell("日", 0.5, "two\nlines"),
]


def test_text_is_escaped_and_shaded() -> None:
    content = page.page("<a> & b", ["1 < 2"], [], [Section("<h>", "0", "8 bits", CELLS)])
    found = Reader(content)
    assert found.text["title"] == found.text["h1"] == "<a> & b"
    assert (found.text["p"].startswith("1 < 2"), found.text["h2"]) == (True, "<h>")
    assert found.text["pre"] == "<&\u21b5\né日"
    assert found.letters == [
        ("", "'<'  0 bits", "<"),
        ("", '"\'" & <b>', "&"),
        ("a10 e", "'\\n'", "\u21b5"),
        ("", "", "é"),
        ("a5", "two\nlines", "日"),
    ]


def test_signed_levels_have_two_colours() -> None:
    cells = [Cell("x", level, "") for level in (-1, -0.31, 0, 0.04, 0.96)]
    found = Reader(page.page("", [], [], [Section("", "-1", "1", cells, signed=True)]))
    assert [shade for shade, _, _ in found.letters] == ["b10", "b3", "", "", "c10"]
    content = page.page("", [], [], [Section("", "-1", "1", cells, signed=True)]).decode()
    used = set(re.findall(r'class="([abc]\d+)', content))
    assert all(f".{shade} {{" in content for shade in used) and len(used) == 20


def test_nothing_is_loaded_and_nothing_runs() -> None:
    content = page.page("t", [], [["a", "b"], ["1", ("x", "<y>", "z")]], [])
    found = Reader(content)
    assert b"<mark>&lt;y&gt;</mark>" in content and found.text["td"] == "1x<y>z"
    assert not {tag for tag, _, _ in found.attributes} & {"script", "link", "img", "iframe"}
    assert not {name for _, name, _ in found.attributes if name.startswith(("on", "src", "href"))}
    assert b"://" not in content and b"url(" not in content and b"@import" not in content
    assert b"default-src 'none'" in content and b"prefers-color-scheme: dark" in content


def test_what_is_no_unicode_does_no_harm() -> None:
    assert b"<title>a?b</title>" in page.page("a\udcffb", [], [], [])


def test_percent() -> None:
    want = ["0 %", "< 0.01 %", "0.02 %", "4.5 %", "45 %", "100 %", "100 %"]
    assert [percent(x) for x in (0, 1e-9, 2e-4, 0.045, 0.45, 0.997, 1)] == want


@pytest.mark.parametrize(
    "name, length, message",
    [
        ("page.txt", 5, "--html is .*page.txt': it must end in .html or .htm"),
        ("no/page.html", 5, "--html .*: there is no such folder, make it first"),
        ("page.HTM", 1_000_001, "--length is 1,000,001: a page has 1,000,000 characters at the"),
    ],
)
def test_refusals(tmp_path: Path, name: str, length: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        page.check(tmp_path / name, length)
