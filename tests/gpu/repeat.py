"""Hold training on a GPU to its promise that it repeats bit for bit, and print what was found, one JSON object a line.

    python tests/gpu/repeat.py > tests/data/h100_repeat.jsonl                                # about five minutes

Attention by our own kernels beside float64, and the same thing several times. Then real runs through `engine.train`, at
contexts and batches of which PyTorch's own kernels do not repeat: one unbroken, one stopped and resumed, their losses
and weights compared bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["LAB_RUNS"] = tempfile.mkdtemp(prefix="repeat-")
os.environ["LAB_CORPORA"] = os.path.join(os.environ["LAB_RUNS"], "corpora")

import torch
from torch.nn import functional as F

from engine import (
    TrainConfig,
    attention_cuda,
    cublaslt,
    embedding_triton,
    linear_cuda,
    norm_triton,
    perceptron_cuda,
    resume_run,
    train,
)
from engine.attention import manual_attention
from engine.loss import linear_cross_entropy
from engine.norm import Added, add_and_norm
from engine.run import Run
from engine.start import new_run
from tests.gpu.parts import Part, print_found
from tests.gpu.two_gpus import make_corpus
from tests.stop_at import StopAt

STEPS, STOP = 12, 5
SHAPES = [(4, 256, 5, 32), (2, 1024, 12, 64), (64, 1024, 12, 64), (3, 1000, 2, 64), (2, 77, 3, 64), (2, 300, 2, 128)]
RUNS: list[dict[str, Any]] = [
    {"config": "nano", "precision": "bf16", "compile": "auto", "batch_size": 64},
    {"config": "medium", "precision": "bf16", "compile": "off", "batch_size": 4},
    {"config": "medium", "precision": "bf16", "compile": "off", "batch_size": 32},
    {"config": "medium", "precision": "bf16", "compile": "on", "batch_size": 32},
    {"config": "medium", "precision": "bf16", "compile": "off", "batch_size": 64},
    {"config": "medium", "precision": "bf16", "compile": "off", "batch_size": 8, "dropout": 0.1},
    {"config": "medium", "precision": "bf16", "compile": "on", "batch_size": 8, "dropout": 0.1},
    {"config": "medium", "precision": "bf16", "compile": "off", "batch_size": 8, "gradient_checkpointing": True},
    {"config": "medium", "precision": "bf16", "compile": "off", "batch_size": 4, "attention_impl": "manual"},
    {"config": "medium", "precision": "bf16", "compile": "off", "batch_size": 8, "grad_accum_steps": 2},
    {"config": "medium", "precision": "fp16", "compile": "off", "batch_size": 8},
    {"config": "medium", "precision": "fp32", "compile": "off", "batch_size": 8},
    {"config": "medium", "precision": "fp8", "compile": "off", "batch_size": 8},
    {"config": "large", "precision": "bf16", "compile": "off", "batch_size": 8},
]


def attention_part(_: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Attention's result and gradients: see `_found`."""
    for dtype in (torch.bfloat16, torch.float16):
        for shape in SHAPES:
            yield {"shape": shape, "dtype": str(dtype).removeprefix("torch.")} | _attention(shape, dtype)


def _attention(shape: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, Any]:
    batch, steps, heads, size = shape
    torch.manual_seed(0)
    qkv = torch.randn(batch, steps, 3 * heads * size, device="cuda").to(dtype).requires_grad_()
    bias = torch.zeros(3 * heads * size, device="cuda", requires_grad=True)
    g = torch.randn(batch, steps, heads * size, device="cuda").to(dtype)

    def once() -> list[torch.Tensor]:
        y = attention_cuda.own_attention(qkv, bias, heads)
        d_qkv, d_bias = torch.autograd.grad(y, (qkv, bias), g)
        return [y.detach(), *d_qkv.chunk(3, dim=2), d_bias]

    few = qkv[:2].detach().double().requires_grad_()  # float64 holds whole attention matrices
    y = manual_attention(few, heads)
    (d_qkv,) = torch.autograd.grad(y, few, g[:2].double())
    d_bias = torch.cat([part.double().sum(dim=(0, 1)) for part in once()[1:4]])  # of all sequences, each rounded
    exact = [y.detach(), *d_qkv.chunk(3, dim=2), d_bias]
    return _found(("y", "d_q", "d_k", "d_v", "d_bias"), once, exact)


def _found(names: Sequence[str], once: Callable[[], list[torch.Tensor]], exact: list[torch.Tensor]) -> dict[str, Any]:
    """Whether five repetitions are alike, and |found - exact| / |exact| of each result (of its first sequences)."""
    first = once()
    alike = all(torch.equal(a, b) for _ in range(4) for a, b in zip(first, once(), strict=True))
    pairs = [(a[: len(b)] if b.ndim else a, b) for a, b in zip(first, exact, strict=True)]
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in pairs]
    return {"alike": alike, "error": dict(zip(names, errors, strict=True))}


