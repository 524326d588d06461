"""The figures of the index as a table in Markdown, and next to the goal whether it is reached."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CALM_RATIO_MAX = 1.5

ANCHORED = "anchored"
LIQUIDATED = "liquidated"
"""What becomes of the accounts that a price crosses, but for a few where the exchange is small."""

_TITLES = {ANCHORED: "who are safe", LIQUIDATED: "who are liquidated"}


@dataclasses.dataclass
class Ticks:
    """Mark prices that crossed equally many accounts."""

    elapsed_ms: float = 0.0
    crossed: int = 0
    liquidated: int = 0

    def add(self, elapsed_ms: float, crossed: int, liquidated: int) -> None:
        """Add one."""
        self.elapsed_ms += elapsed_ms
        self.crossed += crossed
        self.liquidated += liquidated


@dataclasses.dataclass
class Figures:
    """What was measured with one number of accounts; the bytes are for each account."""

    calm_ms: float = 0.0
    calm_server_us: float = 0.0
    scan_ms: float = 0.0
    read_all_s: float = 0.0
    read_share: float = 0.0
    swept: int = 0
    state_bytes: float = 0.0
    index_bytes: float = 0.0
    ticks: dict[tuple[str, int], Ticks] = dataclasses.field(default_factory=dict)
    """By what becomes of the accounts that were crossed, and how many they were."""


def render(columns: Sequence[tuple[int, Figures]]) -> str:
    """Show one column for each number of accounts: its figures, and its prices by whom and how many they crossed."""
    sizes = [size for size, _ in columns]
    figures = [measured for _, measured in columns]
    calm_ms = [each.calm_ms for each in figures]
    rows: list[tuple[str, list[str]]] = [
        ("a mark price that crosses nobody, ms", [f"{value:.3f}" for value in calm_ms]),
        (f"... x that with {sizes[0]:,}", [f"{value / calm_ms[0]:.2f}" for value in calm_ms]),
        ("... its script in the server, µs", [f"{each.calm_server_us:.0f}" for each in figures]),
        ("a scan that finds nobody crossed, and tests 200, ms", [f"{each.scan_ms:.1f}" for each in figures]),
        ("reading and assessing all accounts instead, s", [_read_all(each) for each in figures]),
        ("... x a mark price", [f"{each.read_all_s * 1000 / each.calm_ms:,.0f}" for each in figures]),
    ]
    for (kind, crossed), title in _kinds(figures):
        cells = [_ticks(kind, each.ticks.get((kind, crossed))) for each in figures]
        rows.append((title, cells))
    rows += [
        ("memory for each account without triggers, bytes", [f"{each.state_bytes:.0f}" for each in figures]),
        ("... for its triggers, bytes", [f"{each.index_bytes:.0f}" for each in figures]),
    ]
    lines = [f"| accounts | {' | '.join(f'{size:,}' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    lines += [f"| {title} | {' | '.join(cells)} |" for title, cells in rows]
    ratio = calm_ms[-1] / calm_ms[0]
    reached = f"goal {CALM_RATIO_MAX} ({'reached' if ratio <= CALM_RATIO_MAX else 'missed'})"
    lines += ["", f"- calm mark price, {sizes[-1]:,} accounts / {sizes[0]:,}: {ratio:.2f}, {reached}"]
    swept = " / ".join(f"{each.swept:,}" for each in figures)
    lines += [f"- triggers tested by a sweep after all that, of {swept} accounts: none of them could be missed"]
    return "\n".join(lines)


def _read_all(figures: Figures) -> str:
    text = f"{figures.read_all_s:.2g}" if figures.read_all_s < 1 else f"{figures.read_all_s:.1f}"
    return text if figures.read_share == 1.0 else f"{text} (from {figures.read_share:.0%} of them)"


def _kinds(figures: Sequence[Figures]) -> list[tuple[tuple[str, int], str]]:
    """Kinds of prices that were measured anywhere, by kind and then by how many they crossed."""
    keys = {key for each in figures for key in each.ticks}
    return [
        ((kind, crossed), f"a mark price that crosses {crossed:,} {title}, ms for each")
        for kind, title in _TITLES.items()
        for crossed in sorted(crossed for other, crossed in keys if other == kind)
    ]


def _ticks(kind: str, ticks: Ticks | None) -> str:
    """What one crossed account took; what became of them where that is not what the kind says."""
    if ticks is None:
        return ""
    text = f"{ticks.elapsed_ms / ticks.crossed:.2f}"
    expected = ticks.crossed if kind == LIQUIDATED else 0
    return text if ticks.liquidated == expected else f"{text} ({ticks.liquidated / ticks.crossed:.1%} liquidated)"
