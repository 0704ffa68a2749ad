"""engine.archive: a run goes to another lab and is the same there; what is no run's archive leaves no trace."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save as save_tensors

from engine import TrainConfig, archive, archive_checks, resume_run, train
from engine.archive import import_archive, write_archive
from engine.archive_checks import check_tables_apart
from engine.checkpoint import Contents, save
from engine.cli.export import main as export
from engine.cli.runs import main as runs
from engine.errors import CheckpointError, RunError
from engine.files import read_json
from engine.metrics import METRICS, SAMPLES
from engine.paths import PROJECT
from engine.run import Run, list_runs
from engine.start import new_run

SMALL = TrainConfig(corpus="tiny", epochs=100, max_steps=4, batch_size=1, context_length=32, sample_length=3)
STEP = "checkpoints/step-000003"
Files = dict[str, bytes]


@pytest.fixture
def other_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Call it to go on in a lab that has no runs yet; returns its folder of runs."""

    def move() -> Path:
        folder = tmp_path / "elsewhere" / "runs"
        folder.mkdir(parents=True)
        monkeypatch.setenv("LAB_RUNS", str(folder))
        return folder

    return move


def measured(run: Run) -> pd.DataFrame:
    return run.metrics.drop(columns=["time", "elapsed_s", "tokens_per_s", "memory_gib"])


def weights_hash(run: Run) -> str:
    manifest = read_json(run.checkpoints[-1].path / "manifest.json")
    return str(manifest and manifest["files"])


@pytest.fixture(autouse=True)
def tables_checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each of a hundred archives would take a minute; `check_tables_apart` below is the real one."""
    monkeypatch.setattr(archive_checks, "check_tables_apart", archive_checks.check_tables)


# -------------------------------------------------------------------------------------------- there and back


@pytest.mark.usefixtures("small_nano")
def test_an_imported_run_is_the_same_and_resumes_exactly(
    other_lab: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(**(vars(SMALL) | dict(save_every=2, eval_every=2, sample_every=2, dropout=0.1)))
    whole = train(config)
    samples, events, metrics = whole.samples, whole.events, whole.metrics
    packed = tmp_path / "run.zip"
    assert export([f"{whole.id}@2", "--to", "archive", str(packed)]) == 0
    folder = other_lab()
    assert runs(["import", str(packed)]) == 0
    [run] = list_runs()
    assert run.id == whole.id and run.folder.parent == folder and not run.problems
    pd.testing.assert_frame_equal(run.metrics, metrics)
    pd.testing.assert_frame_equal(run.samples, samples)
    assert run.events == events and [c.step for c in run.checkpoints] == [2]
    assert run.info.pop("imported")["id"] == whole.id
    assert {k: v for k, v in run.info.items() if k != "imported"} == whole.info
    again = train(config, resume_run(run.id))
    pd.testing.assert_frame_equal(measured(again), measured(whole))
    assert weights_hash(again) == weights_hash(whole)


def make_run() -> Run:
    """A run as an interrupted training leaves it: rows in segments, a checkpoint of one weight, a parent's name."""
    active = new_run(SMALL)
    active.note(parent={"run": "20260101-000000-nano-tiny-0000", "step": 1, "changes": {}}, notes="naïve 東京 <b>")
    for step in range(1, 5):
        active.log({"step": step, "train_loss": float("nan") if step == 4 else 10.0 - step})
        active.flush()
    active.log_sample({"step": 4, "prompt": "It", "text": " was\u2028\n<b>"})
    active.event("warning", "One line\u2028or two.")
    active.close()
    (active.folder / "labels.json").write_text('{"name": "Mine <b>", "tags": ["a"]}')
    contents = Contents({"w": torch.arange(3.0)}, {"0/0/exp_avg": torch.zeros(3)}, {"position": 3})
    save(active.folder, contents, {"step": 3, "train_loss": 7.0}, {})
    return active.reader


