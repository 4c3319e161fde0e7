"""What pages of figures are made of: the templates *.html of this folder, filled in, and pictures
of curves.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals["zip"] = partial(zip, strict=True)
TEMPLATES.filters["png"] = lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}"


def render(template: str, /, **values: Any) -> Markup:
    """The template filled in. All texts are escaped but Markup; bytes of a picture become a URL by
    the filter `png`.
    """
    return Markup(TEMPLATES.get_template(template).render(values))


@dataclass
class Panel:
    """Curves over the iterations.

    `curves`: iterations and values by label, "" for one that needs none; NaN: no point.
    `alarms`: iterations to mark red; `axes`: what else matplotlib's Axes.set takes.
    """

    title: str
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]
    alarms: Collection[int] = ()
    axes: Mapping[str, Any] = field(default_factory=dict)


def draw(
    panels: Sequence[Panel],
    columns: int = 2,
    size: tuple[float, float] = (3.3, 1.9),
    kind: str = "png",
    across: str = "iteration",
) -> bytes:
    """Picture (png or svg) of the panels, each of this size in inches, over what is `across`."""
    # Takes a second to import, which commands without pictures do without.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    height = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(columns * size[0], height * size[1] + 0.25))
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(height, columns, place)
        for label, (steps, values) in panel.curves.items():
            points = [
                point for point in zip(steps, values, strict=True) if not math.isnan(point[1])
            ]
            # A line through one point cannot be seen.
            marker = "." if len(points) < 10 else None
            # A curve without a point keeps its place in the legend.
            xs, ys = zip(*points, strict=True) if points else ((), ())
            axes.plot(xs, ys, label=label, linewidth=1.3, marker=marker)
        for iteration in panel.alarms:
            axes.axvspan(iteration - 0.5, iteration + 0.5, color="#d33", alpha=0.15, linewidth=0)
        axes.set(**panel.axes)
        axes.set_title(panel.title, fontsize=10)
        axes.grid(alpha=0.3)
        # There is no iteration 2.5. Matplotlib's default locator is one of these.
        locator = axes.xaxis.get_major_locator()
        assert isinstance(locator, MaxNLocator)
        locator.set_params(integer=True)
        if any(panel.curves):
            axes.legend(fontsize=9)
    figure.supxlabel(across, fontsize=10)
    figure.tight_layout(pad=0.4)
    return picture(figure, kind)


def picture(figure: Figure, kind: str = "png", dpi: int = 130) -> bytes:
    """The figure as png or svg, without a date or a version in it."""
    buffer = io.BytesIO()
    # Each format calls it otherwise; without them equal figures are equal files.
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()
