"""The table that main.py and eval.py print: reading it, and a slow version of its numbers."""

from collections.abc import Sequence

from runs import NAMES


def cells(text: str) -> dict[str, tuple[str, ...]]:
    """Rows of the last table of a text by their first cell."""
    table = text.rpartition("┏")[2]
    rows = [line.strip("│").split("│") for line in table.splitlines() if line.startswith("│")]
    return {row[0].strip(): tuple(cell.strip() for cell in row[1:]) for row in rows}


def naive_report(
    matrix: list[list[int]], known: int, base: int, names: Sequence[str] = ("background", *NAMES)
) -> dict[str, tuple[str, str]]:
    """IoU and accuracy in percent as the reference code averages them, by loops; rows by name."""
    iou, accuracy, hits, seen = [], [], 0, 0
    for c in range(known):
        hit = matrix[c][c]
        truth = sum(matrix[c][p] for p in range(known))
        predicted = sum(matrix[t][c] for t in range(known))
        iou.append(hit / (truth + predicted - hit) if truth else 0.0)
        accuracy.append(hit / truth if truth else 0.0)
        hits, seen = hits + hit, seen + truth

    def show(values: list[float]) -> str:
        return f"{100 * sum(values) / len(values):.2f}"

    rows = {names[c]: (show(iou[c : c + 1]), show(accuracy[c : c + 1])) for c in range(known)}
    rows[f"before: 0 to {base - 1}"] = (show(iou[:base]), show(accuracy[:base]))
    if known > base:
        rows[f"after: {base} to {known - 1}"] = (show(iou[base:]), show(accuracy[base:]))
    else:
        rows["after"] = ("n/a", "n/a")
    rows["all"] = (show(iou), show(accuracy))
    rows["all pixels"] = ("", show([hits / seen]))
    return rows
