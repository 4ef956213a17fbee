"""Pictures of measurements, PNG or SVG, by matplotlib: the extra ``plot``, imported when needed.

Every function draws one measurement on an empty figure; `save` makes the figure and its file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from charrnn import atomic
from charrnn.errors import InputError

if TYPE_CHECKING:  # it compiles, which pictures of other things do without
    from charrnn.gradients import Clipping, Components, Reach, Why

FORMATS = (".png", ".svg")
FLOOR = 1e-12
"""What is smaller is not drawn: nothing can be learned from it."""


def _drawn(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values) & (values >= FLOOR), values, np.nan)


def check(path: str | Path, option: str = "--plot") -> None:
    """Refuse a picture that could not be made, before anything is measured for it.

    ``option`` named its file.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise InputError(f"{option} is {str(path)!r}: it must end in {' or '.join(FORMATS)}")
    atomic.check(path, option)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        instead = ", or leave --plot out" if option == "--plot" else ""  # else it is needed
        raise InputError(
            f"{option} needs matplotlib: pip install 'charrnn[plot]'{instead}"
        ) from None


def save(draw: Callable[[Any], None], path: str | Path, option: str = "--plot") -> None:
    """Make a picture and write its file, replacing it."""
    check(path, option)
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    draw(figure)
    data = io.BytesIO()
    # Nothing of the clock or of chance goes into the file: the same numbers give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "charrnn"}):
        kind = Path(path).suffix.lower()[1:]
        figure.savefig(data, format=kind, metadata={"Date": None} if kind == "svg" else None)
    atomic.write(path, data.getvalue())


def _median_lines(axes: Any, reaches: Mapping[str, Reach], band: bool) -> None:
    for name, reach in reaches.items():
        for curve in reach.curves:
            top = curve.layer == reach.curves[-1].layer
            if len(reaches) > 1 and not (top and curve.path == "h"):
                continue
            label = name if len(reaches) > 1 else f"layer {curve.layer + 1}, {curve.path}"
            lags = np.arange(len(curve.median))
            style = "--" if curve.path.endswith("alone") else "-"
            (line,) = axes.plot(lags, _drawn(curve.median), style, label=label)
            if band and top and curve.path == "h":
                for low, high in ((0, 4), (1, 3)):
                    axes.fill_between(
                        lags, *_drawn(curve.quantiles[[low, high]]),
                        color=line.get_color(), alpha=0.15, linewidth=0,
                    )  # fmt: skip
    for share in (0.01, 0.001):
        axes.axhline(share, color="grey", linewidth=0.6, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlabel("k, characters before the loss")
    axes.set_ylabel("|dL(l)/dh(l-k)| as a share of k = 0")
    axes.legend(fontsize="small")


def reach(figure: Any, reaches: Mapping[str, Reach]) -> None:
    """Medians over the positions; of a single model every path, and quantiles as bands."""
    axes = figure.add_subplot()
    _median_lines(axes, reaches, band=len(reaches) == 1)
    what = "bands 25 to 75 % and 10 to 90 %" if len(reaches) == 1 else "top layer"
    axes.set_title(f"How far back a loss is heard (median; {what})")


def _jacobians(axes: Any, measured: Why) -> None:
    k = 1 + np.arange(measured.products.shape[1])
    lines = {
        "norm of the product": measured.products,
        "bound: product of the norms": measured.step_bounds,
        "bound: slope, sigma max": measured.sigma_bounds,
    }
    for label, values in lines.items():
        if values is not None:
            axes.plot(k, _drawn(np.median(values, axis=0)), label=label)
    axes.set_yscale("log")
    axes.set_xlabel("k, steps multiplied")
    axes.set_title(f"Jacobians of layer {measured.layer + 1}")
    axes.legend(fontsize="small")


def overview(figure: Any, measured: Reach, reasons: Why) -> None:
    """Reach on the left, products of Jacobians on the right."""
    left, right = figure.subplots(1, 2)
    _median_lines(left, {"": measured}, band=True)
    left.set_title("How far back a loss is heard")
    _jacobians(right, reasons)


def why(figure: Any, measured: Why) -> None:
    """Singular values of every gate's block, memory of the units, products of Jacobians."""
    panels = list(figure.subplots(1, 2 if measured.memory_chars is None else 3))
    for gate in measured.gates:
        panels[0].plot(1 + np.arange(len(gate.singular_values)), gate.singular_values,
                       label=f"{gate.name}, radius {gate.spectral_radius:.2f}")  # fmt: skip
    panels[0].axhline(1, color="grey", linewidth=0.6, linestyle=":")
    panels[0].set_title("Singular values of Wh")
    panels[0].set_xlabel("number")
    panels[0].legend(fontsize="small")
    _jacobians(panels[1], measured)
    if measured.memory_chars is not None:
        chars = np.clip(measured.memory_chars, 0.1, 1e4)
        panels[2].hist(chars, bins=np.geomspace(chars.min() * 0.99, chars.max() * 1.01, 30))
        panels[2].set_xscale("log")
        panels[2].set_title("Memory of the units")
        panels[2].set_xlabel("characters")
        panels[2].set_ylabel("units")


def components(figure: Any, measured: Components, name: str) -> None:
    """The map of one parameter's components, and the last loss's norms for all."""
    from matplotlib.colors import LogNorm

    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    norms = measured.norms[name]
    top = norms.max() or 1.0
    T = norms.shape[1]
    image = left.imshow(
        np.where(norms > 0, norms, np.nan), norm=LogNorm(top * 1e-6, top), aspect="auto",
        interpolation="nearest", extent=(-0.5, T - 0.5, len(norms) - 0.5, -0.5),
    )  # fmt: skip
    marks = np.unique(np.linspace(0, len(norms) - 1, 6).astype(int))
    left.set_yticks(marks, [str(measured.losses[i]) for i in marks])
    left.set_xlabel("step e")
    left.set_ylabel("loss l")
    left.set_title(f"Norms of the components of {name}")
    figure.colorbar(image, ax=left)
    last = measured.losses[-1]
    for each, values in measured.norms.items():
        if not each.startswith("head."):
            way = values[-1, : last + 1]
            right.plot(np.arange(last + 1), _drawn(way), label=each)
    right.set_yscale("log")
    right.set_xlabel("step e")
    right.set_title(f"Of loss {last}")
    right.legend(fontsize="small")


def clipping(figure: Any, measured: Clipping) -> None:
    """Logged norms, and what clipping does to the windows' gradients."""
    left, right = figure.subplots(1, 2)
    left.plot(measured.logged)
    if measured.limit:
        left.axhline(measured.limit, color="grey", linestyle=":")
    left.set_yscale("log")
    left.set_xlabel("line of the metrics")
    left.set_title("Norm of the gradient before clipping")
    places = np.arange(len(measured.names))
    right.bar(places - 0.2, measured.angles, 0.4, label="by value, as in the run")
    right.bar(places + 0.2, measured.same_angles, 0.4, label="by value to the norm --grad-clip")
    right.set_ylim(0, max(1.0, 1.2 * measured.angles.max(), 1.2 * measured.same_angles.max()))
    right.set_xticks(places, measured.names, rotation=45, ha="right", fontsize="small")
    right.set_xlabel("window (clipping by norm: 0 degrees)")
    right.set_ylabel("degrees")
    right.set_title("How clipping turns the gradient")
    right.legend(fontsize="small")
