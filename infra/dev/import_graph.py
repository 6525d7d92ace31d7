"""Draw which room imports which, as tests/architecture.py reads it, into docs/dev/import-graph.png.

    python infra/dev/import_graph.py                      # or: python infra/dev/import_graph.py my.png

A room stands on its floor; an arrow goes from a room to each that it imports. What nearly every room imports (`errors`,
`version`, `local`, `config`, `objects`) stands on the ground, and its arrows are left out. Dark arrows are those without
which a room would not reach the other at all; one beside a way through other rooms is pale. An arrow that went up would
be red. Needs matplotlib.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from architecture import FLOORS, edges, read_sources, rooms  # noqa: E402

OUT = ROOT / "docs" / "dev" / "import-graph.png"
GROUND = ("errors", "version", "local", "config", "objects")
DARK, PALE, WRONG = "#1f4e79", "#c4ccd4", "red"
SWAY = (-3.6, 0.0, 3.6, -1.8, 1.8)  # where on its floor the first room stands, so that few arrows hide one another


def places() -> dict[str, tuple[float, float]]:
    """Where each room stands, x and floor."""
    found: dict[str, tuple[float, float]] = {}
    floors = [[room for room in floor if room not in GROUND] for floor in FLOORS]
    for number, floor in enumerate([list(GROUND), *(floor for floor in floors if floor)]):
        sway = 0.0 if len(floor) > 1 else SWAY[number % len(SWAY)]
        for i, room in enumerate(floor):
            found[room] = (sway + 2.4 * (i - (len(floor) - 1) / 2), float(number))
    return found


def draw(imports: Mapping[str, set[str]], file: Path) -> None:
    """Draw the rooms and their imports into a PNG file."""
    where = places()
    figure, axes = pyplot.subplots(figsize=(9, 10))
    for room, others in sorted(imports.items()):
        beside = set().union(*(reached(imports, other) for other in others)) if others else set()
        for other in sorted(others - set(GROUND)):
            _arrow(axes, where[room], where[other], PALE if other in beside else DARK)
    for room, (x, y) in where.items():
        num = len(imports.get(room, ()))
        text = room if room in GROUND else f"{room}\n{num} room{'' if num == 1 else 's'}"
        box = {
            "boxstyle": "round,pad=0.35",
            "facecolor": "#eeeeee" if room in GROUND else "white",
            "edgecolor": "#333333",
        }
        axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box, zorder=3)
    axes.set_xlim(-6.5, 6.5)
    axes.set_ylim(-0.6, max(y for _, y in where.values()) + 0.6)
    axes.set_axis_off()
    axes.set_title("Who imports whom: arrows go down only", fontsize=11)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def reached(imports: Mapping[str, set[str]], room: str) -> set[str]:
    """Every room that a room imports, by way of others too."""
    found: set[str] = set()
    left = [room]
    while left:
        new = imports.get(left.pop(), set()) - found
        found |= new
        left += new
    return found


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    goes_up = end[1] >= start[1]
    side = 1 if end[0] >= start[0] else -1
    bend = 0.0 if start[1] - end[1] == 1 else 0.16 * side
    style = {
        "arrowstyle": "-|>",
        "color": WRONG if goes_up else colour,
        "lw": 0.8 if colour == PALE else 1.6,
        "shrinkA": 14,
        "shrinkB": 14,
        "connectionstyle": f"arc3,rad={bend}",
    }
    axes.annotate("", xy=end, xytext=start, arrowprops=style, zorder=1 if colour == PALE else 2)


if __name__ == "__main__":
    sources = read_sources(ROOT)
    draw(rooms(sources, edges(sources)), Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
