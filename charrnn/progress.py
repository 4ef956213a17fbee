"""How far a run is: what it must know, beside weights, moments and hidden state, to go on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from charrnn import facts

MOST_VALIDATIONS = 1000
"""That checkpoints list; they would grow without end, beyond what is read from a file."""

ADDED = {
    "gradient_steps", "gradient_clipped", "gradient_scales",
    "unvalidated", "rollbacks", "rollbacks_noted",
}  # fmt: skip
"""Fields of `Progress` that checkpoints of version 0.1 may lack."""


@dataclass
class Progress:
    """Where a run stands; checkpoints hold its fields as JSON. Losses are nats per character."""

    step: int = 0
    nats_per_char: float | None = None
    """Mean training loss of the last logged interval."""
    val_nats_per_char: float | None = None
    best_val_nats_per_char: float | None = None
    best_step: int | None = None
    validations_since_best: int = 0
    log_steps: int = 0
    log_nats: float = 0.0
    log_clipped: int = 0
    gradient_steps: int = 0
    gradient_clipped: int = 0
    gradient_scales: float = 0.0
    """Sums since the last line on the gradient: steps, those clipped, the factors of clipping."""
    total_steps: int | None = None
    """What the newest start event in the metrics says."""
    finished: str | None = None
    """Why it ended: "finished" or "patience"."""
    validations: list[list[Any]] = field(default_factory=list)
    """[step, training loss, validation loss]. When there are more than `MOST_VALIDATIONS`, every
    other one is left out: the first and the newest always stand there."""
    unvalidated: bool = False
    """Whether what is due after this step has been put off, because its validation was stopped."""
    rollbacks: list[tuple[int, int, str]] = field(default_factory=list)
    """[step that diverged, step gone back to, what was not finite] of each."""
    rollbacks_noted: int = 0
    """How many of these are in the metrics."""

    @classmethod
    def from_json(cls, said: Any, what: str) -> Progress:
        """What a checkpoint said; InputError if it has not this shape, and ``what`` says whose."""
        shape = get_type_hints(cls)
        known = {f.name for f in dataclasses.fields(cls)}
        facts.check(said, {n: shape[n] for n in ADDED}, what, lacking=True)
        facts.check(said, {**{n: shape[n] for n in known - ADDED}, **facts.PROGRESS}, what)
        return cls(**{name: said[name] for name in known & set(said)})

    @property
    def learning_rate_scale(self) -> float:
        """What the rollbacks have left of the learning rate."""
        return 0.5 ** len(self.rollbacks)

    @property
    def validated_step(self) -> int | None:
        """The step after which the newest validation was."""
        return self.validations[-1][0] if self.validations else None

    def stepped(self, nats_per_char: float, clip_scale: float) -> None:
        """A step has been made, with this loss and this factor of clipping."""
        clipped = clip_scale < 1
        self.step += 1
        self.log_steps += 1
        self.log_nats += nats_per_char
        self.log_clipped += clipped
        self.gradient_steps += 1
        self.gradient_clipped += clipped
        self.gradient_scales += clip_scale

    def end_log_interval(self) -> dict[str, float]:
        """Mean loss and share of clipped steps of the interval that ends here."""
        self.nats_per_char = self.log_nats / self.log_steps
        means = {
            "nats_per_char": self.nats_per_char,
            "clipped": self.log_clipped / self.log_steps,
        }
        self.log_steps, self.log_nats, self.log_clipped = 0, 0.0, 0
        return means

    def end_gradient_interval(self) -> dict[str, float]:
        """Share of clipped steps and mean factor of clipping of the interval that ends here."""
        means = {
            "clipped": self.gradient_clipped / self.gradient_steps,
            "clip_scale": self.gradient_scales / self.gradient_steps,
        }
        self.gradient_steps, self.gradient_clipped, self.gradient_scales = 0, 0, 0.0
        return means

    def validated(self, nats_per_char: float, patience: int) -> bool:
        """Whether this validation is the best yet; after ``patience`` others the run is finished.

        A loss that is not finite is kept here like any other: the run ends, or goes back, before
        anything is saved.
        """
        self.val_nats_per_char = nats_per_char
        best = math.isfinite(nats_per_char) and (
            self.best_val_nats_per_char is None or nats_per_char < self.best_val_nats_per_char
        )
        if best:
            self.best_val_nats_per_char, self.best_step = nats_per_char, self.step
            self.validations_since_best = 0
        else:
            self.validations_since_best += 1
            if patience and self.validations_since_best >= patience:
                self.finished = "patience"
        self.validations.append([self.step, self.nats_per_char, nats_per_char])
        if len(self.validations) > MOST_VALIDATIONS:
            self.validations = self.validations[::2]
        return best

    def went_back(self, before: Progress, diverged_step: int, what: str) -> None:
        """This is what the run went back to from ``before``, where ``what`` was not finite.

        The best model so far stays the best.
        """
        self.finished = None
        self.rollbacks = [*before.rollbacks, (diverged_step, self.step, what)]
        if before.best_step != self.best_step:
            self.best_val_nats_per_char = before.best_val_nats_per_char
            self.best_step = before.best_step
            self.validations_since_best = 0
