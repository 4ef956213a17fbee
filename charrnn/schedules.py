"""Learning rate as a function of the step alone."""

from __future__ import annotations

import math

from charrnn.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, total_steps: int, epoch: int) -> float:
    """The rate of training step ``step`` (from 0) of ``total_steps``, in epoch ``epoch`` (from 0).

    All schedules rise linearly over the warm-up, which takes at most a tenth of the run. Then
    ``cosine`` (Loshchilov and Hutter 2017) and ``linear`` fall to ``lr_final`` of the peak at the
    end of the last step, ``constant`` stays, and ``step`` is char-rnn's: from the end of epoch
    ``lr_decay_after`` on, each finished epoch multiplies the rate by ``lr_decay``.
    """
    peak = config.peak_learning_rate
    warmup = min(config.warmup_steps, total_steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.lr_schedule == "constant":
        return peak
    if config.lr_schedule == "step":
        decays = max(0, epoch - max(config.lr_decay_after, 1) + 1)
        return peak * config.lr_decay**decays
    done = (step - warmup) / max(1, total_steps - warmup)
    left = (1 + math.cos(math.pi * done)) / 2 if config.lr_schedule == "cosine" else 1 - done
    return peak * (config.lr_final + (1 - config.lr_final) * left)