@pytest.fixture
def one_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models have a single weight, so that archives are small."""
    monkeypatch.setattr("engine.checkpoint_layout.weight_shapes", lambda _: {"w": (3,)})


@pytest.fixture
def made(one_weight: None) -> Run:
    return make_run()


def test_a_run_in_segments_comes_back_and_a_second_time_under_a_fresh_id(made: Run, tmp_path: Path) -> None:
    packed = tmp_path / "run.zip"
    assert write_archive(made, packed) == []
    assert not zipfile.ZipFile(packed).testzip()
    with packed.open("rb") as file:
        second = import_archive(file)
        third = import_archive(packed)
        assert not file.closed
    assert len({made.id, second.id, third.id}) == 3 and second.id.startswith(made.id)
    for run in (second, third):
        assert run.info["id"] == run.id and run.info["imported"]["id"] == made.id
        assert run.info["parent"] == made.info["parent"] and run.info["notes"] == made.info["notes"]
        assert run.state == "interrupted" and not run.is_locked
        pd.testing.assert_frame_equal(run.metrics, made.metrics)
        pd.testing.assert_frame_equal(run.samples, made.samples)
        assert read_json(run.folder / "labels.json") == {"name": "Mine <b>", "tags": ["a"]}
        assert run.events == made.events and weights_hash(run) == weights_hash(made)
    assert {path.name for path in made.folder.parent.iterdir()} >= {second.id, third.id}
    assert not list(made.folder.parent.glob(".import-*"))


def test_what_is_packed_can_be_chosen_and_what_is_damaged_stays_behind(made: Run, tmp_path: Path, capsys: Any) -> None:
    def names(path: Path) -> set[str]:
        return {name for name in zipfile.ZipFile(path).namelist() if name.startswith("checkpoints/")}

    target = tmp_path / "bare.zip"
    assert export([made.id, "--to", "archive", "--no-checkpoints", str(target)]) == 0
    assert names(target) == set() and not import_archive(target).checkpoints
    assert export([made.id, "--to", "archive", str(target)]) != 0, "it is there already"
    assert export([f"{made.id}@3", "--to", "archive", "--no-checkpoints", str(tmp_path / "x")]) == 2
    assert export([made.id, "--to", "csv", "--no-checkpoints", str(tmp_path / "x")]) == 2
    with pytest.raises(CheckpointError, match="no checkpoint at step 9"):
        write_archive(made, tmp_path / "x", [9])
    weights = made.folder / STEP / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    capsys.readouterr()
    assert export([made.id, "--to", "archive", str(tmp_path / "rest.zip")]) == 0
    assert names(tmp_path / "rest.zip") == set() and "was changed after it was saved" in capsys.readouterr().err
    assert export([f"{made.id}@3", "--to", "archive", str(tmp_path / "y")]) != 0
    (made.folder / "run.json").write_text("{")
    assert export([made.id, "--to", "archive", str(tmp_path / "y")]) != 0
    assert "cannot be archived" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"bare.zip", "rest.zip"}


def test_no_archive_is_written_that_no_lab_takes(made: Run, tmp_path: Path, capsys: Any) -> None:
    for step in range(4, 1010):
        (made.folder / "checkpoints" / f"step-{step:06d}").mkdir()
    assert export([made.id, "--to", "archive", str(tmp_path / "x.zip")]) == 1
    assert "has 1,007 checkpoints, more than one archive takes" in capsys.readouterr().err
    assert export([f"{made.id}@3", "--to", "archive", str(tmp_path / "y.zip")]) == 0


# -------------------------------------------------------------------------------------------- hostile archives


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files of an archive that is imported; the tests below spoil it in one way each."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_RUNS", str(folder / "runs"))
        write_archive(make_run(), folder / "good.zip")
    with zipfile.ZipFile(folder / "good.zip") as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def pack(files: Files, path: Path, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def tree(folder: Path) -> dict[str, Any]:
    """Every path below a folder with what it holds; the archives themselves left out."""
    return {str(p): p.is_symlink() or p.is_dir() or p.read_bytes() for p in folder.rglob("*") if p.suffix != ".zip"}


@pytest.fixture
def refused(tmp_path: Path, runs_folder: Path, capsys: Any, one_weight: None) -> Callable[[Path, str], None]:
    """Import an archive, and see that it is refused in one sentence and has left nothing anywhere."""

    def check(path: Path, sentence: str) -> None:
        places = (runs_folder.parent, tmp_path)
        before = [tree(place) for place in places]
        assert runs(["import", str(path)]) == 1, sentence
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1 and len(error) < 400, error
        assert [tree(place) for place in places] == before

    return check


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "../../x.json",
        "/tmp/lab-escaped.json",
        "..\\x",
        "checkpoints\\step-000003\\model.safetensors",
        "C:\\x",
        "C:/x",
        "checkpoints/../run.json",
        "checkpoints/../../x",
        "./run.json",
        "checkpoints//step-000003/state.json",
        "RUN.JSON",
        "Metrics.parquet",
        "run.json\0.txt",
        "run.json ",
        "lock",
        "request-stop.json",
        "metrics/000001.parquet",
        "model.pt",
        "optimizer.pkl",
        "checkpoints/",
        f"{STEP}/model.pt",
        f"{STEP}/optimizer.pkl",
        f"{STEP}/pytorch_model.bin",
        f"{STEP}/model.safetensors/x",
        "checkpoints/step-0000003/state.json",
        "checkpoints/step-3/state.json",
        "checkpoints/step-00000٣/state.json",
        "a" * 5000,
    ],
)
def test_names_that_no_run_has(name: str, good: Files, tmp_path: Path, refused: Any) -> None:
    path = pack(good, tmp_path / "bad.zip")
    stand_in = "z" * len(name.encode())  # of the same length: `zipfile` itself would clean the name
    pack({**good, stand_in: b"escaped"}, path)
    path.write_bytes(path.read_bytes().replace(stand_in.encode(), name.encode()))
    refused(path, "no file of a run")


def with_mode(files: Files, path: Path, name: str, content: bytes, mode: int) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for other in files:
            if other != name:
                packed.writestr(other, files[other])
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        packed.writestr(entry, content)
    return path


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
@pytest.mark.parametrize("name", ["events.jsonl", f"{STEP}/model.safetensors"])
def test_links_and_devices(name: str, kind: int, good: Files, tmp_path: Path, refused: Any) -> None:
    refused(with_mode(good, tmp_path / "bad.zip", name, b"/etc/passwd", kind | 0o777), "no plain file")


def test_two_names_for_one_place(good: Files, tmp_path: Path, refused: Any) -> None:
    """What a hard link is in other archives."""
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in good.items():
            packed.writestr(name, content)
        packed.getinfo(f"{STEP}/state.json").header_offset = packed.getinfo("run.json").header_offset
    refused(path, "more than once")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice(good: Files, tmp_path: Path, refused: Any) -> None:
    path = pack(good, tmp_path / "bad.zip")
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("run.json", good["run.json"])
    refused(path, "run.json is in it more than once")


def test_bombs_by_ratio(good: Files, tmp_path: Path, refused: Any, monkeypatch: Any) -> None:
    bomb = {**good, f"{STEP}/model.safetensors": bytes(60_000_000)}
    refused(pack(bomb, tmp_path / "bad.zip", zipfile.ZIP_DEFLATED), "more than a run of its size can hold")
    assert (tmp_path / "bad.zip").stat().st_size < 100_000
    monkeypatch.setitem(archive._PLAIN, "events.jsonl", 50_000)
    refused(pack({**good, "events.jsonl": bytes(50_001)}, tmp_path / "bad.zip"), "larger than a run's can be")


def test_bombs_by_a_lie_about_the_size(good: Files, tmp_path: Path, refused: Any, monkeypatch: Any) -> None:
    for told in (10, 70_000_000):  # less and more than there is
        content = bytes(60_000_000)
        path = pack({**good, f"{STEP}/model.safetensors": content}, tmp_path / "bad.zip", zipfile.ZIP_DEFLATED)
        path.write_bytes(path.read_bytes().replace(struct.pack("<L", len(content)), struct.pack("<L", told)))
        refused(path, "damaged" if told == 10 else "more than a run of its size")
    # Were the module to hand out more than it was told, the measured size would still end it.
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: bytes(min(n, 1_000_000)))
    refused(pack(good, tmp_path / "bad.zip"), "larger than it tells")


def test_bombs_by_number_and_by_directory(good: Files, tmp_path: Path, refused: Any) -> None:
    many = {f"checkpoints/step-{n:06d}/state.json": b"{}" for n in range(4100)}
    refused(pack({**good, **many}, tmp_path / "bad.zip"), "more than a run does")
    more = {"x" * 60_000 + str(n): b"" for n in range(20)}
    refused(pack({**good, **more}, tmp_path / "bad.zip"), "its directory is larger")


def test_a_disk_without_room(good: Files, tmp_path: Path, refused: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    refused(pack(good, tmp_path / "bad.zip"), "GB free")


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/lab-archive-was-here"),))


def in_safetensors(**tensors: torch.Tensor) -> bytes:
    return save_tensors({name.replace("__", "/"): tensor for name, tensor in tensors.items()})


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("model.safetensors", in_safetensors(w=torch.zeros(4)), "w is 4 instead of 3"),
        ("model.safetensors", in_safetensors(w=torch.zeros(3, 1)), "w is 3 × 1 instead of 3"),
        ("model.safetensors", in_safetensors(v=torch.zeros(3)), "w is missing"),
        ("model.safetensors", in_safetensors(w=torch.zeros(3), v=torch.zeros(3)), "its model has no 'v'"),
        ("model.safetensors", in_safetensors(w=torch.zeros(3).long()), "another kind than the lab's: I64"),
        ("optimizer.safetensors", in_safetensors(**{"0__0__exp_avg": torch.zeros(2)}), "is 2 instead of 3"),
        ("optimizer.safetensors", in_safetensors(**{"0__7__exp_avg": torch.zeros(3)}), "no '0/7/exp_avg'"),
        ("optimizer.safetensors", in_safetensors(**{"0__0__v": torch.zeros(3)}), "no '0/0/v'"),
        ("optimizer.safetensors", in_safetensors(**{"rng.cpu": torch.zeros(2**21).byte()}), "larger than a random"),
    ],
)
def test_tensors_that_are_not_those_of_the_settings(
    name: str, content: bytes, sentence: str, good: Files, tmp_path: Path, refused: Any
) -> None:
    refused(pack(with_file(good, name, content), tmp_path / "bad.zip"), sentence)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_pickles_under_a_safe_name(name: str, good: Files, tmp_path: Path, refused: Any) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, buffer)
    for content in (pickle.dumps(Evil()), buffer.getvalue()):
        files = with_file(good, name, content)
        refused(pack(files, tmp_path / "bad.zip"), f"step-000003/{name} in it does not hold tensors")
    assert not Path("/tmp/lab-archive-was-here").exists()


def test_a_million_tensors_of_nothing(good: Files, tmp_path: Path, refused: Any) -> None:
    header = json.dumps({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(40_000)})
    content = struct.pack("<Q", len(header)) + header.encode()
    refused(pack(with_file(good, "model.safetensors", content), tmp_path / "bad.zip"), "names more tensors than")


def with_file(good: Files, name: str, content: bytes) -> Files:
    """The checkpoint with another file in it, and a manifest that says so."""
    manifest = json.loads(good[f"{STEP}/manifest.json"])
    manifest["files"][name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    return {**good, f"{STEP}/{name}": content, f"{STEP}/manifest.json": json.dumps(manifest).encode()}


def test_checkpoints_that_are_not_what_their_manifest_says(good: Files, tmp_path: Path, refused: Any) -> None:
    path, model = tmp_path / "bad.zip", good[f"{STEP}/model.safetensors"]
    manifest = json.loads(good[f"{STEP}/manifest.json"])
    refused(pack({**good, f"{STEP}/model.safetensors": model[:-1] + b"!"}, path), "not those that its manifest names")
    refused(pack({**good, f"{STEP}/model.safetensors": model + b"!"}, path), "bytes instead of")
    for name in (f"{STEP}/manifest.json", f"{STEP}/optimizer.safetensors", f"{STEP}/state.json"):
        refused(pack({k: v for k, v in good.items() if k != name}, path), "is missing")
    for spoilt, sentence in (
        (manifest | {"format": 99}, "another version"),
        (manifest | {"step": 4}, "another step"),
        (manifest | {"files": {}}, "damaged"),
        (manifest | {"progress": {"step": 3, "train_loss": "low"}}, "not made of numbers"),
        (manifest | {"extra": float("nan")}, "no JSON"),
        (manifest | {"arithmetic": {"GPU": 5}}, "step-000003/manifest.json is no list of short texts"),
    ):
        refused(pack({**good, f"{STEP}/manifest.json": json.dumps(spoilt).encode()}, path), sentence)
    refused(pack(with_file(good, "state.json", b'{"position": Infinity}'), path), "no JSON")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schema_version": 2}, "not of version 1"),
        ({"schema_version": None}, "not of version 1"),
        ({"id": "../x"}, "not the id of a run"),
        ({"id": ".hidden"}, "not the id of a run"),
        ({"id": "a" * 300}, "not the id of a run"),
        ({"id": 5}, "id in its run.json is not a text"),
        ({"state": "winning"}, "state"),
        ({"tags": [1]}, "tags"),
        ({"total_steps": 10.5}, "not a whole number"),
        ({"total_steps": True}, "not a whole number"),
        ({"windows": -1}, "below zero"),
        ({"config": []}, "config in its run.json is not an object"),
        ({"config": {"batch_size": 0, "epochs": -1}}, "out of range"),
        ({"parent": {"run": 1}}, "run in its run.json is not a text"),
        ({"environment": {"machine": "fast"}}, "machine"),
        ({"arithmetic": {"GPU": ["fast"]}}, "arithmetic in run.json is no list of short texts"),
        ({"arithmetic": ["fast"]}, "arithmetic in run.json is no list of short texts"),
        ({"arithmetic": {"GPU": "x" * 200_000}}, "arithmetic in run.json is no list of short texts"),
        ({"corpus_sha256": "../../x"}, "no SHA-256"),
        ({"progress": {"step": "x"}}, "not made of numbers"),
        ({"progress": {"train_loss": float("nan")}}, "no JSON of the lab's kind"),
        ({"progress": {"train_loss": float("inf")}}, "no JSON of the lab's kind"),
        ({"progress": {"step": 2**63}}, "no JSON of the lab's kind"),
        ({"progress": {"step": 10**4000}}, "no JSON of the lab's kind"),
    ],
)
def test_a_wrong_run_json(changes: dict[str, Any], sentence: str, good: Files, tmp_path: Path, refused: Any) -> None:
    info = json.loads(good["run.json"]) | changes
    refused(pack({**good, "run.json": json.dumps(info).encode()}, tmp_path / "bad.zip"), sentence)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b'{"a": 1e999}', b"[" * 100_000, b'{"a":' * 100_000, b"\x80\x04."]
)
def test_a_run_json_that_is_none(content: bytes, good: Files, tmp_path: Path, refused: Any) -> None:
    refused(pack({**good, "run.json": content}, tmp_path / "bad.zip"), "its run.json is no JSON")


def parquet(table: pa.Table, **how: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **how)
    return sink.getvalue()


def rows(schema: pa.Schema, **columns: Any) -> pa.Table:
    return pa.table({name: pa.array(values, schema.field(name).type) for name, values in columns.items()})


def test_tables_that_are_none_of_a_run(good: Files, tmp_path: Path, refused: Any, monkeypatch: Any) -> None:
    path, steps = tmp_path / "bad.zip", rows(METRICS, step=[1, 2])
    cases = {
        b"PAR1nothingPAR1": "no table that can be read",
        good["metrics.parquet"][:-40] + good["metrics.parquet"][-8:]: "no table that can be read",
        parquet(steps.append_column("evil", [["a", "b"]])): "'evil'",
        parquet(steps.append_column("train_loss", [["a", "b"]])): "'train_loss'",
        parquet(steps, compression="zstd"): "does not use",
        parquet(rows(METRICS, train_loss=[1.0])): "no column for the step",
        parquet(rows(METRICS, step=[2, 2])): "do not rise",
        parquet(rows(METRICS, step=[1, None])): "do not rise",
        parquet(rows(METRICS, step=[-5])): "do not rise",
        parquet(rows(METRICS, step=[1], time=[2**62])): "out of range",
    }
    for content, sentence in cases.items():
        refused(pack({**good, "metrics.parquet": content}, path), sentence)
    refused(pack({k: v for k, v in good.items() if k != "samples.parquet"}, path), "no samples.parquet")
    monkeypatch.setattr(archive_checks, "MOST_ROWS", 1)
    refused(pack(good, path), "more than 1 rows")


def test_tables_that_would_end_or_fill_the_process(good: Files, tmp_path: Path, refused: Any) -> None:
    """Arrow ends its process over a codec that does not exist, and a file may say that it has a million parts."""
    (tmp_path / "samples.parquet").write_bytes(good["samples.parquet"])
    content = parquet(rows(METRICS, step=[1, 2]), compression="none")
    codec = b"\x19\x18\x04step\x15\x00"
    assert content.count(codec) == 1
    for spoilt, sentence in (
        (content.replace(codec, codec[:-1] + b"\x40"), "it has a table that cannot be read"),
        (parquet(rows(METRICS, step=[2, 2])), "its metrics.parquet do not rise"),
    ):
        (tmp_path / "metrics.parquet").write_bytes(spoilt)
        with pytest.raises(RunError, match=sentence):
            check_tables_apart(tmp_path)
    many = parquet(rows(METRICS, step=range(10_000)), row_group_size=1)
    refused(pack({**good, "metrics.parquet": many}, tmp_path / "bad.zip"), "more parts than a run's")
    torn = bytearray(parquet(rows(METRICS, step=range(300), epoch=[0.5] * 300), compression="none"))
    assert torn.count(b"\x05epoch\x15\x00\x16\xd8\x04") == 1  # its column holds 300 values
    torn = torn.replace(b"\x05epoch\x15\x00\x16\xd8\x04", b"\x05epoch\x15\x00\x16\x00\x00")
    refused(pack({**good, "metrics.parquet": bytes(torn)}, tmp_path / "bad.zip"), "no table that can be read")


def test_a_text_repeated_into_gigabytes(good: Files, tmp_path: Path, refused: Any) -> None:
    """A dictionary holds it once: the file is small, the table that a reader would make of it is not."""
    count = 2000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), ["x" * 1_000_000])
    table = rows(SAMPLES, step=range(count)).append_column("text", texts)
    content = parquet(table, dictionary_pagesize_limit=10**8, store_schema=False)
    assert len(content) < 1_000_000
    started = time.process_time()  # of this process alone: others may be at work
    refused(pack({**good, "samples.parquet": content}, tmp_path / "bad.zip"), "more text than 256 MiB")
    assert time.process_time() - started < 2


def test_labels_that_are_none(good: Files, tmp_path: Path, refused: Any) -> None:
    for content in (b"[]", b'{"name": NaN}', pickle.dumps(Evil())):
        refused(pack({**good, "labels.json": content}, tmp_path / "bad.zip"), "its labels.json is no JSON")


def test_events_that_are_none(good: Files, tmp_path: Path, refused: Any) -> None:
    for content, sentence in ((b'{"time": 1}\n', "line 1"), (b"\xff\xfe", "damaged"), (b'{"step": NaN}', "line 1")):
        refused(pack({**good, "events.jsonl": content}, tmp_path / "bad.zip"), sentence)


def test_files_that_are_no_archive(good: Files, tmp_path: Path, refused: Any, capsys: Any) -> None:
    path = pack(good, tmp_path / "bad.zip")
    whole = path.read_bytes()
    end = whole.rindex(b"PK\5\6")
    for content in (
        b"",
        b"PK",
        b"PK\5\6" + bytes(18) + b"x",
        b"\x1f\x8b not a zip",
        pickle.dumps(Evil()),
        whole[: len(whole) // 2],
        whole[:-1],
        whole[100:],
        whole.replace(b"PK\1\2", b"PK\1\3", 1),
        whole[: end + 16] + struct.pack("<L", 2**31) + whole[end + 20 :],  # where the directory is
        whole[: end + 12] + struct.pack("<L", 2**31) + whole[end + 16 :],  # how large it is
        whole.replace(json.loads(good["run.json"])["id"].encode(), b"x" * 30, 1),  # a wrong CRC
    ):
        path.write_bytes(content)
        refused(path, "cannot be imported")
    path.write_bytes(b"PK\5\6" + bytes(18))
    refused(path, "holds no run.json")
    refused(tmp_path / "absent.zip", "No such file")
    refused(tmp_path, "directory")


def test_an_encrypted_archive(good: Files, tmp_path: Path, refused: Any) -> None:
    path = pack(good, tmp_path / "bad.zip")
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + place] |= 1
    path.write_bytes(content)
    refused(path, "encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(method: int, good: Files, tmp_path: Path, refused: Any) -> None:
    refused(pack(good, tmp_path / "bad.zip", method), "compressed in a way")


@pytest.mark.usefixtures("one_weight")
def test_any_flipped_byte_is_refused_or_harmless(good: Files, tmp_path: Path, runs_folder: Path) -> None:
    """No other error than the sentence, wherever an archive is damaged."""
    path = pack(good, tmp_path / "bad.zip", zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 120):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        before = {folder.name for folder in runs_folder.iterdir()}
        try:
            run = import_archive(path)
        except RunError as error:
            assert "cannot be imported" in str(error)
            assert {folder.name for folder in runs_folder.iterdir()} == before
        else:
            assert not run.problems  # a byte that means nothing, such as one of a date


@pytest.mark.usefixtures("one_weight")
def test_what_a_killed_import_left_is_removed_by_the_next(good: Files, tmp_path: Path, runs_folder: Path) -> None:
    for name, age in ((".import-old", 7200), (".import-new", 5)):
        (runs_folder / name).mkdir()
        os.utime(runs_folder / name, (time.time() - age,) * 2)
    import_archive(pack(good, tmp_path / "good2.zip"))
    assert [path.name for path in runs_folder.glob(".import-*")] == [".import-new"]


def test_the_commands_need_no_torch(good: Files, tmp_path: Path) -> None:
    pack(good, tmp_path / "good2.zip")
    code = (
        "import sys\nfrom engine import checkpoint_layout\nfrom engine.cli.runs import main\n"
        "checkpoint_layout.weight_shapes = lambda _: {'w': (3,)}\n"
        f"main(['import', {str(tmp_path / 'good2.zip')!r}])\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert result.stdout.startswith("Imported ") and result.stdout.endswith("False\n"), result.stderr
