"""docs/gradients.md says what scripts/lesson.py makes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import lesson  # noqa: E402
from lesson_base import SECTIONS, Lesson  # noqa: E402

TEXT = lesson.DOCUMENT.read_text(encoding="utf-8")
QUICK = [name for name, section in SECTIONS.items() if section.quick]


def test_every_marker_has_a_section_and_every_section_a_marker():
    assert sorted(re.findall(r"<!-- lesson: (.*?) -->", TEXT)) == sorted(SECTIONS)
    assert sorted(lesson.written()) == sorted(SECTIONS)  # and every marker an end
    assert all(text.strip() for text in lesson.written().values())


@pytest.mark.parametrize("name", QUICK)
def test_quick_sections_say_what_stands_in_the_document(name, tmp_path):
    assert SECTIONS[name].make(Lesson(tmp_path, pictures=False)) == lesson.written()[name]
    assert not list(tmp_path.iterdir())


def test_pictures_are_there_and_small():
    names = re.findall(r"!\[[^]]+\]\((.+?)\)", TEXT)
    assert len(names) == len(set(names)) > 5
    folder = lesson.DOCUMENT.parent
    for name in names:
        assert 0 < (folder / name).stat().st_size < 150_000
    assert {folder / name for name in names} == set((folder / "images").iterdir())


def test_a_section_is_replaced_between_its_markers_alone(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- lesson: x -->\nold\n<!-- end -->\nb\n<!-- lesson: y -->\n<!-- end -->\n"
    )
    monkeypatch.setattr(lesson, "DOCUMENT", page)
    lesson.replace({"x": "new \\1\n"})
    assert page.read_text() == (
        "a\n<!-- lesson: x -->\nnew \\1\n<!-- end -->\nb\n<!-- lesson: y -->\n<!-- end -->\n"
    )
    assert lesson.written() == {"x": "new \\1\n", "y": ""}


def test_pictures_are_the_same_bytes_every_time(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import lesson_base

    found = []
    for name in "ab":
        monkeypatch.setattr(lesson_base, "ROOT", tmp_path / name)
        (tmp_path / name / "docs").mkdir(parents=True)
        SECTIONS["segments"].make(Lesson(tmp_path, pictures=True))
        found.append((tmp_path / name / "docs" / "images" / "segments.svg").read_bytes())
    assert found[0] == found[1]


def test_commands_in_the_text_are_commands():
    """Options of every quoted command line exist."""
    from click.testing import CliRunner

    from charrnn.cli import cli

    joined = TEXT.replace("\n    ", " ")
    lines = re.findall(r"^\$ charrnn (\w+) (.*)$", joined, re.MULTILINE)
    assert len(lines) > 5
    for command, rest in lines:
        shown = CliRunner().invoke(cli, [command, "--help"]).output
        for option in re.findall(r"(?<=\s)--[a-z-]+", f" {rest}"):
            assert option in shown, f"{command} has no {option}"
