"""engine.arithmetic: what is told of the processes that compute a run, and when it is another one."""

from __future__ import annotations

import pytest
import torch

from engine import cublaslt
from engine.accelerate import compiles
from engine.arithmetic import OWN_VERSION, arithmetic, of_all_ranks, rounds_otherwise
from engine.config import TrainConfig
from engine.kernels import Kernels
from engine.plan import Plan, make_plan


def plan(**changes: object) -> Plan:
    settings: dict[str, object] = {"config": "nano", "device": "cpu", "precision": "fp32"} | changes
    return make_plan(TrainConfig(**settings), 10_000, 1000)  # type: ignore[arg-type]


def test_a_cpu_is_told_by_name_and_instructions() -> None:
    told = arithmetic(plan(), Kernels())
    assert set(told) == {"PyTorch", "processor"} and torch.backends.cpu.get_cpu_capability() in told["processor"]
    assert set(arithmetic(plan(optimizer="adamw_8bit"), Kernels())) == {*told, "bitsandbytes"}


@pytest.mark.parametrize(("compile", "blocks"), [("on", "compiled"), ("off", "not compiled")])
def test_a_gpu_with_its_libraries_and_whose_kernels(compile: str, blocks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L4")
    monkeypatch.setattr(cublaslt, "cublas_version", lambda: "130100")
    asked = plan(device="cuda:0", precision="bf16", compile=compile)
    told = arithmetic(asked, Kernels(names={"loss": "Triton"}))
    assert list(told) == ["PyTorch", "GPU", "CUDA", "cuBLAS", "cuDNN", "Triton", "loss", OWN_VERSION, "blocks"]
    assert (told["GPU"], told["cuBLAS"], told["loss"], told["blocks"]) == ("NVIDIA L4", "130100", "Triton", blocks)
    assert all(isinstance(value, str) for value in told.values())
    assert compiles(asked, torch.device("cuda")) == (blocks == "compiled")


def test_of_other_ranks_what_is_different_there() -> None:
    ranks = [
        ({"GPU": "A", "loss": "Triton"}, ["no cuBLASLt"]),
        ({"GPU": "A", "loss": "Triton"}, ["no cuBLASLt"]),
        ({"GPU": "B", "loss": "PyTorch"}, ["no cuBLASLt", "no Triton"]),
    ]
    facts, sentences = of_all_ranks(ranks)
    assert facts == {"GPU": "A", "loss": "Triton", "GPU of rank 2": "B", "loss of rank 2": "PyTorch"}
    assert sentences == ("no cuBLASLt", "Rank 2: no Triton")
    assert of_all_ranks(ranks[:1]) == ({"GPU": "A", "loss": "Triton"}, ("no cuBLASLt",))


def test_each_change_is_named() -> None:
    assert rounds_otherwise({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == ""
    assert rounds_otherwise({}, {"a": "1"}) == ""  # an older checkpoint does not say
    told = rounds_otherwise({"a": "1", "b": "2"}, {"b": "3", "c": "4"})
    assert ": a none instead of 1; b 3 instead of 2; c 4 instead of none. From" in told


def test_a_kernel_that_an_older_checkpoint_does_not_name_was_pytorchs() -> None:
    before = {"PyTorch": "2.11", "attention": "Triton"}
    assert rounds_otherwise(before, before | {"products": "PyTorch"}) == ""
    assert "products cuBLASLt instead of PyTorch." in rounds_otherwise(before, before | {"products": "cuBLASLt"})
    assert "the lab's kernels, version 2 instead of 1." in rounds_otherwise(before, before | {OWN_VERSION: "2"})
