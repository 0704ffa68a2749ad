"""A checkpoint as a Hugging Face GPT-2 model folder, which `transformers` loads with no code of the lab.

The architecture is GPT-2's, so only names change, and matrices are transposed: GPT-2 keeps them as (in, out) and calls
the layer Conv1D (huggingface/transformers, models/gpt2/modeling_gpt2.py).
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import tokenizer
from engine.config import ModelConfig, TrainConfig
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from engine.checkpoint import Checkpoint

_PARTS = {  # of a block, in our names and GPT-2's
    "norm1": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "norm2": "ln_2",
    "expand": "mlp.c_fc",
    "contract": "mlp.c_proj",
}


def write_hf(run_id: str, step: int | None, folder: Path) -> None:
    """Write a run's model into `folder`: config, weights (fp32), tokenizer and a model card.

    Args:
        run_id: of the run.
        step: of the checkpoint; None takes the newest.
        folder: that exists and is empty.

    Raises:
        RunError, CheckpointError: there is no such run or usable checkpoint.
        OSError: the disk is full or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from engine.generate import load_checkpoint
    from engine.run import load_run

    config = load_run(run_id).config
    checkpoint, model = load_checkpoint(run_id, step)
    weights = gpt2_weights(model.state_dict(), config.model)
    try:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:
        raise CheckpointError(f"The weights cannot be written into {folder.parent} ({error}).") from error
    _write_json(folder / "config.json", gpt2_config(config))
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors keeps it from all others
    special = {"bos_token_id": tokenizer.END_OF_TEXT, "eos_token_id": tokenizer.END_OF_TEXT}
    _write_json(folder / "generation_config.json", {**special, "pad_token_id": tokenizer.END_OF_TEXT})
    _write_tokenizer(folder, config.model.context_length)
    (folder / "README.md").write_text(_card(run_id, config, checkpoint), encoding="utf-8")


def gpt2_config(config: TrainConfig) -> dict[str, Any]:
    """`config.json` of the model class GPT2LMHeadModel."""
    model = config.model
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocabulary_size,
        "n_positions": model.context_length,
        "n_ctx": model.context_length,
        "n_embd": model.width,
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_inner": None,
        "activation_function": "gelu_new",  # the tanh approximation
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": model.tie_embeddings,
        "bos_token_id": tokenizer.END_OF_TEXT,
        "eos_token_id": tokenizer.END_OF_TEXT,
        "torch_dtype": "float32",
    }


def gpt2_weights(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our weights under GPT-2's names, matrices of blocks transposed to (in, out); a tied head is left out."""
    named = {
        "transformer.wte.weight": weights["token_embedding.weight"],
        "transformer.wpe.weight": weights["position_embedding.weight"],
        "transformer.ln_f.weight": weights["norm.weight"],
        "transformer.ln_f.bias": weights["norm.bias"],
    }
    if not config.tie_embeddings:
        named["lm_head.weight"] = weights["head.weight"]
    for layer in range(config.layers):
        for ours, theirs in _PARTS.items():
            for kind in ("weight", "bias"):
                weight = weights[f"blocks.{layer}.{ours}.{kind}"]
                named[f"transformer.h.{layer}.{theirs}.{kind}"] = weight.T if weight.ndim == 2 else weight
    return {name: weight.detach().float().contiguous() for name, weight in named.items()}


# ------------------------------------------------------------------------------------------------ tokenizer


def byte_characters() -> list[str]:
    """GPT-2's visible character for each byte (`bytes_to_unicode` in openai/gpt-2, src/encoder.py)."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = (chr(256 + n) for n in range(256))
    return [chr(byte) if byte in visible else next(others) for byte in range(256)]


def vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """GPT-2's `vocab.json` and `merges.txt`.

    The shipped vocabulary holds tokens and their ranks only. The pair that a token was merged from is what remains of
    its bytes when all merges of a lower rank are done.
    """
    encoding = tokenizer.encoding()
    ranks = {encoding.decode_single_token_bytes(token): token for token in range(tokenizer.END_OF_TEXT)}
    characters = byte_characters()

    def show(piece: bytes) -> str:
        return "".join(characters[byte] for byte in piece)

    merges = [_pair(piece, ranks) for piece in ranks if len(piece) > 1]
    vocabulary = {show(piece): rank for piece, rank in ranks.items()}
    return {**vocabulary, tokenizer.MARK: tokenizer.END_OF_TEXT}, [(show(a), show(b)) for a, b in merges]


def _pair(piece: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 2:
        options = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
        _, i = min(options)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def _write_tokenizer(folder: Path, context_length: int) -> None:
    vocabulary, merges = vocabulary_and_merges()
    lines = [f"{a} {b}" for a, b in merges]
    _write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    mark = {"content": tokenizer.MARK, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": tokenizer.END_OF_TEXT, **mark, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": lines,
        },
    }
    _write_json(folder / "tokenizer.json", whole)
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        "bos_token": tokenizer.MARK,
        "eos_token": tokenizer.MARK,
        "unk_token": tokenizer.MARK,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _card(run_id: str, config: TrainConfig, checkpoint: Checkpoint) -> str:
    """What is known of the model; what was not measured is left out."""
    facts = {
        "parameters": f"{config.model.parameters:,}",
        "corpus": f"`{config.corpus}`",
        "step": f"{checkpoint.step:,}",
        "tokens trained on": checkpoint.progress.get("tokens"),
        "training loss, nats per token": checkpoint.progress.get("train_loss"),
        "validation loss, nats per token": checkpoint.progress.get("val_loss"),
    }
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items() if value is not None)
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {run_id}\n\n"
        f"A GPT-2 model from the LLM pretraining lab.\n\n| | |\n|---|---|\n{rows}\n"
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")\n```\n\n'
        f"The tokenizer is GPT-2's. It reads `{tokenizer.MARK}` in a text as the special token; the lab does not.\n"
    )
