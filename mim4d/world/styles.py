"""The characters of the towns: what houses are made of, how high they are, what grows. Train and val differ."""

from __future__ import annotations

from dataclasses import dataclass

from mim4d.world.materials import Material as M
from mim4d.world.mesh import RGB


@dataclass(frozen=True)
class Style:
    walls: tuple[M, M, M]
    tints: tuple[RGB, ...]  # of the walls
    floors: tuple[int, int]
    shops: float  # share of houses with a shop on the ground floor
    gables: bool
    setback: tuple[float, float]  # metres between the walkway and a house
    trees: float  # things that stand along the kerb, per metre
    inner: M  # what covers a block behind its walkway
    leaves: RGB  # tint of the foliage
    forest: tuple[float, float, float, float] = (0.5, 0.3, 0.15, 0.05)  # shares of furniture.tree's kinds


TRAIN_STYLES = (
    Style(
        walls=(M.BRICK, M.BRICK, M.PLASTER),
        tints=((0.62, 0.3, 0.22), (0.7, 0.42, 0.3), (0.5, 0.27, 0.24), (0.8, 0.68, 0.5)),
        floors=(3, 6),
        shops=0.5,
        gables=False,
        setback=(0.2, 2.0),
        trees=0.06,
        inner=M.PAVERS,
        leaves=(1.1, 1.0, 0.8),
    ),
    Style(
        walls=(M.CURTAIN, M.OFFICE, M.CURTAIN),
        tints=((0.75, 0.85, 1.0), (0.9, 0.9, 0.85), (0.5, 0.65, 0.7), (0.95, 0.8, 0.62)),
        floors=(5, 12),
        shops=0.7,
        gables=False,
        setback=(1.0, 4.0),
        trees=0.045,
        inner=M.CONCRETE,
        leaves=(0.8, 1.1, 0.7),
    ),
    Style(
        walls=(M.PLASTER, M.BRICK, M.SHUTTERS),
        tints=((0.95, 0.92, 0.8), (0.75, 0.82, 0.88), (0.9, 0.7, 0.55), (0.72, 0.42, 0.34)),
        floors=(2, 3),
        shops=0.0,
        gables=True,
        setback=(3.0, 7.0),
        trees=0.07,
        inner=M.GRASS,
        leaves=(0.9, 1.15, 0.7),
        forest=(0.35, 0.25, 0.1, 0.3),
    ),
    Style(
        walls=(M.CORRUGATED, M.BLANK, M.BRICK),
        tints=((0.6, 0.66, 0.72), (0.7, 0.62, 0.5), (0.42, 0.5, 0.48), (0.75, 0.36, 0.25)),
        floors=(2, 4),
        shops=0.0,
        gables=False,
        setback=(2.0, 6.0),
        trees=0.03,
        inner=M.GRAVEL,
        leaves=(1.2, 1.0, 0.6),
    ),
)
VAL_STYLES = (
    Style(
        walls=(M.SHUTTERS, M.PLASTER, M.SHUTTERS),
        tints=((0.95, 0.8, 0.5), (0.9, 0.6, 0.45), (0.7, 0.78, 0.6), (0.93, 0.88, 0.8)),
        floors=(3, 5),
        shops=0.6,
        gables=True,
        setback=(0.0, 0.8),
        trees=0.03,
        inner=M.PAVERS,
        leaves=(1.0, 0.95, 0.7),
        forest=(0.3, 0.1, 0.5, 0.1),
    ),
    Style(
        walls=(M.OFFICE, M.CURTAIN, M.PLASTER),
        tints=((0.62, 0.58, 0.55), (0.8, 0.78, 0.74), (0.55, 0.62, 0.72), (0.72, 0.5, 0.42)),
        floors=(6, 14),
        shops=0.4,
        gables=False,
        setback=(2.0, 6.0),
        trees=0.08,
        inner=M.GRASS,
        leaves=(0.7, 1.0, 0.75),
    ),
)
