"""engine.checkpoint: whole or not there; damage is told in a sentence; nothing in it is ever executed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from engine.checkpoint import (
    FILES,
    Contents,
    find_checkpoint,
    find_sound_checkpoint,
    forget_after,
    list_checkpoints,
    load,
    prune,
    save,
)
from engine.errors import CheckpointError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "20261122-153012-nano-tiny-7f3a"
    folder.mkdir()
    return folder


def contents(step: int = 1) -> Contents:
    g = torch.Generator().manual_seed(step)
    model = {"weight": torch.randn(17, 5, generator=g), "transposed": torch.randn(3, 4, generator=g).T}
    optimizer = {
        "0/exp_avg": torch.randn(17, 5, generator=g),
        "0/state1": torch.randint(256, (40,), dtype=torch.uint8, generator=g),
        "0/step": torch.tensor(3.0),
        "rng.cpu": torch.get_rng_state(),
    }
    return Contents(model, optimizer, {"step": step, "position": 4 * step, "optimizer": {"0/n": 7}, "scaler": {}})


def save_step(run: Path, step: int) -> Path:
    return save(run, contents(step), {"step": step, "position": 4 * step, "train_loss": 1.5}, {"seed": 1}).path


def steps(run: Path) -> list[int]:
    return [c.step for c in list_checkpoints(run) if not c.problem]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_was_saved_is_loaded_bit_for_bit(run: Path) -> None:
    expected = contents(7)
    saved = save(run, expected, {"step": 7, "train_loss": 1.5}, {"seed": 1})
    listed = find_checkpoint(run)
    assert listed == saved
    assert (listed.step, listed.run_id, listed.problem) == (7, run.name, "")
    assert listed.progress == {"step": 7, "train_loss": 1.5}
    assert listed.bytes == sum((listed.path / name).stat().st_size for name in FILES)
    found = load(listed)
    assert found.state == expected.state
    for group, original in ((found.model, expected.model), (found.optimizer, expected.optimizer)):
        assert group.keys() == original.keys()
        for name, tensor in original.items():
            assert group[name].dtype == tensor.dtype and torch.equal(group[name], tensor), name


def test_nan_and_subnormal_weights_come_back_too(run: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    save(run, Contents({"w": odd}, {}, {}), {"step": 1}, {})
    back = load(find_checkpoint(run)).model["w"]
    assert torch.equal(back.view(torch.int32), odd.view(torch.int32))


def test_weights_alone(run: Path) -> None:
    save_step(run, 1)
    found = load(find_checkpoint(run), weights_only=True)
    assert found.optimizer == {} and found.model.keys() == contents().model.keys()


def test_checkpoints_are_listed_by_step(run: Path) -> None:
    for step in (1_000_000, 20, 999_999, 3):
        save_step(run, step)
    assert steps(run) == [3, 20, 999_999, 1_000_000]
    assert find_checkpoint(run).step == 1_000_000
    assert find_checkpoint(run, 20).step == 20


def test_a_folder_without_checkpoints(run: Path) -> None:
    assert list_checkpoints(run) == []
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        find_checkpoint(run)
    (run / "checkpoints").write_text("a file in place of the folder")
    assert list_checkpoints(run) == []


def test_an_absent_step_is_told_with_those_there_are(run: Path) -> None:
    for step in (10, 20):
        save_step(run, step)
    with pytest.raises(CheckpointError, match="no checkpoint at step 15; it has: 10, 20"):
        find_checkpoint(run, 15)


def test_foreign_folders_are_not_listed(run: Path) -> None:
    save_step(run, 5)
    for name in ("step-5", "step-00000x", "backup", ".part-step-000009-1", "step-000005.old"):
        (run / "checkpoints" / name).mkdir()
    assert [c.step for c in list_checkpoints(run)] == [5]


# ------------------------------------------------------------------------------------------------ damage


def flip_byte(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def change_manifest(folder: Path, **values: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "a folder"])
def test_a_wrong_size_is_seen_in_the_list(damage: str, name: str, run: Path) -> None:
    path = save_step(run, 5) / name
    if damage == "truncated":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
            (path / "x").write_text("x")
    check_listed_as_damaged(run, name)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text(""),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "manifest.json").write_bytes(b"\x80\x04\x95"),
        lambda folder: change_manifest(folder, step=6),
        lambda folder: change_manifest(folder, step=None),
        lambda folder: change_manifest(folder, format=99),
        lambda folder: change_manifest(folder, files={}),
        lambda folder: change_manifest(folder, files=[1]),
        lambda folder: change_manifest(folder, files={name: {"bytes": "x"} for name in FILES}),
        lambda folder: change_manifest(folder, files={name: {"bytes": None} for name in FILES}),
        lambda folder: change_manifest(folder, progress=3),
    ],
)
def test_a_manifest_that_is_not_its_own_is_seen_in_the_list(damage: Callable[[Path], Any], run: Path) -> None:
    damage(save_step(run, 5))
    check_listed_as_damaged(run, "")


def check_listed_as_damaged(run: Path, name: str) -> None:
    (listed,) = list_checkpoints(run)
    assert listed.step == 5 and listed.problem and name in listed.problem and "\n" not in listed.problem
    for refused in (lambda: find_checkpoint(run), lambda: find_checkpoint(run, 5), lambda: load(listed)):
        with pytest.raises(CheckpointError) as caught:
            refused()
        assert listed.problem in str(caught.value) and "\n" not in str(caught.value)


def test_a_manifest_of_another_checkpoint(run: Path) -> None:
    other = save_step(run, 6)
    mine = save_step(run, 5)
    shutil.copy(other / "manifest.json", mine / "manifest.json")
    assert list_checkpoints(run)[0].problem == "its manifest belongs to another step"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("at", [0, 20, -1])
def test_a_flipped_byte_is_found_by_its_hash(name: str, at: int, run: Path) -> None:
    flip_byte(save_step(run, 5) / name, at)
    with pytest.raises(CheckpointError) as caught:
        load(find_checkpoint(run))
    message = str(caught.value)
    assert name in message and "step-000005" in message and run.name in message and "\n" not in message


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "torch.save"])
def test_a_pickle_is_never_opened_even_if_the_manifest_vouches_for_it(
    name: str, kind: str, run: Path, tmp_path: Path
) -> None:
    proof = tmp_path / "it-ran"
    pickle.loads(pickle.dumps(Bomb(proof)))
    assert proof.exists()  # the bomb works
    proof.unlink()
    folder = save_step(run, 5)
    if kind == "pickle":
        (folder / name).write_bytes(pickle.dumps(Bomb(proof)))
    else:
        torch.save({"weight": Bomb(proof)}, folder / name)
    vouch(folder, name)
    with pytest.raises(CheckpointError, match="not in safetensors format"):
        load(find_checkpoint(run))
    assert not proof.exists()


def vouch(folder: Path, name: str) -> None:
    """Make the manifest fit a file that was put in place of another."""
    content = (folder / name).read_bytes()
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change_manifest(folder, files=files)


def test_a_state_that_is_no_json(run: Path) -> None:
    folder = save_step(run, 5)
    (folder / "state.json").write_text("[1, 2")
    vouch(folder, "state.json")
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        load(find_checkpoint(run))


def test_a_damaged_newest_one_leaves_the_one_before(run: Path) -> None:
    save_step(run, 5)
    os.truncate(save_step(run, 6) / "model.safetensors", 10)
    assert find_checkpoint(run).step == 5


# ---------------------------------------------------------------------------------- writing and deleting


def test_a_sound_checkpoint_is_kept_and_a_damaged_one_is_replaced(run: Path) -> None:
    folder = save_step(run, 5)
    before = (folder / "manifest.json").stat().st_mtime_ns
    save_step(run, 5)
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    flip_byte(folder / "model.safetensors")
    save_step(run, 5)
    assert torch.equal(load(find_checkpoint(run, 5)).model["weight"], contents(5).model["weight"])


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def fail_at(call: int, really: Callable[..., Any]) -> Callable[..., Any]:
    """`really`, but with a full disk from its `call`-th call on."""
    count = 0

    def function(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return full() if count >= call else really(*args, **kwargs)

    return function


@pytest.mark.parametrize(
    ("what", "call"),
    [
        *(("safetensors", n) for n in (1, 2)),
        *(("text", n) for n in (1, 2)),
        *(("fsync", n) for n in range(1, 6)),
        ("rename", 1),
        ("mkdir", 2),
    ],
)
def test_an_interrupted_save_leaves_nothing_behind(
    what: str, call: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_step(run, 5)
    before = everything(run)
    with monkeypatch.context() as patch:
        if what == "safetensors":
            patch.setattr(safetensors.torch, "save_file", fail_at(call, safetensors.torch.save_file))
        elif what == "fsync":
            patch.setattr(os, "fsync", fail_at(call, os.fsync))
        else:
            name = "write_text" if what == "text" else what
            patch.setattr(Path, name, fail_at(call, getattr(Path, name)))
        with pytest.raises(OSError, match="No space left"):
            save_step(run, 6)
    assert everything(run) == before
    assert os.listdir(run / "checkpoints") == ["step-000005"]
    save_step(run, 6)
    assert steps(run) == [5, 6]


def test_what_safetensors_says_of_a_failed_write_is_passed_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wraps the system's error in words of its own; these are the words of the pinned version."""

    def wrapped(*_: Any) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", wrapped)
    with pytest.raises(OSError, match="No space left on device"):
        save_step(run, 6)
    assert os.listdir(run / "checkpoints") == []