def loss_part(_: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The output layer's loss and gradients: see `_found`."""
    for rows, vocabulary, width in ((4096, 50257, 160), (1000, 50257, 768), (77, 1000, 64)):
        yield {"shape": [rows, vocabulary, width]} | _loss(rows, vocabulary, width)


def _loss(rows: int, vocabulary: int, width: int) -> dict[str, Any]:
    torch.manual_seed(0)
    h = torch.randn(rows, width, device="cuda", requires_grad=True)
    w = (torch.randn(vocabulary, width, device="cuda") * 0.1).requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,), device="cuda")

    def once() -> list[torch.Tensor]:
        with torch.autocast("cuda", torch.bfloat16):
            loss = linear_cross_entropy(h, w, targets)
        return [loss.detach(), *torch.autograd.grad(loss, (h, w))]

    h64, w64 = h.detach().bfloat16().double().requires_grad_(), w.detach().bfloat16().double().requires_grad_()
    exact = F.cross_entropy(h64 @ w64.T, targets, reduction="sum")
    return _found(("loss", "d_hidden", "d_weight"), once, [exact.detach(), *torch.autograd.grad(exact, (h64, w64))])


def products_part(_: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A linear layer by cuBLASLt: see `_found`; and what of it is PyTorch's, bit for bit: all but the gradients of
    weights whose inner dimension is cut into other parts than the library's first proposal."""
    for dtype in (torch.bfloat16, torch.float16):
        for rows, inner, outer in ((1024, 160, 480), (65536, 768, 2304), (65536, 768, 768), (8192, 1280, 3840)):
            yield {
                "shape": [rows, inner, outer],
                "dtype": str(dtype).removeprefix("torch."),
            } | _linear(rows, inner, outer, dtype)


def _linear(rows: int, inner: int, outer: int, dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*s, device="cuda") for s in ((rows, inner), (outer, inner), (outer,)))
    leaves = [v.to(dtype).requires_grad_() for v in (x, weight / inner**0.5, bias)]
    g = torch.randn(rows, outer, device="cuda").to(dtype)

    def results(layer: Callable[..., torch.Tensor], values: list[torch.Tensor]) -> list[torch.Tensor]:
        y = layer(*values)
        return [y.detach(), *torch.autograd.grad(y, values, g.to(y.dtype))]

    exact = results(F.linear, [v.detach().double().requires_grad_() for v in leaves])
    found = _found(("y", "d_x", "d_weight", "d_bias"), lambda: results(linear_cuda.linear, leaves), exact)
    pairs = zip(results(linear_cuda.linear, leaves), results(F.linear, leaves), strict=True)
    names = ("y", "d_x", "d_weight", "d_bias")
    return found | {"as_pytorchs": [name for name, (a, b) in zip(names, pairs, strict=True) if torch.equal(a, b)]}


