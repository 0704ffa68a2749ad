"""Write the tables of `docs/memory.md` anew, from the measurements in `tests/data` and the present estimate.

    python tests/memory_tables.py

A test holds the page to them (tests/test_memory_page.py).
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import PRESETS, SETTINGS, TrainConfig, from_dict
from engine.memory import estimate_memory
from engine.paths import PROJECT

Row = dict[str, Any]
PAGE = PROJECT / "docs" / "memory.md"
GPU = json.loads((PROJECT / "tests" / "data" / "h100_memory.json").read_text(encoding="utf-8"))
CPU = json.loads((PROJECT / "tests" / "data" / "cpu_memory.json").read_text(encoding="utf-8"))


def config_of(row: Row) -> TrainConfig:
    """The settings that a row was measured with."""
    return from_dict({name: value for name, value in row.items() if name in SETTINGS})


def errors(rows: Iterable[Row]) -> list[float]:
    """(estimated - measured) / measured of the most that a GPU had allocated, for each row."""
    return [estimate_memory(config_of(row), "cuda").peak_allocated / row["peak_allocated"] - 1 for row in rows]


def cpu_errors(rows: Iterable[Row]) -> list[float]:
    """(estimated - measured) / measured of a process's peak of resident memory, for each row."""
    return [estimate_memory(config_of(row), "cpu").total / row["peak"] - 1 for row in rows]


def rule_of_thumb(config: TrainConfig) -> float:
    """Bytes by the rule that many guides repeat.

    16 bytes a weight (weights, gradients, two moments; with 8-bit moments 10), and B·T·D·(34 + 5·H·T/D) a layer in half
    precision, twice that in fp32; sdpa spares the second term, checkpointing all but 2·B·T·D. The activations are
    those of "Reducing Activation Recomputation in Large Transformer Models" (arXiv:2205.05198), all of it is in
    EleutherAI's "Transformer Math 101".
    """
    model = config.model
    weights = model.parameters * (16 if config.optimizer == "adamw" else 10)
    stream = config.batch_size * model.context_length * model.width * (2 if config.precision == "fp32" else 1)
    quadratic = 5 * model.heads * model.context_length / model.width if config.attention_impl == "manual" else 0
    return weights + model.layers * stream * (2 if config.gradient_checkpointing else 34 + quadratic)


def rule_errors(rows: Iterable[Row]) -> list[float]:
    """(rule of thumb - measured) / measured for each row."""
    return [rule_of_thumb(config_of(row)) / row["peak_allocated"] - 1 for row in rows]


def groups(rows: Sequence[Row]) -> Iterable[tuple[str, list[Row]]]:
    """All rows, the parts that were fitted on and held back, and those of each value of some settings."""
    yield "all", list(rows)
    yield "fitted on", [row for row in rows if not row["held_back"]]
    yield "**held back**", [row for row in rows if row["held_back"]]
    for name in ("config", "optimizer", "precision", "attention_impl", "gradient_checkpointing"):
        found = {row[name] for row in rows}
        order = [*PRESETS, *(SETTINGS[name].metadata["choices"] or (False, True))]
        for value in sorted(found, key=order.index):
            word = f"`{value}`" if isinstance(value, str) else f"checkpointing {'on' if value else 'off'}"
            yield word, [row for row in rows if row[name] == value]
    if rows is CPU["rows"]:
        for word, value in (("computed by PyTorch", "off"), ("by the lab's own kernels", "on")):
            yield word, [row for row in rows if row["compile"] == value]


def table(rows: Sequence[Row], of: Callable[[list[Row]], list[float]]) -> str:
    """Median and largest error, and the largest underestimate, for each group of rows."""
    lines = ["| rows | how many | median error | largest error | largest underestimate |", "|---|---|---|---|---|"]
    for name, chosen in groups(rows):
        found = of(chosen)
        sizes = [abs(error) for error in found]
        under = max(0.0, -min(found))
        lines.append(f"| {name} | {len(found)} | {statistics.median(sizes):.2%} | {max(sizes):.1%} | {under:.1%} |")
    return "\n".join(lines)


def comparison() -> str:
    """The estimate beside the rule of thumb, on the held-back rows and on all."""
    lines = ["| | rows | median error | largest error | largest underestimate |", "|---|---|---|---|---|"]
    for name, of in (("this estimate", errors), ("rule of thumb", rule_errors)):
        for which, chosen in (("held back", [r for r in GPU["rows"] if r["held_back"]]), ("all", GPU["rows"])):
            found = of(chosen)
            sizes = [abs(error) for error in found]
            lines.append(
                f"| {name} | {which}, {len(found)} | {statistics.median(sizes):.1%} | {max(sizes):.1%} | "
                f"{max(0.0, -min(found)):.1%} |"
            )
    return "\n".join(lines)


def beyond_the_peak() -> str:
    """What the allocator and the driver take besides, measured in processes of their own and in one for all rows."""
    whole = [row["device_used"] / row["peak_allocated"] for row in GPU["fresh"]]
    lines = [
        "| measured, as a multiple of the most allocated | runs | least | median | most |",
        "|---|---|---|---|---|",
        _spread("whole process on the device, with nothing to restrict it", whole),
    ]
    reserved = [row["peak_reserved"] / row["peak_allocated"] for row in GPU["rows"]]
    lines.append(_spread("what PyTorch had reserved", reserved))
    return "\n".join(lines)


def _spread(name: str, values: list[float]) -> str:
    return f"| {name} | {len(values)} | {min(values):.2f} | {statistics.median(values):.2f} | {max(values):.2f} |"


def tables() -> dict[str, str]:
    """All tables of the page by name."""
    return {
        "gpu": table(GPU["rows"], errors),
        "rule of thumb": comparison(),
        "beyond the peak": beyond_the_peak(),
        "cpu": table(CPU["rows"], cpu_errors),
    }


def main() -> None:
    """Put each table below its mark on the page."""
    page = PAGE.read_text(encoding="utf-8")
    for name, made in tables().items():
        mark = f"<!-- table: {name} -->"
        page = re.sub(rf"{mark}\n(\n\|[^\n]*(\n\|[^\n]*)*\n)?", lambda _, m=mark, t=made: f"{m}\n\n{t}\n", page)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
