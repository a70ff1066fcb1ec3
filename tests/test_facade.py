"""The names that notebooks import: each is there, lazily, and is the very object of its module."""

import subprocess
import sys
from importlib import import_module

import pytest

import workbench


@pytest.mark.parametrize("name", workbench.__all__)
def test_a_public_name_is_its_modules_own(name):
    place = workbench._PLACE[name]
    assert getattr(workbench, name) is getattr(import_module(place), name)
    assert name in dir(workbench)


def test_an_unknown_name_is_refused_as_by_any_module():
    with pytest.raises(AttributeError, match="no attribute 'GPRO'"):
        workbench.GPRO
    with pytest.raises(ImportError):
        from workbench import GPRO  # noqa: F401


def test_importing_the_package_loads_neither_torch_nor_a_module_of_its_own():
    code = (
        "import sys, workbench; print([m for m in sys.modules if m == 'torch' or "
        "m.startswith('workbench.')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
