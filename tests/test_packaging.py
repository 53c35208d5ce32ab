"""What gets installed, and that our `kernels` does not trouble packages that know another one by that name."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gptcore.cli import COMMANDS

ROOT = Path(__file__).parent.parent


def test_the_package_list_is_complete():
    """Exactly the packages of the four top-level folders; `data` and `explorations` are folders of files."""
    text = (ROOT / "pyproject.toml").read_text()
    listed = set(re.findall(r'"([\w.]+)"', text.split("packages = [")[1].split("]")[0]))
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("gptcore", "kernels", "ppa", "search")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert listed == found


def test_make_targets_are_short_and_call_what_exists():
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):.*?##.*\n((?:\t.*\n)*)", text, re.M)
    assert {name for name, _ in targets} >= {
        "help",
        "setup",
        "train",
        "sample",
        "report",
        "inspect",
        "test",
        "check",
        "bench",
    }
    for name, recipe in targets:
        assert len(recipe.splitlines()) <= 3, name
        done = subprocess.run(["make", "-n", name], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for command in re.findall(r"bin/gptcore (\w+)", done.stdout):
            assert command in COMMANDS
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_benchmarks_can_be_collected():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks",
        "-o",
        "python_files=bench_*.py",
        "--collect-only",
        "-m",
        "",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "bench_training_step.py" in done.stdout, done.stdout + done.stderr


def test_transformers_and_lm_eval_import_with_our_kernels_in_front():
    for package in ("transformers", "lm_eval"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (extra hf or eval)")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import kernels\n"
        "assert kernels.__file__.startswith(sys.argv[1]), kernels.__file__\n"
        "import transformers, lm_eval\n"
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "from lm_eval import simple_evaluate\n"
        "import torch\n"
        "config = GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=0)\n"
        "print(GPT2LMHeadModel(config)(torch.zeros(1, 4, dtype=torch.long)).logits.shape)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "torch.Size([1, 4, 32])" in done.stdout


def test_the_variant_of_the_contributing_guide_passes_its_contract(tmp_path):
    """The guide's complete example, one file, no edit elsewhere."""
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    (block,) = re.findall(r"```python\n# gptcore/(activation/\w+)\.py\n(.*?)```", guide, re.S)
    name = block[0].split("/")[1]
    (tmp_path / f"{name}.py").write_text(block[1])
    script = (
        f"import gptcore.activation, pytest, sys; gptcore.activation.__path__.append({str(tmp_path)!r})\n"
        "contract = ['-q', '-p', 'no:cacheprovider', 'tests/contract/test_contract.py']\n"
        f"sys.exit(pytest.main([*contract, '-k', 'activation-{name}']))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
