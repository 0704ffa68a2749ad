"""engine.tables: whatever happens to the writer, a reader sees the last row of every step that was flushed."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine import tables
from engine.kept import KeptColumns
from engine.metrics import METRICS
from engine.tables import TableWriter, read_columns, read_table, read_table_from, table_signature

SCHEMA = pa.schema([("step", pa.int64()), ("loss", pa.float64()), ("val_loss", pa.float64()), ("text", pa.string())])
LOSSES = st.floats(allow_nan=True, allow_infinity=True)
NOISE = {  # files that a reader meets and must pass over
    "empty": b"",
    "torn": b"PAR1\x15\x04\x15",
    "text": b"step,loss\n1,2.0\n",
}


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flush when told, not when a second is over: the first row of a writer, then none by itself."""
    monkeypatch.setattr(tables, "FLUSH_S", 1e9)


def row(step: int, loss: float = 1.0, **values: Any) -> dict[str, Any]:
    return {"step": step, "loss": loss, "val_loss": None, "text": "é\n"} | values


def arrow_rows(folder: Path, name: str = "t") -> list[dict[str, Any]]:
    """What is on disk, read by Arrow alone: None and NaN are two things."""
    files = [folder / f"{name}.parquet", *sorted((folder / name).glob("[0-9]*.parquet"))]
    return [r for path in files if path.exists() for r in pq.read_table(path).to_pylist()]


def same(a: Any, b: Any) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


