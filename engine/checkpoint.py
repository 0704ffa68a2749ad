"""Checkpoints: everything needed to continue a run exactly, in files that hold numbers and no code.

    step-000400/model.safetensors       weights, fp32
                optimizer.safetensors   optimizer state, and the RNG states as bytes
                state.json              counters, data position, optimizer scalars, gradient scaler
                manifest.json           step, losses, config, what computed it, and size and SHA-256 of the files above

A checkpoint is written beside its place and renamed into it, so one that has a name is whole. Sizes are checked when
checkpoints are listed, hashes when one is loaded. Listing needs no torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import CheckpointError
from engine.files import fsync_folder, object_in, read_json, remove_folder, remove_trash

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_FOLDER = re.compile(r"step-(\d{6,12})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as a list shows it.

    Attributes:
        path: its folder.
        step: optimizer steps done when it was saved.
        bytes: size of its files together.
        progress: step, epoch, tokens, elapsed_s, train_loss, val_loss and so on at that step.
        saved: when, in UTC.
        arithmetic: what computed it, see `engine.arithmetic`; {} when it does not say.
        problem: "" when it is whole as far as sizes tell, else what is wrong with it.
    """

    path: Path
    step: int
    bytes: int
    progress: Mapping[str, Any]
    saved: str
    problem: str = ""
    arithmetic: Mapping[str, str] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """The run it belongs to."""
        return self.path.parent.parent.name


@dataclass
class Contents:
    """What a checkpoint holds, in memory.

    Attributes:
        model: name -> weight.
        optimizer: name -> tensor; RNG states are among them.
        state: counters and scalars, plain JSON.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def has_checkpoints(run_folder: Path) -> bool:
    """Whether `list_checkpoints` finds any, damaged or whole; reads none."""
    try:
        return any(_FOLDER.fullmatch(name) for name in os.listdir(run_folder / "checkpoints"))
    except OSError:
        return False


def list_checkpoints(run_folder: Path) -> list[Checkpoint]:
    """All checkpoints of a run by step, the damaged ones marked. Never raises because of what is on disk."""
    try:
        folders = [p for p in (run_folder / "checkpoints").iterdir() if _FOLDER.fullmatch(p.name)]
    except OSError:
        return []
    return sorted((_describe(folder) for folder in folders), key=lambda checkpoint: checkpoint.step)


def _describe(folder: Path) -> Checkpoint:
    step = int(folder.name.removeprefix("step-"))
    manifest = read_json(folder / "manifest.json")
    try:
        if manifest is None:
            raise CheckpointError("its manifest.json is missing or damaged")
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"it was written by another version of the lab (format {manifest['format']})")
        if manifest["step"] != step:
            raise CheckpointError("its manifest belongs to another step")
        for name in FILES:
            _check_size(folder / name, manifest["files"][name]["bytes"])
        size = sum(int(manifest["files"][name]["bytes"]) for name in FILES)
        progress = dict(manifest["progress"])
        if progress["step"] != step:
            raise CheckpointError("its manifest belongs to another step")
        arithmetic = {name: str(value) for name, value in object_in(manifest, "arithmetic").items()}
        return Checkpoint(folder, step, size, progress, str(manifest["saved"]), arithmetic=arithmetic)
    except CheckpointError as error:
        return Checkpoint(folder, step, 0, {}, "", str(error))
    except (KeyError, TypeError, ValueError):
        return Checkpoint(folder, step, 0, {}, "", "its manifest.json is damaged")


def _check_size(path: Path, expected: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path.name} is missing") from error
    if found != expected:
        raise CheckpointError(f"{path.name} has {found:,} bytes instead of {expected:,}")


def find_checkpoint(run_folder: Path, step: int | None = None) -> Checkpoint:
    """The newest whole checkpoint, or the one of a given step.

    Raises:
        CheckpointError: there is none, or the one asked for is damaged.
    """
    found = list_checkpoints(run_folder)
    whole = [c for c in found if not c.problem]
    if step is None:
        if not whole:
            return find_sound_checkpoint(run_folder)[0]  # it says why there is none
        return whole[-1]
    for checkpoint in found:
        if checkpoint.step == step:
            if checkpoint.problem:
                raise CheckpointError(_damaged(checkpoint, checkpoint.problem))
            return checkpoint
    steps = ", ".join(str(c.step) for c in whole) or "none"
    raise CheckpointError(f"Run {run_folder.name} has no checkpoint at step {step}; it has: {steps}.")


def find_sound_checkpoint(run_folder: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint whose hashes are right, and a sentence for each newer one that was passed over.

    Raises:
        CheckpointError: there is none.
    """
    passed_over: list[str] = []
    for checkpoint in reversed(list_checkpoints(run_folder)):
        try:
            verify(checkpoint)
        except CheckpointError as error:
            passed_over.append(str(error))
        else:
            return checkpoint, passed_over
    if passed_over:
        raise CheckpointError(passed_over[0])
    raise CheckpointError(f"Run {run_folder.name} has no checkpoint yet, so it has to be started anew.")


