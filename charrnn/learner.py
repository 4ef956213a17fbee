"""What a training step computes: forward and backward through a window, and the update.

Between steps it keeps what the next one needs: weights, the optimizer's moments, and the hidden
state that goes from window to window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from charrnn import probe, recompute
from charrnn.api import check_types, restore
from charrnn.burst import Burst
from charrnn.checkpoint import Checkpoint
from charrnn.config import Config
from charrnn.errors import InputError
from charrnn.kernels import jit
from charrnn.kernels.program import code
from charrnn.model import Model
from charrnn.optim import Clipping, Optimizer
from charrnn.passes import Inputs, Pass, by_units
from charrnn.sliding import Sliding
from charrnn.truncation import Ids, Piece, Plan


class Learner:
    """A model that learns from the pieces of a plan.

    Attributes
    ----------
    model, optimizer : whose weights and moments it changes
    window : the pass for the longest window so far; that of a piece may be a shorter one of it
    norms : what a step does to every tensor, for ``--log-gradients``; else None
    """

    def __init__(self, model: Model, config: Config, plan: Plan) -> None:
        self.model, self._config, self._batch_size = model, config, plan.batch_size
        self.optimizer = Optimizer(config.train, model.params, model.grads, model.team)
        self.window = self._new_window(plan.longest)
        self._last, self._slot = self.window, 0  # where the state is that is carried on
        self.norms = probe.Norms(model) if config.train.log_gradients else None
        self._reaches: dict[Pass, probe.Reach] = {}
        self._bursts: dict[Pass, Burst] = {}
        self._repeats = len(plan.alike(0, 2)[0]) > 1

    def _new_window(self, T: int) -> Inputs:
        """A pass for windows of at most T steps."""
        data, B, dropout = self._config.data, self._batch_size, self._config.model.dropout
        if data.bptt == "sliding":
            k1, k2 = data.look_back
            return Sliding(self.model, T, B, dropout, k1, min(k2, T + k1))  # further is no text
        return recompute.train_pass(self.model, T, B, dropout, data.recompute)

    def by_units(self, threads: int) -> bool | None:
        """Whether so many would share units by themselves, see `charrnn.passes.by_units`."""
        return by_units(self.model, self._batch_size, threads)

    # -- a step ---------------------------------------------------------------------------------

    def window_of(self, piece: Piece) -> Inputs:
        """The pass for a piece, with the state before it."""
        T = len(piece.ids)
        if len(self.window.ids) < T:  # the plan's longest was but an expectation
            self.window = self._new_window(2 * T)
        window = self.window.of_length(T, len(piece.targets))
        if piece.carried:
            window.carry(self._last, self._slot)
        else:
            window.set_state(None)
        return window

    def reach(self, piece: Piece, window: Inputs, step: int) -> dict[str, Any]:
        """The `probe.Reach` of the first characters of the piece that have losses."""
        new, model = len(piece.targets), self.model
        T = min(new, probe.STEPS)
        run = model.train_pass(T, self._batch_size, self._config.model.dropout)
        before, ids = piece.ids[:-new], piece.ids[-new:]
        if len(before):
            run.set_state(model.advance(before, window.state(0)))
        elif run is not window:
            run.carry(window, 0)
        run.set_dropout_key(self._config.train.seed, step)
        if run not in self._reaches:
            while len(self._reaches) >= probe.STEPS:  # as many lengths as there are
                del self._reaches[next(iter(self._reaches))]
            self._reaches[run] = probe.Reach(run)
        return self._reaches[run].measure(ids[:T], piece.targets[:T])

    def gradients(self, piece: Piece, window: Inputs, step: int) -> tuple[float, Clipping]:
        """Forward and backward; the window's loss and the gradient's measure.

        ``step``, the number of those before, chooses what drops out.
        """
        window.load(piece.ids, piece.targets, piece.weight, piece.scored)
        if piece.ways is not None:
            window.ways[:] = piece.ways
        self._last, self._slot = window, piece.shift
        window.set_dropout_key(self._config.train.seed, step)
        loss = window.run_gradients()
        return loss, self.optimizer.clip(window.parts)

    def steps(
        self, window: Inputs, ids: Ids, targets: Ids, step: int, rates: Sequence[float]
    ) -> list[tuple[float, Clipping]]:
        """Make whole steps, updates included, in one go: what `gradients` returns, of each.

        It may be fewer than are asked for, or none where steps have to be made one by one. Where
        something is not finite, the weights are of no more use.

        Parameters
        ----------
        window : that of the first step's piece, see `window_of`
        ids, targets : (n, T, B), see `Plan.alike`
        step : number of those before
        rates : learning rate of each
        """
        if not isinstance(window, Pass) or len(ids) < 2:
            return []
        burst, seed = self.burst(window), self._config.train.seed
        n = min(len(ids), burst.most)
        numbers = [self.optimizer.numbers_of(rates[i], step + 1 + i, 1.0) for i in range(n)]
        keys = [window.dropout_keys(seed, step + i) for i in range(n)]
        self._last, self._slot = window, len(window.ids)
        found = burst.run(ids[:n], targets[:n], keys, numbers)
        self.model.changed()
        return found

    def burst(self, window: Pass) -> Burst:
        """What makes steps through windows like this one in one go."""
        if window not in self._bursts:
            self._bursts[window] = Burst(window, self.optimizer)
        return self._bursts[window]

    def update(self, rate: float, step: int, clipping: Clipping) -> None:
        """Change the weights by the gradient; ``step`` counts from 1."""
        self.optimizer.step(rate, step, clipping, self._last.parts)
        self.model.changed()

    def kernels(self) -> Iterable[jit.Code]:
        """The code that a step runs, each once."""
        window, optimizer = self.window, self.optimizer
        phases = [
            *window.phases(), *optimizer.clip_phases(window.parts),
            *optimizer.step_phases(window.parts),
        ]  # fmt: skip
        if self._repeats and isinstance(window, Pass):
            phases += self.burst(window).phases()
        calls = [call for phase in phases for item in phase for call in item]
        return dict.fromkeys(part for call in calls for part in code(call))

    # -- what is kept ---------------------------------------------------------------------------

    def finite(self) -> bool:
        """Whether weights, moments and hidden state are: no checkpoint may hold anything else."""
        arrays = [params.flat for params in (self.model.params, *self.optimizer.moments.values())]
        arrays += [a for layer in self._last.states_at(self._slot) for a in layer.values()]
        return all(bool(np.isfinite(array).all()) for array in arrays)

    def tensors(self) -> dict[str, np.ndarray]:
        """Weights, moments and hidden state under the names that checkpoints have."""
        model = self.model
        tensors = dict(model.to_torch(model.params))
        for moment, params in self.optimizer.moments.items():
            for tensor, array in model.to_torch(params).items():
                tensors[f"optimizer.{moment}.{tensor}"] = array
        states = self._last.state(self._slot)
        return tensors | {f"state.{s}": array for s, array in states.items()}

    def restore(self, source: Checkpoint) -> None:
        """Take these from a checkpoint; InputError if it lacks one or has it in another shape."""
        restore(self.model, self.model.params, source, "")
        for moment, params in self.optimizer.moments.items():
            restore(self.model, params, source, f"optimizer.{moment}.")
        squares = self.optimizer.squares
        if squares is not None and squares.flat.min() < 0:
            raise InputError(
                f"{source.path} is damaged: a mean of squares is negative; use another one"
            )
        check_types(self.model, source, [f"state.{s}" for s in self.model.cell.states])
        try:
            self.window.set_state({s: source.tensors[f"state.{s}"] for s in self.model.cell.states})
        except (KeyError, InputError) as error:
            fault = f"it lacks the tensor {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{source.path} is damaged: {fault}; use another one") from error
        self._last, self._slot = self.window, 0

    def forget(self) -> None:
        """Moments and hidden state are zero again, as before the first step."""
        for params in self.optimizer.moments.values():
            params.flat[:] = 0
        self.window.set_state(None)
        self._last, self._slot = self.window, 0