def perceptron_part(_: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The perceptron with its GELU inside of the products: see `_found`."""
    for dtype in (torch.bfloat16, torch.float16):
        for rows, width in ((1024, 160), (65536, 768), (1000, 1024)):
            yield {
                "shape": [rows, width],
                "dtype": str(dtype).removeprefix("torch."),
            } | _perceptron(rows, width, dtype)


def _perceptron(rows: int, width: int, dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(0)
    shapes = (rows, width), (4 * width, width), (4 * width,), (width, 4 * width), (width,)
    values = [torch.randn(s, device="cuda") / (1 if i == 0 else s[-1] ** 0.5) for i, s in enumerate(shapes)]
    leaves = [v.to(dtype).requires_grad_() for v in values]
    g = torch.randn(rows, width, device="cuda").to(dtype)

    def once() -> list[torch.Tensor]:
        y = perceptron_cuda.perceptron(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, g)]

    x, w1, b1, w2, b2 = wide = [v.detach().double().requires_grad_() for v in leaves]
    exact = F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)
    names = ("y", "d_x", "d_w1", "d_b1", "d_w2", "d_b2")
    return _found(names, once, [exact.detach(), *torch.autograd.grad(exact, wide, g.double())])


def norm_part(_: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A norm of the residual stream and what is added to it: see `_found`."""
    for stream, dtype in ((torch.bfloat16, torch.bfloat16), (torch.float32, torch.float16)):
        for rows, width in ((1024, 160), (65536, 768), (1000, 1024), (333, 1280)):
            yield {
                "shape": [rows, width],
                "dtype": str(dtype).removeprefix("torch."),
            } | _norm(rows, width, stream, dtype)


def _norm(rows: int, width: int, stream: torch.dtype, dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(0)
    x, values, d_stream, d_normed = (torch.randn(rows, width, device="cuda") for _ in range(4))
    weights = torch.randn(3, width, device="cuda")
    leaves = [v.requires_grad_() for v in (x.to(stream), values.to(dtype), *weights)]
    towards = d_stream.to(stream), d_normed.to(dtype)

    def once() -> list[torch.Tensor]:
        x, values, layer, weight, bias = leaves
        both = add_and_norm(x, Added(values, layer), weight, bias, dtype, norm_triton.KERNELS)
        return [*(y.detach() for y in both), *torch.autograd.grad(both, leaves, towards)]

    on = once()[0].double().requires_grad_()  # what is normed is rounded to the stream's dtype first
    wide = [v.detach().double().requires_grad_() for v in weights[1:]]
    normed = F.layer_norm(on, (width,), *wide)
    d_x, *others = torch.autograd.grad((on * 1, normed), (on, *wide), [g.double() for g in towards])
    total = leaves[0].detach().double() + leaves[1].detach().double()
    names = ("stream", "normed", "d_x", "d_added", "d_layer", "d_weight", "d_bias")
    return _found(names, once, [total, normed.detach(), d_x, d_x, d_x.sum(0), *others])


def embedding_part(_: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Embeddings of tokens that come alike often, as in text, and of one alone: see `_found`."""
    for dtype in (torch.bfloat16, torch.float32):
        for batch, steps, width, how in (
            (4, 256, 160, "as in text"),
            (64, 1024, 768, "alike"),
            (64, 1024, 768, "as in text"),
            (8, 1000, 1280, "one"),
        ):
            yield {
                "shape": [batch, steps, width],
                "tokens": how,
                "dtype": str(dtype).removeprefix("torch."),
            } | _embedding(batch, steps, width, how, dtype)


def _embedding(batch: int, steps: int, width: int, how: str, dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(0)
    vocabulary, shape = 50257, (batch, steps)
    tokens = torch.randint(0, vocabulary, shape, device="cuda")
    if how == "as in text":
        tokens = (vocabulary ** torch.rand(shape, device="cuda")).long() - 1  # the n-th most frequent as often as 1/n
    elif how == "one":
        tokens.fill_(11)
    leaves = [torch.randn(size, width, device="cuda").requires_grad_() for size in (vocabulary, steps + 24)]
    g = torch.randn(*shape, width, device="cuda").to(dtype)

    def once() -> list[torch.Tensor]:
        y = embedding_triton.embed(tokens, leaves[0], leaves[1], dtype)
        return [y.detach(), *torch.autograd.grad(y, leaves, g)]

    wide = [v.detach().double().requires_grad_() for v in leaves]
    exact = F.embedding(tokens, wide[0]) + wide[1][:steps]
    return _found(
        ("y", "d_tokens", "d_positions"), once, [exact.detach(), *torch.autograd.grad(exact, wide, g.double())]
    )


def runs_part(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each kind of run, unbroken and resumed."""
    make_corpus(Path(os.environ["LAB_CORPORA"]))
    for settings in RUNS[options.first :: options.every]:
        began = time.time()
        yield settings | _resumed(settings) | {"wall_s": round(time.time() - began, 1)}


def _resumed(settings: dict[str, Any]) -> dict[str, Any]:
    common: dict[str, Any] = dict(corpus="words", epochs=10_000, max_steps=STEPS, device="cuda")
    config = TrainConfig(**(common | dict(sample_length=0, eval_every=-1, save_every=-1) | settings))
    whole, run = train(config), new_run(config)
    stopped: Run = train(config, run, StopAt(STOP))
    at = stopped.checkpoints[-1].step
    active = resume_run(stopped.id)
    cublaslt.planned.cache_clear()  # as in another process: products choose their kernels anew
    again = train(active.config, active)
    assert list(again.metrics.step) == list(range(1, STEPS + 1)), "a step is missing or twice"
    found = {
        "stopped_at": at,
        "losses_equal": list(whole.metrics.train_loss) == list(again.metrics.train_loss),
        "norms_equal": list(whole.metrics.grad_norm) == list(again.metrics.grad_norm),
        "weights_equal": _weights(whole) == _weights(again),
        "last_loss": float(whole.metrics.train_loss.iloc[-1]),
        "arithmetic": whole.info["arithmetic"],
    }
    for finished in (whole, again):
        shutil.rmtree(finished.folder)
    return found


def _weights(run: Run) -> str:
    [file] = (run.checkpoints[-1].path).glob("model.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


PARTS: dict[str, Part] = {
    "attention": attention_part,
    "products": products_part,
    "perceptron": perceptron_part,
    "norm": norm_part,
    "embedding": embedding_part,
    "loss": loss_part,
    "runs": runs_part,
}


def main() -> None:
    """Try everything, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--first", type=int, default=0, help="of the runs, the one to begin with")
    parser.add_argument("--every", type=int, default=1, help="of so many runs, one")
    options = parser.parse_args()
    print_found(PARTS, options)


if __name__ == "__main__":
    main()