def _damaged(checkpoint: Checkpoint, problem: str) -> str:
    if not checkpoint.path.exists():  # a run that trains keeps its newest only
        return f"Checkpoint {checkpoint.path.name} of run {checkpoint.run_id} is not there any more. Use another one."
    return (
        f"Checkpoint {checkpoint.path.name} of run {checkpoint.run_id} is damaged: {problem}. "
        "Use another checkpoint, or delete this one."
    )


def verify(checkpoint: Checkpoint, names: Sequence[str] = FILES) -> None:
    """Compare the SHA-256 of every file, or of some of them, with the manifest.

    Raises:
        CheckpointError: something is missing, was changed, or is no checkpoint at all.
    """
    manifest = read_json(checkpoint.path / "manifest.json")
    if checkpoint.problem or manifest is None:
        raise CheckpointError(_damaged(checkpoint, checkpoint.problem or "its manifest.json is missing"))
    for name in names:
        try:
            with (checkpoint.path / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            expected = manifest["files"][name]["sha256"]
        except (OSError, KeyError, TypeError) as error:
            raise CheckpointError(_damaged(checkpoint, f"{name} cannot be read")) from error
        if digest != expected:
            raise CheckpointError(_damaged(checkpoint, f"the content of {name} was changed after it was saved"))


def _is_sound(checkpoint: Checkpoint) -> bool:
    try:
        verify(checkpoint)
    except CheckpointError:
        return False
    return True


def load(checkpoint: Checkpoint, *, weights_only: bool = False) -> Contents:
    """Verify a checkpoint and read it.

    Args:
        checkpoint: which.
        weights_only: leave the optimizer out; its file is not even verified, and is two thirds of all.

    Raises:
        CheckpointError: it is damaged, or holds anything but tensors (a pickle is never opened).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    verify(checkpoint, [name for name in FILES if not (weights_only and name.startswith("optimizer"))])
    try:
        model = load_file(checkpoint.path / "model.safetensors")
        optimizer = {} if weights_only else load_file(checkpoint.path / "optimizer.safetensors")
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(_damaged(checkpoint, "its tensors are not in safetensors format")) from error
    state = read_json(checkpoint.path / "state.json")
    if state is None:
        raise CheckpointError(_damaged(checkpoint, "state.json is damaged"))
    return Contents(model, optimizer, state)


def save(
    run_folder: Path,
    contents: Contents,
    progress: Mapping[str, Any],
    config: Mapping[str, Any],
    arithmetic: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Write a checkpoint for the step in `progress`, whole or not at all.

    A run passes each step once, so a sound checkpoint that is there already holds the same state and is kept.

    Args:
        run_folder: of the run.
        contents: weights, optimizer and counters.
        progress: step, losses and so on, for lists.
        config: the settings it was trained with, so that the folder can be understood alone.
        arithmetic: what computed it, see `engine.arithmetic`.

    Raises:
        OSError: the disk is full or cannot be written; nothing is left behind.
    """
    from safetensors.torch import save_file

    step = int(progress["step"])
    parent = run_folder / "checkpoints"
    parent.mkdir(exist_ok=True)
    remove_leftovers(run_folder)
    target = parent / f"step-{step:06d}"
    if target.exists():
        existing = _describe(target)
        if _is_sound(existing):
            return existing
        remove_folder(target)
    temporary = parent / f".part-{target.name}-{os.getpid()}"
    temporary.mkdir()
    try:
        _save_tensors(save_file, contents.model, temporary / "model.safetensors")
        _save_tensors(save_file, contents.optimizer, temporary / "optimizer.safetensors")
        _write_text(temporary / "state.json", contents.state)
        files = {name: _measure(temporary / name) for name in FILES}
        saved = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        manifest = {
            "format": FORMAT,
            "step": step,
            "saved": saved,
            "progress": dict(progress),
            "config": dict(config),
            "arithmetic": dict(arithmetic or {}),
            "files": files,
        }
        _write_text(temporary / "manifest.json", manifest)
        fsync_folder(temporary)
        temporary.rename(target)
        fsync_folder(parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Checkpoint(
        target, step, sum(f["bytes"] for f in files.values()), dict(progress), saved, arithmetic=dict(arithmetic or {})
    )


def _save_tensors(save_file: Any, tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors import SafetensorError

    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # it wraps the system's error in words; what it was matters to the user
        free = shutil.disk_usage(path.parent).free
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise OSError(errno.EIO, str(error), str(path)) from error
    _fsync(path)


def _write_text(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    _fsync(path)


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _measure(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def remove_leftovers(run_folder: Path) -> None:
    """Delete what a killed process left half-written or half-deleted. Only the holder of the run's lock may."""
    remove_trash(run_folder / "checkpoints")
    for path in (run_folder / "checkpoints").glob(".part-*"):
        shutil.rmtree(path, ignore_errors=True)


def prune(run_folder: Path, keep: int) -> None:
    """Delete all whole checkpoints but the newest `keep`; 0 keeps all."""
    if keep:
        for checkpoint in [c for c in list_checkpoints(run_folder) if not c.problem][:-keep]:
            remove_folder(checkpoint.path)


def forget_after(run_folder: Path, step: int) -> None:
    """Delete the checkpoints after a step: a run that is resumed from there makes them anew."""
    for checkpoint in list_checkpoints(run_folder):
        if checkpoint.step > step:
            remove_folder(checkpoint.path)
