"""Presets and settings: the one place where a setting's name, default, bounds and explanation are written.

The command line's flags, the form's widgets and tooltips, the validation and the README's table are made from the
metadata of the fields below. Standard library only, so that importing it costs nothing.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from engine.errors import ConfigError, Problem

VOCABULARY_SIZE = 50257  # GPT-2's byte pairs, <|endoftext|> included


@dataclass(frozen=True)
class Preset:
    """A model size, and the settings that suit it."""

    layers: int
    heads: int
    width: int
    context_length: int
    learning_rate: float  # peak, for a run of some hundred steps or more
    purpose: str


# Peak learning rates follow table 2.1 of "Language Models are Few-Shot Learners" (arXiv:2005.14165) from `medium` up;
# the smaller two were found by a sweep on the built-in corpora (smaller models bear larger steps).
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "nano": Preset(6, 5, 160, 256, 3e-3, "checks the whole pipeline, quick iteration"),
        "small": Preset(8, 8, 512, 512, 1e-3, "experiments of medium speed"),
        "medium": Preset(12, 12, 768, 1024, 6e-4, "serious learning runs (the size of GPT-2 small)"),
        "large": Preset(12, 16, 1024, 1024, 4e-4, "experiments with capacity; mind the memory"),
        "xlarge": Preset(24, 16, 1024, 1024, 3e-4, "a stretch: needs careful settings (the size of GPT-2 medium)"),
    }
)


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one GPT: everything that decides the shapes of its weights."""

    layers: int
    heads: int
    width: int
    context_length: int
    vocabulary_size: int = VOCABULARY_SIZE
    tie_embeddings: bool = True

    @property
    def parameters(self) -> int:
        """The number of weights; equal to the sum over the built model's parameters (a test holds it so)."""
        d = self.width
        block = 12 * d * d + 13 * d  # qkv 3d²+3d, projection d²+d, MLP 8d²+5d, two layer norms 4d
        embeddings = (self.vocabulary_size + self.context_length) * d
        head = 0 if self.tie_embeddings else self.vocabulary_size * d
        return embeddings + self.layers * block + 2 * d + head


