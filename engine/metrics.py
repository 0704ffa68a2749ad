"""What a run measures: the columns of its Parquet tables, with their units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

Columns = Mapping[str, NDArray[Any]]  # name -> (rows,) each; NaN where nothing was measured

_UTC = pa.timestamp("ms", tz="UTC")

METRICS = pa.schema(
    [
        ("step", pa.int64()),  # optimizer updates done
        ("epoch", pa.float64()),  # passes over the training windows, a fraction
        ("tokens", pa.int64()),  # trained on so far
        ("elapsed_s", pa.float64()),  # training time; pauses, and the time between stop and resume, left out
        ("time", _UTC),
        ("train_loss", pa.float64()),  # nats per token, mean over the whole step, before its update
        ("val_loss", pa.float64()),  # nats per token; null unless it was measured after this step
        ("learning_rate", pa.float64()),
        ("grad_norm", pa.float64()),  # before clipping
        ("tokens_per_s", pa.float64()),  # over the last second or step; evaluation, samples and saving left out
        ("memory_gib", pa.float64()),  # the most so far: allocated on a GPU; held by the process on a CPU (rank 0)
    ]
)

SAMPLES = pa.schema(
    [
        ("step", pa.int64()),
        ("time", _UTC),
        ("prompt", pa.string()),
        ("text", pa.string()),  # the continuation, without the prompt
        ("temperature", pa.float64()),
        ("top_k", pa.int64()),
        ("seed", pa.int64()),
    ]
)
