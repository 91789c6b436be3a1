"""What every part of the package keeps to."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import tomoscale
from tomoscale import cli, parameters

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tomoscale"
MODULES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
HEAVY = {
    "cupy",
    "dask",
    "distributed",
    "h5py",
    "matplotlib",
    "numba",
    "pandas",
    "pyarrow",
    "tifffile",
    "torch",
    "zarr",
}
SHELLS = {"system", "popen", "getoutput", "getstatusoutput"}
SHELL_NAMES = {f"os.{name}" for name in SHELLS} | {f"subprocess.{name}" for name in SHELLS}
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
LONGEST = 320
TESTED_IN = {"export": "convert", "evaluate": "evaluate_masks"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(tree: ast.AST) -> set[str]:
    """Return the modules that are imported anywhere in a file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a statement loads in a fresh interpreter."""
    code = (
        f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


# ---------------------------------------------------------------- light


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_by("import tomoscale") & HEAVY


def test_help_loads_nothing_heavy():
    help_of_all = (
        "from tomoscale import cli\nfor f in cli.functions(): cli.main([*f.command.split(), '--help'])"
    )
    assert not loaded_by(help_of_all) & HEAVY


# ---------------------------------------------------------------- safe


def unsafe(tree: ast.AST) -> set[str]:
    """Return what in a file could run code that came with the data."""
    found = {m for m in imported(tree) if m.split(".")[0] in UNPICKLERS or m in SHELL_NAMES}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if not owner and name in {"eval", "exec", "compile", "__import__"}:
            found.add(name)
        if (owner in {"os", "subprocess"} and name in SHELLS) or given.get("shell", "False") != "False":
            found.add(f"{owner}.{name}")
        if owner == "yaml" and name != "safe_load":
            found.add(f"yaml.{name}")
        if given.get("allow_pickle", "False") != "False":
            found.add(f"{name}(allow_pickle)")
        if name in {"read_pickle", "Pickle", "Unpickler"}:
            found.add(name)
        if owner == "torch" and name == "load" and given.get("weights_only") != "True":
            found.add("torch.load")
    return found


def test_nothing_in_the_package_runs_code_that_came_with_the_data():
    assert {name_of(p): found for p, tree in TREES.items() if (found := unsafe(tree))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "yaml.load(f)",
        "eval(x)",
        "os.system(x)",
        "np.load(f, allow_pickle=True)",
        "run(x, shell=1)",
        "from os import system",
        "from numpy import load\nload(f, allow_pickle=yes)",
        "pandas.read_pickle(f)",
        "numcodecs.Pickle()",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
    ],
)
def test_the_scan_for_unsafe_calls_finds_them(code):
    assert unsafe(ast.parse(code))


# ---------------------------------------------------------------- complete


@pytest.mark.parametrize("topic", tomoscale.TOPICS)
def test_a_topic_has_a_module_and_a_test(topic):
    assert importlib.util.find_spec(f"tomoscale.{topic}")
    assert (ROOT / "tests" / f"test_{TESTED_IN.get(topic, topic)}.py").is_file()


def test_every_command_is_in_the_pages():
    pages = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs").glob("*.md"))
    assert [f.command for f in cli.functions() if f"tomoscale {f.command}" not in pages] == []


def documented() -> list[str]:
    """Return the names that the reference pages show."""
    pages = [p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs").glob("*.md"))]
    return sorted(
        {n for page in pages for n in re.findall(r"^\.\. auto(?:function|class):: (\S+)", page, re.M)}
    )


def test_every_operation_is_in_the_reference():
    shown = set(documented())
    assert [n for f in cli.functions() if (n := f"tomoscale.{parameters.name_of(f)}") not in shown] == []


@pytest.mark.parametrize("name", documented())
def test_what_the_reference_shows_lists_parameters_and_results(name):
    validate = pytest.importorskip("numpydoc.validate").validate
    if name.startswith("tomoscale.learn"):
        pytest.importorskip("torch", reason="networks need the extra `learn`")
    errors = [text for code, text in validate(name)["errors"] if code in {"GL08", "PR01", "PR02", "RT03"}]
    if inspect.isclass(resolved(name)):  # fields of data speak for themselves or are listed together
        errors = [e for e in errors if not e.startswith("Parameters {")]
    assert errors == []


def resolved(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def public(tree: ast.Module) -> list[ast.AST]:
    """Return the functions and classes of a module that others may use."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def test_every_public_function_and_class_has_a_docstring():
    bare = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path, tree in TREES.items()
        if not (path.parent.name == "kernels" and path.name.startswith("_"))
        for node in public(tree)
        if not ast.get_docstring(node)
    ]
    assert bare == []


def test_every_module_says_what_it_is():
    assert [name_of(p) for p, tree in TREES.items() if not ast.get_docstring(tree)] == []


# ---------------------------------------------------------------- small, and of one mind


def test_modules_are_short():
    lengths = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in MODULES}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


def test_the_installed_version_is_that_of_the_package():
    assert version("tomoscale") == tomoscale.__version__
    assert tomoscale.__version__ in (ROOT / "tomoscale" / "_version.py").read_text(encoding="utf-8")