def setting(
    default: Any,
    help: str,
    *,
    label: str = "",
    group: str = "more",
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    architecture: bool = False,
) -> Any:
    """A field of `TrainConfig`.

    Args:
        default: its value when nothing is said.
        help: what it does to the training, in a sentence or two.
        label: its name in the form; made from the field's name when empty.
        group: `main` for everyday settings; else the heading under which the form shows it.
        choices: the allowed words, when only some are.
        minimum, maximum: inclusive bounds of a number.
        architecture: whether it decides the shapes of the weights, so that a branch cannot change it.
    """
    metadata = dict(
        help=help,
        label=label,
        group=group,
        choices=choices,
        minimum=minimum,
        maximum=maximum,
        architecture=architecture,
    )
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """All settings of one run. `0`, `auto` or an empty text mean "choose for me" where the help says so."""

    config: str = setting(
        "nano",
        "Model size. Start with nano, then go up one step at a time.",
        label="Preset",
        group="main",
        choices=tuple(PRESETS),
        architecture=True,
    )
    corpus: str = setting("verdict", "The text to train on.", label="Corpus", group="main")
    epochs: float = setting(
        3.0,
        "Passes over the training part of the corpus. More passes over a small text mean memorisation.",
        group="main",
        minimum=0.001,
        maximum=100_000,
    )
    batch_size: int = setting(
        4,
        "Sequences per forward pass. Larger batches give smoother gradients and use the machine better, and need more "
        "memory.",
        group="main",
        minimum=1,
        maximum=4096,
    )
    context_length: int = setting(
        0,
        "Tokens the model sees at once, and the length of a training window. 0 takes the preset's own.",
        group="main",
        minimum=0,
        maximum=8192,
        architecture=True,
    )
    learning_rate: float = setting(
        0.0,
        "Peak step size of the optimizer. Too low: the loss hardly moves. Too high: it spikes or diverges. 0 chooses "
        "by preset and run length.",
        group="main",
        minimum=0.0,
        maximum=1.0,
    )
    seed: int = setting(
        1337,
        "Decides initial weights, data order and dropout. The same seed and settings give the same run.",
        group="main",
        minimum=0,
        maximum=2**31 - 1,
    )

    max_steps: int = setting(
        0,
        "Stop after this many optimizer steps, whatever the epochs say. 0 sets no limit.",
        group="Length and batches",
        minimum=0,
        maximum=100_000_000,
    )
    grad_accum_steps: int = setting(
        1,
        "Forward and backward passes per optimizer step: a larger effective batch at the memory of a small one.",
        label="Gradient accumulation",
        group="Length and batches",
        minimum=1,
        maximum=4096,
    )
    val_fraction: float = setting(
        0.1,
        "Share of the text, at its end, that is kept for validation when there is no validation corpus.",
        label="Validation share",
        group="Length and batches",
        minimum=0.0,
        maximum=0.5,
    )
    val_corpus: str = setting(
        "",
        "A corpus used for validation only. Empty takes the official one of the corpus, or the end of its text.",
        label="Validation corpus",
        group="Length and batches",
    )

    optimizer: str = setting(
        "adamw",
        "adamw keeps two 32-bit numbers for each weight; adamw_8bit keeps those of the blocks in 8 bits and saves "
        "memory; paged_adamw_8bit can also move them to the computer's memory when the GPU's is full.",
        group="Optimizer",
        choices=("adamw", "adamw_8bit", "paged_adamw_8bit"),
    )
    warmup_steps: int = setting(
        -1,
        "Steps over which the learning rate rises to its peak; it then falls along a cosine to a tenth. -1 chooses by "
        "run length.",
        group="Optimizer",
        minimum=-1,
        maximum=1_000_000,
    )
    weight_decay: float = setting(
        0.1,
        "Pulls the weight matrices (not biases and norms) towards zero: a brake on memorisation.",
        group="Optimizer",
        minimum=0.0,
        maximum=10.0,
    )
    grad_clip: float = setting(
        1.0,
        "Largest gradient norm; longer gradients are shortened to it, so that one odd batch cannot throw the model off."
        " 0 turns clipping off.",
        label="Gradient clipping",
        group="Optimizer",
        minimum=0.0,
        maximum=1000.0,
    )
    dropout: float = setting(
        0.0,
        "Share of activations set to zero in training. 0 for one pass over much text; 0.1 to 0.2 when a small text is "
        "repeated.",
        group="Optimizer",
        minimum=0.0,
        maximum=0.9,
    )

    precision: str = setting(
        "auto",
        "Number format of the forward and backward pass; the weights stay in fp32. bf16 is about twice as fast on a GPU"
        " and saves memory; fp16 needs gradient scaling; fp8 is bf16 whose blocks multiply in 8 bits, on cards from "
        "NVIDIA's Ada and Hopper on, and saves memory, not time, at these widths; auto takes bf16 on a GPU that has it "
        "and fp32 on a CPU.",
        group="Compute",
        choices=("auto", "fp32", "bf16", "fp16", "fp8"),
    )
    attention_impl: str = setting(
        "sdpa",
        "manual writes attention out step by step and holds the whole attention matrix; sdpa is a fused kernel:"
        " the same result with less memory, and faster on a GPU.",
        label="Attention",
        group="Compute",
        choices=("sdpa", "manual"),
    )
    gradient_checkpointing: bool = setting(
        False,
        "Recompute activations in the backward pass instead of keeping them: much less memory, a third more time.",
        group="Compute",
    )
    compile: str = setting(
        "auto",
        "On a GPU: off runs every operation by itself; on fuses them by compilation, which takes 10 to 40 seconds "
        "after the first steps, and replays a step as one CUDA graph; auto replays in a process that trains alone, and "
        "compiles runs long enough to gain by it. On a CPU in fp32: on computes with the lab's own kernels, which GCC "
        "compiles in about a second; auto does so for runs of four seconds or more, off never does. Without GCC "
        "PyTorch's do the work.",
        label="Compilation",
        group="Compute",
        choices=("auto", "on", "off"),
    )
    tie_embeddings: bool = setting(
        True,
        "Use one matrix for the input embedding and the output layer, as GPT-2 does: fewer weights.",
        label="Tied embeddings",
        group="Compute",
        architecture=True,
    )
    device: str = setting("auto", "auto, cpu, cuda, or one GPU of several, such as cuda:1.", group="Compute")
    threads: int = setting(
        0,
        "CPU threads for the arithmetic. 0 takes one for each core. Another number rounds differently.",
        label="CPU threads",
        group="Compute",
        minimum=0,
        maximum=1024,
    )

    eval_every: int = setting(
        0,
        "Measure the validation loss every this many steps, and at the end. 0 chooses by run length; -1 measures only "
        "at the end.",
        label="Validate every",
        group="Validation, samples, checkpoints",
        minimum=-1,
        maximum=10_000_000,
    )
    eval_batches: int = setting(
        0,
        "Batches per validation, spread over the validation text. 0 takes all of it, up to 20 batches.",
        label="Validation batches",
        group="Validation, samples, checkpoints",
        minimum=0,
        maximum=1_000_000,
    )
    sample_every: int = setting(
        0,
        "Generate a text every this many steps, and at the end. 0 chooses by run length; -1 only at the end.",
        group="Validation, samples, checkpoints",
        minimum=-1,
        maximum=10_000_000,
    )
    sample_prompt: str = setting(
        "",
        "What generated texts begin with, the same at every step. Empty takes the corpus's own prompt.",
        group="Validation, samples, checkpoints",
    )
    sample_length: int = setting(
        60,
        "Tokens to generate for a sample. 0 turns samples off.",
        group="Validation, samples, checkpoints",
        minimum=0,
        maximum=2000,
    )
    sample_temperature: float = setting(
        0.8,
        "Below 1 the likely tokens are preferred, above 1 the unlikely get a chance; 0 always takes the likeliest.",
        group="Validation, samples, checkpoints",
        minimum=0.0,
        maximum=5.0,
    )
    sample_top_k: int = setting(
        50,
        "Draw only from this many likeliest tokens. 0 draws from all.",
        group="Validation, samples, checkpoints",
        minimum=0,
        maximum=VOCABULARY_SIZE,
    )
    save_every: int = setting(
        0,
        "Save a checkpoint every this many steps, and at the end. 0 chooses by run length; -1 only at the end.",
        label="Checkpoint every",
        group="Validation, samples, checkpoints",
        minimum=-1,
        maximum=10_000_000,
    )
    keep_checkpoints: int = setting(
        3,
        "How many of the newest checkpoints to keep. 0 keeps all.",
        group="Validation, samples, checkpoints",
        minimum=0,
        maximum=100_000,
    )

    @property
    def preset(self) -> Preset:
        """The preset that `config` names."""
        return PRESETS[self.config]

    @property
    def model(self) -> ModelConfig:
        """The architecture that these settings describe."""
        p = self.preset
        context = self.context_length or p.context_length
        return ModelConfig(p.layers, p.heads, p.width, context, tie_embeddings=self.tie_embeddings)

    @property
    def sequences_per_step(self) -> int:
        """The effective batch: sequences per optimizer step."""
        return self.batch_size * self.grad_accum_steps

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step."""
        return self.sequences_per_step * self.model.context_length


SETTINGS: Mapping[str, dataclasses.Field[Any]] = MappingProxyType({f.name: f for f in fields(TrainConfig)})


def label(name: str) -> str:
    """The setting's name as a person reads it."""
    return SETTINGS[name].metadata["label"] or name.replace("_", " ").capitalize()


