"""The shape of the house: import direction, file length, no variant named outside its file, a frozen command line."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gptcore.cli import COMMANDS, build_parser
from gptcore.flat import all_switches, flat_names
from gptcore.registry import SLOTS, kinds
from ppa import rtl

ROOT = Path(__file__).parent.parent
PACKAGES = ("kernels", "gptcore", "ppa", "search")  # each may import itself and those before it
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
OTHERS = sorted(p for folder in ("tests", "benchmarks", "data") for p in (ROOT / folder).rglob("*.py"))
LONGEST = 500
LONGER_WITH_REASON: dict[str, str] = {}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    above = set(PACKAGES[PACKAGES.index(package) + 1 :])
    assert not imported(path) & above
    if path != ROOT / "gptcore" / "cli.py":  # the composition root names them as text
        modules = {name.split(".")[0] for name in names_in_code(path) if re.fullmatch(r"\w+(\.\w+)+", name)}
        assert not modules & above
    if package == "kernels":
        outside = imported(path) - set(sys.stdlib_module_names) - {"kernels"}
        assert outside <= {"torch", "triton"}


def test_no_file_is_long():
    for path in SOURCES + OTHERS:
        name, lines = str(path.relative_to(ROOT)), len(path.read_text().splitlines())
        assert lines <= LONGEST or name in LONGER_WITH_REASON, f"{name} has {lines} lines"


def names_in_code(path: Path) -> set[str]:
    """String constants that are code; docstrings, and defaults of `slot(...)` fields, left out."""
    tree = ast.parse(path.read_text())
    defaults = {
        id(constant)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "slot"
        for constant in ast.walk(call)
    }
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None
    }
    return {
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs | defaults
    }


# A default has to be named somewhere; a weight importer has to name what it builds. (file, kinds it may name)
MAY_NAME = {
    "gptcore/activation/lut_int.py": {"gelu", "silu", "sigmoid", "tanh"},  # functions that it approximates
    "gptcore/activation/piecewise.py": {"gelu", "silu", "sigmoid", "tanh"},
    "gptcore/activation/piecewise_int.py": {"gelu", "silu", "tanh"},
    "gptcore/linear/kan.py": {"silu", "tanh"},  # primitive operations, and the function of its base path
    "gptcore/softmax/relumax.py": {"relu"},  # functions that the kernels know by these names
    "gptcore/softmax/sigmoidmax.py": {"sigmoid"},
    "ppa/rtl/lut_activation.py": {"gelu", "silu", "sigmoid"},  # functions whose tables it holds
    "ppa/rtl/pwl_activation.py": {"gelu", "silu"},
    "ppa/rtl/sigmoidmax.py": {"sigmoid"},
    "gptcore/pretrained.py": {
        "causal",
        "mlp",
        "layernorm",
        "sequential",
        "learned",
        "gelu",
        "relu",
        "silu",
        "softmax",
    },  # GPT-2
}
# Also words of the operation list, of file modes and of options: (position learned, residual add, ...)
ORDINARY_WORDS = {"none", "add", "identity", "learned", "tanh", "combined"}


def implemented(path: Path) -> set[str]:
    """Kinds that the operators of a file of ppa/rtl are the units of: that they name."""
    module = f"ppa.rtl.{path.stem}"
    return {kind for name, unit in rtl.units() if type(rtl.make(name)).__module__ == module for kind in unit.kinds}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_variant_is_named_outside_its_own_file(path):
    name = str(path.relative_to(ROOT))
    if name.startswith(("ppa/validation/", "kernels/")):
        return  # these name what published tables hold, and the functions that a kernel computes: it knows no registry
    units = implemented(path) if path.parts[-2] == "rtl" else set()
    named = names_in_code(path)
    for slot in SLOTS:
        for kind in kinds(slot):
            own = path.stem == kind and path.parts[-2] in (*SLOTS, "kernels", "rtl")
            if own or kind in SLOTS or kind in ORDINARY_WORDS or kind in MAY_NAME.get(name, set()) | units:
                continue  # a kind that is called like a slot (softmax, mlp, linear) cannot be told from it
            assert kind not in named, f"{name} names the {slot} kind {kind!r}"


def test_a_kind_lives_in_the_file_of_its_name():
    for slot in SLOTS:
        for kind, cls in kinds(slot).items():
            assert cls.__module__ == f"gptcore.{slot}.{kind}"
            assert cls.__doc__, cls


def test_command_line_is_frozen():
    """An option appears or disappears on purpose: change tests/golden/options.txt with it."""
    lines = []
    for command in COMMANDS:
        lines += [
            f"{command} {option}" for a in build_parser(command)._actions for option in a.option_strings or [a.dest]
        ]
    lines += [f"flat --{name}" for name in [*flat_names(), *all_switches()]]
    golden = ROOT / "tests" / "golden" / "options.txt"
    assert sorted(lines) == golden.read_text().splitlines()


def test_importing_is_cheap():
    """Nothing heavy or optional is imported before it is used, and the schema libraries are all that torch lacks."""
    script = (
        "import sys, torch; before = set(sys.modules); import gptcore, gptcore.config, gptcore.loader, gptcore.cli\n"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    loaded = set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )
    heavy = {
        "transformers",
        "lm_eval",
        "pandas",
        "matplotlib",
        "tiktoken",
        "rich",
        "triton",
        "fvcore",
        "tensorboard",
        "ppa",
    }
    assert not loaded & heavy


def test_no_machine_paths():
    pattern = re.compile(r"/(work|root|home)/[a-z]")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".sh", ".yaml", ".toml", ".txt") and path.exists():
            assert not pattern.search(path.read_text()), name
