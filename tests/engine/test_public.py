"""The shape of the package: what `engine` offers, what importing it costs, and which way the arrows point."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import engine
from engine.paths import PROJECT

ENGINE, APP = PROJECT / "engine", PROJECT / "app"


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    "before",
    [
        "pass",
        "import engine.train, engine.generate",
        "from engine.train import explain; from engine.generate import stream_text",
        "from engine import generate, train; import engine.generate, engine.train",
        "import engine.session",
        "import importlib; importlib.import_module('engine.train'); importlib.import_module('engine.generate')",
    ],
)
def test_train_and_generate_are_functions_whatever_was_imported_before(before: str) -> None:
    code = f"{before}\nfrom engine import train, generate\nimport engine\n"
    code += "print(*(type(f).__name__ for f in (train, generate, engine.train, engine.generate)))"
    assert python(code) == " ".join(["function"] * 4)


def test_every_public_name_is_there_and_nothing_else_is_promised() -> None:
    assert sorted(engine.__all__) == sorted(engine._PUBLIC)
    for name in engine.__all__:
        assert getattr(engine, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = engine.nothing  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        exec("from engine import nothing")


NEEDS_TORCH = {
    "accelerate",
    "arithmetic",
    "attention",
    "attention_cuda",
    "cublaslt",
    "distributed",
    "evaluate",
    "float8",
    "follow",
    "kernels",
    "linear_cuda",
    "loss",
    "loss_cuda",
    "embedding_triton",
    "loss_triton",
    "model",
    "norm",
    "norm_triton",
    "optimizer",
    "perceptron_cuda",
    "repeatable",
    "step",
    "trial",
}
CHEAP = sorted({p.stem for p in ENGINE.glob("*.py")} - NEEDS_TORCH - {"__init__"})
CHEAP += ["corpora", "cli.train", "cli.runs", "cli.generate", "cli.export"]


def test_torch_is_loaded_when_it_is_needed_and_not_before() -> None:
    code = f"import sys, engine, {', '.join('engine.' + m for m in CHEAP)}\nfrom engine import *\n"
    assert python(code + "print('torch' in sys.modules, 'streamlit' in sys.modules)") == "False False"


def test_importing_the_config_costs_nothing() -> None:
    code = "import sys, engine.config\nprint(*{m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names)"
    assert set(python(code).split()) <= {"engine", "__main__", "_distutils_hack", "distutils-precedence", "_virtualenv"}


# ------------------------------------------------------------------------------------------------- arrows


def sources(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, f"nothing to look at in {folder}"
    return found


def imports(path: Path, *, only_at_import: bool = False) -> set[str]:
    """The modules a file imports, `from a import b` as `a` and `a.b`; without those of type checkers and commands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            return
        if only_at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return names


def reaches(path: Path, *targets: str, only_at_import: bool = False) -> set[str]:
    """Those of the targets that a file imports, or a part of which it imports."""
    found = imports(path, only_at_import=only_at_import)
    return {t for t in targets if any(name == t or name.startswith(t + ".") for name in found)}


@pytest.mark.parametrize("path", sources(ENGINE), ids=lambda p: str(p.relative_to(PROJECT)))
def test_the_engine_knows_nothing_of_the_app(path: Path) -> None:
    assert reaches(path, "streamlit", "app", "plotly") == set()


@pytest.mark.parametrize("path", sorted(APP.rglob("*.py")), ids=lambda p: str(p.relative_to(PROJECT)))
def test_the_app_asks_the_session_and_never_the_parts(path: Path) -> None:
    parts = ("step", "model", "loss", "optimizer", "evaluate", "train", "cli")
    assert reaches(path, "torch", "bitsandbytes", *(f"engine.{part}" for part in parts)) == set()


def test_the_config_stands_on_the_standard_library() -> None:
    for name in ("config.py", "errors.py", "paths.py", "control.py", "files.py"):
        for module in imports(ENGINE / name):
            assert module.split(".")[0] in {*sys.stdlib_module_names, "engine"}, f"{name} imports {module}"
    assert reaches(ENGINE / "config.py", "engine") == {"engine"}
    assert {m for m in imports(ENGINE / "config.py") if m.startswith("engine.") and m.count(".") == 1} == {
        "engine.errors"
    }


# From the ground up: a module may use those before it, and none after it.
FLOORS = [
    {"errors", "paths"},
    {"config", "control", "files", "trial", "wire", "world"},
    {
        "tokenizer",
        "data",
        "attention",
        "attention_cuda",
        "cublaslt",
        "linear_cuda",
        "perceptron_cuda",
        "repeatable",
        "float8",
        "loss",
        "native",
        "loss_cuda",
        "embedding_triton",
        "loss_triton",
        "norm",
        "norm_triton",
        "metrics",
        "kept",
        "tables",
        "environment",
        "optimizer",
        "checkpoint",
        "checkpoint_layout",
        "curves",
        "branching",
        "labels",
        "moments",
        "cpu_moments",
        "heap",
    },
    {"kernels"},
    {"corpora", "model", "plan", "tensorboard"},
    {"memory", "run", "diagnosis", "accelerate", "history"},
    {
        "arithmetic",
        "compare",
        "start",
        "exercises",
        "pace",
        "recipes",
        "fit",
        "distributed",
        "library",
        "trash",
        "archive",
        "archive_checks",
        "corpus_deletion",
    },
    {"step"},
    {"evaluate", "generate", "hf"},
    {"train", "follow"},
    {"session"},
    {"cli", "export", "runs", "download_corpora", "prepare_corpora", "estimate", "bench"},
]


@pytest.mark.parametrize("path", sources(ENGINE), ids=lambda p: str(p.relative_to(ENGINE)))
def test_arrows_point_one_way(path: Path) -> None:
    module = path.relative_to(ENGINE).parts[0].removesuffix(".py")
    if module in ("__init__", "__main__"):
        return
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert module in floor, f"{module} has no floor yet: say in FLOORS which modules it may use"
    used = {name.split(".")[1] for name in imports(path, only_at_import=True) if name.startswith("engine.")}
    upwards = {name for name in used & floor.keys() - {module} if floor[name] > floor[module]}
    assert upwards == set(), f"{path.name} imports {upwards}, which stand above it"
