"""PyTorch's sides of the benchmark beyond `charrnn.peer.Torch`. Of ours they import nothing large,
so that their memory is that of PyTorch.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import rows  # noqa: F401  first: it says where charrnn is

from charrnn.peer import Torch


class Peer(Torch):
    """PyTorch's own recurrent modules."""

    def gradients(self) -> tuple[float, dict[str, Any]]:
        """Loss and gradients of the task's window from a zero state."""
        ids, targets = map(self.torch.from_numpy, self.task.window())
        self.optimizer.zero_grad(set_to_none=True)
        loss, _ = self.loss(ids, targets, self.zero_state())
        loss.backward()
        return loss.item(), {k: p.grad.numpy() for k, p in self.net.named_parameters()}

    def memory(self) -> int:
        """Most resident memory of this process so far, in bytes."""
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024


class Unrolled(Peer):
    """The same network with hand-written cells in a loop over time; `Compiled` compiles it."""

    def recurrent(self, ids: Any, state: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        F, ends = self.torch.nn.functional, []
        c, x = self.config.model, self.inputs(ids)
        for layer in range(c.num_layers):
            Wx, Wh, bx, bh = (
                getattr(self.net["rnn"], f"{name}_l{layer}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            b = bx if c.model == "gru" else bx + bh
            s, outputs = tuple(part[layer] for part in state), []
            for projected in F.linear(x, Wx, b).unbind(0):  # x[t] would cost T gradients of all x
                s = self.cell(projected, s, Wh, bh)
                outputs.append(s[0])
            x = self.torch.stack(outputs)
            ends.append(s)
        return x, tuple(self.torch.stack(part) for part in zip(*ends, strict=True))

    def cell(self, x: Any, state: tuple[Any, ...], Wh: Any, bh: Any) -> tuple[Any, ...]:
        """The state after one character; x has its projection and, but for gru, both biases."""
        addmm, h, model = self.torch.addmm, state[0], self.config.model.model
        if model == "rnn":
            return (addmm(x, h, Wh.t()).tanh(),)
        if model == "lstm":
            i, f, g, o = addmm(x, h, Wh.t()).chunk(4, 1)
            c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c
        (xr, xz, xn), (hr, hz, hn) = x.chunk(3, 1), addmm(bh, h, Wh.t()).chunk(3, 1)
        z = (xz + hz).sigmoid()
        n = (xn + (xr + hr).sigmoid() * hn).tanh()
        return (n + z * (h - n),)


class Compiled(Unrolled):
    """`Unrolled` under `torch.compile`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.loss = self.torch.compile(self.loss, dynamic=False)  # type: ignore[method-assign]

    def compile(self) -> float:
        """The first step; its seconds."""
        began = time.perf_counter()
        self.step()
        return time.perf_counter() - began
