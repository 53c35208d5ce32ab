"""A copy of the kernels with one mistake, for checks that must see it."""

import importlib
import shutil
from pathlib import Path
from types import ModuleType

import kernels


def faulty(tmp_path: Path, monkeypatch, module: str, file: str, right: str, wrong: str) -> ModuleType:
    """`module` of a copy of the package in whose `file`.py the text `right` reads `wrong`, once and everywhere."""
    package = "faulty_" + "".join(c if c.isalnum() else "_" for c in tmp_path.name)
    source = Path(str(kernels.__file__)).parent
    shutil.copytree(source, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (tmp_path / package).rglob("*.py"):
        text = path.read_text().replace("gptkernels::", package + "::")
        if path.stem == file and path.parent.name == package:
            assert right in text, f"{file} does not read {right!r}"
            text = text.replace(right, wrong)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module(f"{package}.{module}")
