"""Every number and picture of docs/gradients.md, made anew.

    python scripts/lesson.py                      all sections, printed
    python scripts/lesson.py recursion food       some of them
    python scripts/lesson.py --write              all, and put into docs/gradients.md, docs/images

A section stands in the document between `<!-- lesson: NAME -->` and `<!-- end -->`. Models are
trained by the sections that need them and kept in the folder `--cache`. Pictures need the extra
`plot`.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

import lesson_quick  # noqa: F401  (fills SECTIONS)
import lesson_trained  # noqa: F401
from lesson_base import SECTIONS, Lesson
from rows import ROOT, versions

DOCUMENT = ROOT / "docs" / "gradients.md"
MARKED = re.compile(r"(<!-- lesson: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def written() -> dict[str, str]:
    """Section name -> what the document says now, in the document's order."""
    found = MARKED.finditer(DOCUMENT.read_text(encoding="utf-8"))
    return {match[2]: match[3] for match in found}


def replace(sections: dict[str, str]) -> None:
    """Put sections into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")

    def new(match: re.Match[str]) -> str:
        return match[1] + sections.get(match[2], match[3]) + match[4]

    DOCUMENT.write_text(MARKED.sub(new, text), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--write", action="store_true", help="into the document, pictures too")
    parser.add_argument("--cache", type=Path, help="folder for models; default: a temporary one")
    args = parser.parse_args()
    unknown = set(args.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        lesson = Lesson(args.cache or Path(folder), pictures=args.write)
        for name in args.sections or SECTIONS:
            begin = time.perf_counter()
            text = SECTIONS[name].make(lesson)
            seconds = time.perf_counter() - begin
            print(f"{text}\n{name}: {seconds:.1f} s", flush=True)
            if args.write:
                replace({name: text})
    print(versions(), file=sys.stderr)


if __name__ == "__main__":
    main()