class TableMachine(RuleBasedStateMachine):
    """A table is a dict of rows by step. A kill loses what was not flushed and nothing else."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lab-table-"))
        self.durable: dict[int, dict[str, Any]] = {}
        self.pending: list[dict[str, Any]] = []
        self.noise: set[str] = set()
        self.step = 0
        self.open()

    def open(self) -> None:
        self.writer = TableWriter(self.folder, "t", SCHEMA)
        self.is_first = True

    def flushed(self) -> None:
        for r in self.pending:
            self.durable[r["step"]] = r
        self.pending = []
        self.is_first = False

    @rule(loss=LOSSES, val_loss=st.none() | LOSSES, again=st.booleans())
    def append(self, loss: float, val_loss: float | None, again: bool) -> None:
        self.step += 0 if again and self.step else 1
        new = row(self.step, loss, val_loss=val_loss)
        self.writer.append(new)
        self.pending.append(new)
        if self.is_first:  # it is on disk at once
            self.flushed()

    @rule()
    def flush(self) -> None:
        self.writer.flush()
        self.flushed()

    @rule()
    def compact(self) -> None:
        self.writer.compact()
        self.flushed()

    @rule(back=st.integers(0, 5))
    def resume_from_an_earlier_step(self, back: int) -> None:
        self.kill_and_reopen()
        self.step = max(0, self.step - back)
        self.writer.compact(last_step=self.step)
        self.is_first = False
        self.durable = {s: r for s, r in self.durable.items() if s <= self.step}

    @rule()
    def kill_and_reopen(self) -> None:
        self.pending = []
        self.step = max(self.durable, default=0)
        self.open()

    @rule()
    def kill_between_the_two_halves_of_a_compaction(self) -> None:
        """The compacted file is there, and the segments are not deleted yet."""
        self.writer.flush()
        self.flushed()
        kept = {path: path.read_bytes() for path in self.writer.segments.iterdir()}
        self.writer.compact()
        for path, content in kept.items():
            path.write_bytes(content)
        self.kill_and_reopen()

    @rule(kind=st.sampled_from(sorted(NOISE)))
    def a_write_is_cut_short(self, kind: str) -> None:
        (self.folder / "t" / ".000099.parquet.x1y2.part").write_bytes(NOISE[kind])

    @invariant()
    def a_reader_sees_the_last_row_of_each_step(self) -> None:
        frame, problems = read_table(self.folder, "t", SCHEMA)
        assert problems == []
        assert frame["step"].tolist() == sorted(self.durable)
        for found in frame.to_dict("records"):
            expected = self.durable[found["step"]]
            assert same(found["loss"], expected["loss"])
            assert found["text"] == expected["text"]

    @invariant()
    def rows_from_a_step_on_are_the_end_of_all_rows(self) -> None:
        frame, _ = read_table(self.folder, "t", SCHEMA)
        for step in (0, *frame["step"].tail(3), 10**9):
            expected = frame[frame["step"] >= step].reset_index(drop=True)
            pd.testing.assert_frame_equal(read_table_from(self.folder, "t", SCHEMA, step), expected)

    @invariant()
    def absent_and_nan_are_two_things(self) -> None:
        found = {r["step"]: r["val_loss"] for r in arrow_rows(self.folder)}
        assert found.keys() == self.durable.keys()
        assert all(same(value, self.durable[step]["val_loss"]) for step, value in found.items())

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


def test_a_table_is_a_dict_of_rows_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setattr(tables, "COMPACT_AT", 4)  # so that compactions by number of segments happen too
    run_state_machine_as_test(TableMachine, settings=settings(max_examples=20, stateful_step_count=20))


def test_the_first_row_is_on_disk_at_once(tmp_path: Path) -> None:
    TableWriter(tmp_path, "t", SCHEMA).append(row(1))
    assert read_table(tmp_path, "t", SCHEMA)[0]["step"].tolist() == [1]


def test_a_row_is_on_disk_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "FLUSH_S", 1.0)
    clock = [100.0]
    monkeypatch.setattr(tables.time, "monotonic", lambda: clock[0])
    writer = TableWriter(tmp_path, "t", SCHEMA)
    logged_at: dict[int, float] = {}
    for step in range(1, 60):
        writer.append(row(step))
        logged_at[step] = clock[0]
        on_disk = set(read_table(tmp_path, "t", SCHEMA)[0]["step"].tolist())
        assert all(clock[0] - when <= 1.0 for s, when in logged_at.items() if s not in on_disk)
        clock[0] += 0.3
        assert all(clock[0] - when <= 1.0 for s, when in logged_at.items() if s not in on_disk)
    assert len(list(writer.segments.iterdir())) < 30  # and not a file for each row


def test_a_table_that_is_not_there_is_an_empty_one(tmp_path: Path) -> None:
    frame, problems = read_table(tmp_path, "metrics", METRICS)
    assert list(frame.columns) == METRICS.names and len(frame) == 0 and problems == []


def test_an_empty_compaction_is_readable(tmp_path: Path) -> None:
    TableWriter(tmp_path, "t", SCHEMA).compact()
    assert len(read_table(tmp_path, "t", SCHEMA)[0]) == 0
    assert list(pd.read_parquet(tmp_path / "t.parquet").columns) == SCHEMA.names


def foreign(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


def damage(folder: Path) -> list[str]:
    """One file of every kind that a reader must pass over; their names."""
    segments = folder / "t"
    for i, content in enumerate(NOISE.values()):
        (segments / f"00010{i}.parquet").write_bytes(content)
    whole = next(segments.glob("000001.parquet")).read_bytes()
    (segments / "000103.parquet").write_bytes(whole[:-20])
    foreign(segments / "000104.parquet", pa.table({"x": [1, 2]}))
    foreign(segments / "000105.parquet", pa.table({"step": ["one", "two"], "loss": [1.0, 2.0]}))
    foreign(segments / "000106.parquet", pa.table({"step": [[1]], "loss": [1.0]}))
    foreign(segments / "000107.parquet", pa.table({"step": [8], "loss": ["much"]}))
    return [f"00010{i}.parquet" for i in range(8)]


def test_damaged_and_foreign_files_are_passed_over_and_named(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path, "t", SCHEMA)
    for step in (1, 2, 3):
        writer.append(row(step))
        writer.flush()
    names = damage(tmp_path)
    frame, problems = read_table(tmp_path, "t", SCHEMA)
    assert frame["step"].tolist() == [1, 2, 3]
    assert sorted(problem.split()[0] for problem in problems) == names
    assert all(problem.endswith(".") and "\n" not in problem for problem in problems)


def test_a_lack_of_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = TableWriter(tmp_path, "t", SCHEMA)
    writer.append(row(1))
    writer.compact()

    def full(*args: Any) -> Any:
        raise pa.ArrowMemoryError("malloc of size 65536 failed")

    monkeypatch.setattr(tables, "KEPT", KeptColumns(2**20))
    with monkeypatch.context() as without_memory:
        without_memory.setattr(tables, "_read_parquet", full)
        writer.append(row(2))
        with pytest.raises(MemoryError):
            writer.compact()
    assert arrow_rows(tmp_path) == [row(1), row(2)] and not [*tmp_path.glob("*damaged*")]


def test_a_damaged_compacted_file_does_not_hide_the_segments(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path, "t", SCHEMA)
    writer.append(row(1))
    (tmp_path / "t.parquet").write_bytes(b"nonsense")
    frame, problems = read_table(tmp_path, "t", SCHEMA)
    assert frame["step"].tolist() == [1]
    assert len(problems) == 1 and problems[0].startswith("t.parquet")


def test_a_row_without_a_step_does_not_break_the_table(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path, "t", SCHEMA)
    writer.append(row(1))
    foreign(tmp_path / "t" / "000009.parquet", pa.table({"step": pa.array([None, 2], pa.int64())}))
    frame, _ = read_table(tmp_path, "t", SCHEMA)
    assert 1 in frame["step"].tolist()


@pytest.mark.parametrize("place", ["segment", "compacted file"])
def test_a_compaction_destroys_nothing_that_it_could_not_read(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading may fail for a moment (too many open files, a disk that stutters): the rows must still be there later."""
    writer = TableWriter(tmp_path, "t", SCHEMA)
    for step in (1, 2):
        writer.append(row(step))
        writer.flush()
    if place == "compacted file":
        writer.compact()
    writer.append(row(3))
    unlucky = tmp_path / ("t.parquet" if place == "compacted file" else "t/000001.parquet")
    content = unlucky.read_bytes()
    really = pq.ParquetFile

    def stutter(source: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(source) == unlucky:
            raise OSError(24, "Too many open files")
        return really(source, *args, **kwargs)

    tables.KEPT.clear()
    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetFile", stutter)
        with contextlib.suppress(OSError):  # refusing is fine; losing is not
            writer.compact()
    assert any(path.is_file() and path.read_bytes() == content for path in tmp_path.rglob("*"))
    frame, _ = read_table(tmp_path, "t", SCHEMA)
    assert 3 in frame["step"].tolist()
    if place == "segment":
        assert frame["step"].tolist() == [1, 2, 3]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Each file that is read from now on, and the columns; nothing is in memory yet."""
    found = []

    class Recorded(pq.ParquetFile):
        def read(self, columns: list[str], **options: Any) -> pa.Table:
            found.append((Path(self.name).name, columns))
            return super().read(columns, **options)

        def __init__(self, source: Path) -> None:
            self.name = source
            super().__init__(source)

    monkeypatch.setattr(pq, "ParquetFile", Recorded)
    monkeypatch.setattr(tables, "KEPT", KeptColumns(2**20))
    return found


def test_only_the_columns_that_are_asked_for_are_read_and_once(
    tmp_path: Path, reads: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "SMALL", 10_000)
    writer = TableWriter(tmp_path, "t", SCHEMA)
    writer._rows = [row(step, loss=step / 7) for step in range(1, 5001)]
    writer.compact()
    writer.append(row(5000, loss=0.5))
    writer.append(row(5001, val_loss=4.0))
    writer.flush()
    reads.clear()
    columns, problems = read_columns(tmp_path, "t", SCHEMA, ["loss"])
    assert problems == [] and len(columns["loss"]) == 5001 and columns["loss"][-2:].tolist() == [0.5, 1.0]
    small = ("000002.parquet", SCHEMA.names)  # opening it is what costs
    assert reads == [small, ("t.parquet", ["step", "loss"])]
    again, _ = read_columns(tmp_path, "t", SCHEMA, ["step", "loss", "val_loss"])
    assert reads[2:] == [("t.parquet", ["val_loss"])]
    assert again["step"].dtype == "int64" and again["step"].tolist() == list(range(1, 5002))
    assert math.isnan(again["val_loss"][0]) and again["val_loss"][-1] == 4.0


def test_problems_are_those_of_the_reader_and_what_is_in_memory_is_not_read_for_them(
    tmp_path: Path, reads: list[tuple[str, list[str]]]
) -> None:
    writer = TableWriter(tmp_path, "t", SCHEMA)
    for step in (1, 2):
        writer.append(row(step))
        writer.flush()
    (tmp_path / "t.parquet").write_bytes(b"nonsense")
    names = ["t.parquet", *damage(tmp_path)]
    found = tables.find_problems(tmp_path, "t", SCHEMA, ["loss"])
    assert found == read_columns(tmp_path, "t", SCHEMA, ["loss"])[1]
    assert [problem.split()[0] for problem in found] == names
    reads.clear()
    assert tables.find_problems(tmp_path, "t", SCHEMA, ["loss"]) == found
    assert not {"000001.parquet", "000002.parquet"} & {name for name, _ in reads}


def test_a_column_that_is_damaged_hides_the_file_from_its_readers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "SMALL", 0)
    foreign(tmp_path / "t.parquet", pa.table({"step": [1, 2], "loss": [3.0, 2.0], "val_loss": ["much", "more"]}))
    assert read_columns(tmp_path, "t", SCHEMA, ["loss"])[0]["loss"].tolist() == [3.0, 2.0]
    columns, problems = read_columns(tmp_path, "t", SCHEMA, ["loss", "val_loss"])
    assert [len(values) for values in columns.values()] == [0, 0] and problems[0].startswith("t.parquet in")
    assert len(read_table(tmp_path, "t", SCHEMA)[0]) == 0


def test_steps_are_kept_as_differences_and_what_was_written_before_that_is_read(tmp_path: Path) -> None:
    """A million steps take a few kilobytes, and are read in a fraction of the time."""
    writer = TableWriter(tmp_path, "t", SCHEMA)
    writer._rows = [row(step, loss=step / 7) for step in range(1, 5001)]
    writer.compact()
    group = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0)
    column = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert "DELTA_BINARY_PACKED" in column["step"].encodings and column["step"].total_compressed_size < 2000
    rows = arrow_rows(tmp_path)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "t.parquet")
    assert arrow_rows(tmp_path) == rows and len(rows) == 5000


def test_the_order_of_segments_is_that_of_their_numbers(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path, "t", SCHEMA)
    writer._next = 999_999
    for loss in (1.0, 2.0, 3.0):
        writer.append(row(7, loss))
        writer.flush()
    assert read_table(tmp_path, "t", SCHEMA)[0]["loss"].tolist() == [3.0]
    again = TableWriter(tmp_path, "t", SCHEMA)
    again.append(row(7, 4.0))
    assert read_table(tmp_path, "t", SCHEMA)[0]["loss"].tolist() == [4.0]


@settings(max_examples=150)
@given(st.data())
def test_no_damage_to_a_file_makes_a_reader_raise(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "t").mkdir()
        path = folder / "t" / "000001.parquet"
        pq.write_table(pa.Table.from_pylist([row(s) for s in range(5)], schema=SCHEMA), path)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        frame, problems = read_table(folder, "t", SCHEMA)
        assert list(frame.columns) == SCHEMA.names
        assert len(frame) <= 5 and len(problems) <= 1


def test_pending_rows_survive_a_failed_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = TableWriter(tmp_path, "t", SCHEMA)
    writer.append(row(1))
    writer.append(row(2))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            writer.flush()
    assert read_table(tmp_path, "t", SCHEMA)[0]["step"].tolist() == [1]
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["000001.parquet"]  # no leftovers
    writer.flush()
    assert read_table(tmp_path, "t", SCHEMA)[0]["step"].tolist() == [1, 2]


def test_the_signature_changes_with_the_news_and_only_then(tmp_path: Path) -> None:
    seen = [table_signature(tmp_path, "t")]
    writer = TableWriter(tmp_path, "t", SCHEMA)
    assert table_signature(tmp_path, "t") == seen[-1]
    for act in (
        lambda: writer.append(row(1)),
        lambda: (writer.append(row(2)), writer.flush()),
        writer.compact,
        lambda: (writer.append(row(2, 5.0)), writer.flush()),
        lambda: writer.compact(last_step=1),
    ):
        act()
        assert table_signature(tmp_path, "t") not in seen
        seen.append(table_signature(tmp_path, "t"))
        read_table(tmp_path, "t", SCHEMA)
        assert table_signature(tmp_path, "t") == seen[-1]  # reading is no news
    writer.append(row(3))  # pending: nothing that a reader could see
    assert table_signature(tmp_path, "t") == seen[-1]


def test_many_segments_become_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "COMPACT_AT", 5)
    writer = TableWriter(tmp_path, "t", SCHEMA)
    for step in range(1, 24):
        writer.append(row(step))
        writer.flush()
        assert len(list((tmp_path / "t").iterdir())) < 5
    assert len(pd.read_parquet(tmp_path / "t.parquet")) >= 19


def test_the_columns_of_the_metrics_keep_their_names() -> None:
    """Others read `metrics.parquet` with pandas: the names are a promise."""
    assert METRICS.names == [
        *("step", "epoch", "tokens", "elapsed_s", "time", "train_loss", "val_loss", "learning_rate"),
        *("grad_norm", "tokens_per_s", "memory_gib"),
    ]
