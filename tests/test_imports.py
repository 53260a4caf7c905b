"""Who may import what, and that every module's `__all__` is sorted and true."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("schemas", "reconstruct", "streamer")
MODULES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in MODULES]

# library -> the only modules that may import it
SEAMS = {
    "kafka": {"streamer/transports/kafka.py"},
    "prometheus_client": {"streamer/metrics.py"},
    "cupy": {"reconstruct/backend.py", "reconstruct/kernels_cuda.py"},
    "cupyx": {"reconstruct/backend.py", "reconstruct/kernels_cuda.py"},
}

# package -> what no module of it may import
FORBIDDEN = {
    "schemas": {"reconstruct", "streamer", "kafka", "prometheus_client", "cupy"},
    "reconstruct": {"schemas", "streamer", "kafka", "pydantic", "prometheus_client"},
    "streamer": {"cupy"},
}

NEVER = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}


def imported_modules(source: str) -> set[str]:
    """Give the full names of all modules that a source imports, lazy and typed ones included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and _callee(node) in {"import_module", "__import__"}:
            found |= {
                argument.value
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            }
    return found


def _callee(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def roots(source: str) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(source)}


def violations(name: str, source: str) -> list[str]:
    """Give the import rules that a module breaks."""
    found = roots(source)
    broken = sorted(found & (FORBIDDEN[name.split("/")[0]] | NEVER))
    broken += sorted(
        library for library, allowed in SEAMS.items() if library in found and name not in allowed
    )
    return broken


@pytest.mark.parametrize("name", NAMES)
def test_the_import_rules_hold(name: str) -> None:
    assert violations(name, (ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("schemas/a.py", "import streamer.loop"),
        ("schemas/a.py", "from reconstruct import types"),
        ("reconstruct/a.py", "def f():\n    from schemas.codec import decode"),
        ("reconstruct/a.py", "import pydantic_core, pydantic"),
        ("reconstruct/engine.py", "import cupy as cp"),
        ("reconstruct/engine.py", "import cupyx.scipy.ndimage"),
        ("streamer/loop.py", "from kafka import KafkaConsumer"),
        ("streamer/loop.py", "import importlib\nimportlib.import_module('kafka.errors')"),
        ("streamer/transports/embedded.py", "import kafka"),
        ("streamer/loop.py", "import prometheus_client"),
        ("streamer/checkpoint.py", "import pickle"),
    ],
)
def test_a_broken_rule_would_be_seen(name: str, source: str) -> None:
    assert violations(name, source)


def test_no_import_cycles() -> None:
    graph = {}
    for path in MODULES:
        module = _module_name(path)
        imported = imported_modules(path.read_text(encoding="utf-8"))
        graph[module] = sorted(imported)
    known = set(graph)
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module in done:
            return
        for imported in graph[module]:
            if imported in known and imported != module:
                visit(imported, (*trail, module))
        done.add(module)

    for module in sorted(known):
        visit(module, ())


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _order(name: str) -> tuple[int, str]:
    """Sort constants, then classes, then the rest, as the linter does."""
    if name.isupper():
        return 0, name
    return (1, name) if name[:1].isupper() else (2, name)


def _public_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            targets = [node.name]
        elif isinstance(node, ast.Assign):
            targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            targets = [node.target.id]
        else:
            targets = []
        yield from (name for name in targets if not name.startswith("_"))


# kafka-python reads its schemas through an old interface of the standard library
@pytest.mark.filterwarnings("ignore:(read|open)_text is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_all_is_sorted_and_true(name: str) -> None:
    path = ROOT / name
    public = list(_public_names(ast.parse(path.read_text(encoding="utf-8"))))
    if path.name == "__main__.py":
        pytest.skip("running it is its purpose")
    module = importlib.import_module(_module_name(path))
    declared = getattr(module, "__all__", None)
    if declared is None:
        assert public == [], f"public names without __all__: {public}"
        return
    assert list(declared) == sorted(set(declared), key=_order)
    assert [one for one in declared if not hasattr(module, one)] == []


@pytest.mark.parametrize("name", NAMES)
def test_modules_say_their_purpose_and_stay_short(name: str) -> None:
    source = (ROOT / name).read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source))
    assert len(source.splitlines()) <= 500, "split the module"
