"""Make the small run of the present checkpoint format that stays in tests/fixtures for ever.

To be run once for every format version, by the release that introduces it; tests/test_formats.py
finds the folder by itself and never lets go of it.

    python scripts/make_format.py        # tests/fixtures/format-<version>/
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from charrnn import api, checkpoint, runs
from charrnn.config import Config

TEXT = (
    "The Time Traveller (for so it will be convenient to speak of him) was expounding a recondite "
    "matter to us. His pale grey eyes shone and twinkled, and his usually pale face was flushed "
    "and animated. The fire burnt brightly.\n"
)
OPTIONS = dict(
    model="lstm", hidden_size=6, num_layers=2, embedding_size=4, min_count=2, dropout=0.1,
    batch_size=2, seq_length=8, max_steps=20, eval_every=5, log_every=5, threads=1,
)  # fmt: skip
FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--into", type=Path, default=FIXTURES, help="folder (tests/fixtures)")
    folder = parser.parse_args().into / f"format-{checkpoint.FORMAT_VERSION}"
    if folder.exists():
        print(f"{folder} exists: what was released is never made again", file=sys.stderr)
        return 2
    text = Path(tempfile.gettempdir()) / "format-text.txt"  # its path goes into the run
    text.write_text(TEXT, encoding="utf-8")
    for _ in runs.start([str(text)], Config.from_options(OPTIONS), str(folder)).events():
        pass
    shutil.move(text, folder / "original.txt")
    (folder / "best.safetensors").unlink()
    (folder / "lock").unlink()
    lm = api.load(folder, threads=1)
    expected = {
        "sample": lm.sample("The ", length=60, seed=1)[0],
        "nats_per_char": lm.evaluate(TEXT)["nats_per_char"],
        "parameters": lm.model.params.count,
        "step": lm.metadata["progress"]["step"],
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
