"""One iteration of RL as a picture: who worked when."""

from __future__ import annotations

from rayward.pipelines.report.page import picture
from rayward.pipelines.rl.trace import DRIVER, NAMES, ROLES, Line, ordered, union

RANKS_DRAWN = 4


def timeline_png(line: Line) -> bytes:
    """One iteration as a picture (png): a row for each actor, a bar for each span, yellow where no
    actor is at work. Of a role with many ranks the first four are drawn.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    spans, start_of_line = line["spans"], line["begun"]
    wall = line["ended"] - start_of_line
    roles = ordered((span["role"] for span in spans), ROLES)
    ranks_of = {
        role: sorted({span["rank"] for span in spans if span["role"] == role}) for role in roles
    }
    rows = [(role, rank) for role, ranks in ranks_of.items() for rank in ranks[:RANKS_DRAWN]]
    names = ordered((span["name"] for span in spans), NAMES)
    palette = [*matplotlib.color_sequences["tab10"], *matplotlib.color_sequences["Set3"]]
    # By the place in all known tasks: a task has the same colour in every picture.
    known = [*NAMES, *(name for name in names if name not in NAMES)]
    colours = {name: palette[known.index(name) % len(palette)] for name in names}
    figure = Figure(
        figsize=(5, 1.25 + 0.3 * len(rows) + 0.2 * (len(names) // 3)), layout="constrained"
    )
    axis = figure.subplots()
    busy = union(
        (span["start"] - start_of_line, span["end"] - start_of_line)
        for span in spans
        if span["role"] != DRIVER
    )
    # The gaps between busy intervals; those may reach over the ends of the iteration.
    edges = [0.0, *(edge for interval in busy for edge in interval), wall]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if max(start, 0) < min(end, wall):
            axis.axvspan(max(start, 0), min(end, wall), color="#f7d774", alpha=0.6, linewidth=0)
    for place, (role, rank) in enumerate(rows):
        for span in spans:
            if (span["role"], span["rank"]) == (role, rank):
                colour = colours[span["name"]]
                bar = (span["start"] - start_of_line, span["end"] - span["start"])
                axis.broken_barh(
                    [bar], (place - 0.38, 0.76), facecolor=colour, edgecolor=colour, linewidth=0.4
                )
    axis.set_yticks(
        range(len(rows)),
        [f"{role} {rank}" if len(ranks_of[role]) > 1 else role for role, rank in rows],
    )
    # Upside down, so that the driver is at the top.
    axis.set(xlim=(0, wall or 1), ylim=(max(len(rows), 1) - 0.5, -0.5), xlabel="seconds")
    axis.set_title(f"iteration {line['iteration']}: {wall:.3g} s", fontsize=10)
    handles = [Patch(color=colours[name], label=name.replace("_", " ")) for name in names]
    handles.append(Patch(color="#f7d774", alpha=0.6, label="no actor at work"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=3,
        fontsize=9,
        frameon=False,
        handlelength=1,
    )
    axis.grid(axis="x", alpha=0.3)
    return picture(figure, dpi=160)
