"""Versions that the kernels cannot run with are named, not found out by a crash on a GPU."""

import importlib.metadata

import pytest

from gptcore import kernel_choice


@pytest.mark.parametrize(
    "torchs, tritons, why",
    [
        ("2.11.0+cu130", "3.6.0", None),
        ("2.9.1+cu128", "3.6.0", "torch 2.9.1+cu128 is older than 2.10"),
        ("2.13.0", "3.5.1", "triton 3.5.1 is older than 3.6"),
    ],
)
def test_versions(monkeypatch, torchs, tritons, why):
    pytest.importorskip("triton")
    monkeypatch.setattr(importlib.metadata, "version", {"torch": torchs, "triton": tritons}.__getitem__)
    assert kernel_choice._missing() == why
