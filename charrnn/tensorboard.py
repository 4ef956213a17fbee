"""Event files that TensorBoard reads, from the trainer's events: ``train --tensorboard``.

They go into the run's folder, so that ``tensorboard --logdir runs`` names runs as they are called.
The package ``tensorboard`` (the extra of that name) is imported when it is needed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from charrnn.errors import InputError, SaveError

Event = dict[str, Any]

SCALARS = {
    "train": {
        "nats_per_char/train": "nats_per_char",
        "train/grad_norm": "grad_norm",
        "train/clipped_share": "clipped",
        "train/learning_rate": "learning_rate",
        "train/epoch": "epoch",
    },
    "validation": {
        "nats_per_char/validation": "val_nats_per_char",
        "nats_per_char/best_validation": "best_val_nats_per_char",
    },
    "gradients": {
        "gradients/clipped_share": "clipped",
        "gradients/clip_scale": "clip_scale",
        "gradients/clipped_elements_share": "clipped_elements",
    },
    "end": {"nats_per_char/test": "test_nats_per_char"},
}
"""Event -> tag -> key. The first part of a tag, under which TensorBoard gathers charts, is a unit
where there is one; losses are there in bits, too."""

NORMS = ("gradient_norms", "update_norms", "weight_norms")


def check() -> None:
    """Refuse to begin without the package."""
    try:
        import tensorboard.compat.proto.event_pb2  # noqa: F401
    except ImportError:
        raise InputError(
            "--tensorboard needs tensorboard: pip install 'charrnn[tensorboard]', "
            "or leave --tensorboard out"
        ) from None


def written(events: Iterable[Event], folder: Path) -> Iterator[Event]:
    """Pass ``events`` on, and write an event file of them into ``folder``.

    A resumed run writes another file, which tells TensorBoard to drop what earlier ones have of the
    steps that are made again. If a file can no longer be written, the run goes on, with a note.

    Raises
    ------
    SaveError : the file cannot be made
    """
    with _opened(folder) as file:
        writer: _Writer | None = _Writer(file)
        for event in events:
            yield event
            if writer is not None:
                try:
                    writer.take(event)
                except OSError as error:
                    writer, text = None, f"TensorBoard's file is not written any more: {error}"
                    yield {"event": "note", "step": event["step"], "text": text}


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[BinaryIO]:
    # TensorBoard takes the files of a folder in the order of their names.
    path = folder / f"events.out.tfevents.{time.time():017.6f}"
    try:
        file = open(path, "xb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise SaveError(f"could not write {path}: {error.strerror or error}") from error
    with file:
        yield file


class _Writer:
    """Writes an event file, every event whole."""

    def __init__(self, file: BinaryIO) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._records, self._event = RecordWriter(file), event_pb2
        self._summary, self._tensor, self._types = summary_pb2.Summary, tensor_pb2, types_pb2
        self._add(file_version="brain.Event:2")

    def take(self, event: Event) -> None:
        """Write what there is of an event of `charrnn.runlog`."""
        kind, step = event["event"], event["step"]
        if kind == "start":
            log = self._event.SessionLog(status=self._event.SessionLog.START)
            self._add(step=step + 1, session_log=log)
        elif kind == "sample":
            self._add(step=step, summary=self._text("sample", event["text"]))
        elif kind in SCALARS:
            scalars = _scalars(event)
            if scalars:
                values = [self._summary.Value(tag=t, simple_value=x) for t, x in scalars.items()]
                self._add(step=step, summary=self._summary(value=values))

    def _text(self, tag: str, text: str) -> Any:
        """A text as it is: four spaces make a line of it in Markdown."""
        shown = "\n".join("    " + line for line in text.split("\n"))
        tensor = self._tensor.TensorProto(
            dtype=self._types.DT_STRING, string_val=[shown.encode("utf-8", "replace")]
        )
        tensor.tensor_shape.dim.add().size = 1
        value = self._summary.Value(tag=tag, tensor=tensor)
        value.metadata.plugin_data.plugin_name = "text"
        return self._summary(value=[value])

    def _add(self, **fields: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())


def _scalars(event: Event) -> dict[str, float]:
    """Tag -> value of all numbers that an event has."""
    kind = event["event"]
    found = {tag: event[key] for tag, key in SCALARS[kind].items()}
    for tag, nats in list(found.items()):
        if tag.startswith("nats_per_char/") and nats is not None:
            found[tag.replace("nats", "bits", 1)] = nats / math.log(2)
    if kind == "train":
        found["chars_per_second/train"] = event["time"]["chars_per_second"]
    if kind == "gradients":
        for norms in NORMS:
            found |= {f"{norms}/{name}": norm for name, norm in event[norms].items()}
        if event["reach"] is not None:
            found["reach_chars/first_below_1_percent"] = event["reach"]["chars"]
    return {tag: value for tag, value in found.items() if value is not None}