def test_what_a_killed_process_left_is_swept_by_the_next_save(run: Path) -> None:
    save_step(run, 5)
    for name in (".part-step-000006-123", ".trash-step-000004-99"):
        (run / "checkpoints" / name).mkdir()
        (run / "checkpoints" / name / "model.safetensors").write_bytes(b"half")
    assert steps(run) == [5]
    save_step(run, 6)
    assert sorted(os.listdir(run / "checkpoints")) == ["step-000005", "step-000006"]


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3, 4]), (1, [4]), (3, [2, 3, 4]), (9, [1, 2, 3, 4])])
def test_pruning_keeps_the_newest(keep: int, left: list[int], run: Path) -> None:
    for step in (1, 2, 3, 4):
        save_step(run, step)
    prune(run, keep)
    assert steps(run) == left


def test_pruning_counts_whole_ones_only(run: Path) -> None:
    for step in (1, 2, 3):
        save_step(run, step)
    os.truncate(run / "checkpoints" / "step-000003" / "model.safetensors", 10)
    prune(run, 1)
    assert steps(run) == [2]


def test_the_newest_sound_one_is_found_and_the_others_are_named(run: Path) -> None:
    """Sizes are right in all of them; only the hashes tell."""
    for step in (1, 2, 3):
        save_step(run, step)
    flip_byte(run / "checkpoints" / "step-000003" / "optimizer.safetensors")
    found, passed_over = find_sound_checkpoint(run)
    assert found.step == 2
    assert len(passed_over) == 1 and "step-000003" in passed_over[0] and "optimizer.safetensors" in passed_over[0]


def test_forgetting_what_comes_after_a_step(run: Path) -> None:
    for step in (1, 2, 3):
        save_step(run, step)
    forget_after(run, 2)
    assert steps(run) == [1, 2]