def flag(name: str) -> str:
    """The setting's name on the command line."""
    return "--" + name.replace("_", "-")


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Build a checked config from plain values, for example from a form, a JSON file or flags.

    Whole numbers are taken for fractional settings and `3.0` for whole ones; everything else must have the right type.

    Raises:
        ConfigError: all problems together, unknown names included.
    """
    problems: list[Problem] = []
    clean: dict[str, Any] = {}
    for name, value in values.items():
        if name not in SETTINGS:
            problems.append(Problem(name, "there is no setting of this name."))
            continue
        clean[name] = _coerce(name, value)
    config = TrainConfig(**clean)
    problems += check(config)
    if problems:
        raise ConfigError(problems)
    return config


def _coerce(name: str, value: Any) -> Any:
    kind = type(SETTINGS[name].default)
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def check(config: TrainConfig) -> list[Problem]:
    """All problems that the settings have by themselves; what depends on a corpus or a device is found at the start."""
    problems = [p for f in SETTINGS.values() if (p := _check_field(f, getattr(config, f.name)))]
    wrong = {problem.field for problem in problems}
    if "device" not in wrong and not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", config.device):
        problems.append(Problem("device", f"{config.device!r} is not auto, cpu, cuda or cuda:N."))
    if not wrong & {"config", "context_length"} and config.context_length > config.preset.context_length * 8:
        longest = config.preset.context_length * 8
        problems.append(Problem("context_length", f"{config.config} takes at most {longest:,} tokens of context."))
    if config.precision == "fp8" and "config" not in wrong and config.preset.width % 16:
        width = config.preset.width
        message = f"fp8 multiplies matrices whose sides are multiples of 16, and {config.config} is {width:,} wide."
        problems.append(Problem("precision", message))
    return problems


# Halves of characters: JSON and a command line that is not UTF-8 can hold them, a file of text cannot.
_HALVES = re.compile("[\ud800-\udfff]")
_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _check_field(f: dataclasses.Field[Any], value: Any) -> Problem | None:
    meta, kind = f.metadata, type(f.default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        return Problem(f.name, f"{_short(repr(value))} is not {_WANTED[kind]}.")
    if isinstance(value, str) and _HALVES.search(value):
        return Problem(f.name, f"{_short(repr(value))} holds half a character, which no file can keep.")
    if meta["choices"] and value not in meta["choices"]:
        return Problem(f.name, f"{_short(repr(value))} is not one of {', '.join(meta['choices'])}.")
    low, high = meta["minimum"], meta["maximum"]
    if low is not None and not low <= value <= high:  # a NaN fails this comparison too
        return Problem(f.name, f"{_short(f'{value:,}')} is out of range; it must be from {low:,} to {high:,}.")
    return None


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The config as plain values, ready for JSON."""
    return dataclasses.asdict(config)


def command(config: TrainConfig) -> str:
    """The command line that starts a run with these settings; those at their defaults are left out."""
    parts = ["python -m engine.train"]
    for name, (_, value) in differences(TrainConfig(), config).items():
        parts.append(option(name, value))
    return " ".join(parts)


def option(name: str, value: Any) -> str:
    """A setting as one writes it on the command line, flag and value."""
    if isinstance(value, bool):
        return flag(name) if value else flag(name).replace("--", "--no-", 1)
    text = shlex.quote(_number(value) if isinstance(value, float) else str(value))
    is_like_a_flag = isinstance(value, str) and value.startswith("-")
    return f"{flag(name)}{'=' if is_like_a_flag else ' '}{text}"


def _number(value: float) -> str:
    """The shortest text that is read as exactly this number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def differences(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configs differ: name -> (old value, new value)."""
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in SETTINGS}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
