"""What `info` and `verify` tell, as functions and on the command line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import torch_projectors
from torch_projectors import verification
from torch_projectors.__main__ import main
from torch_projectors.cases import CASES
from torch_projectors.geometry import INTERPOLATION_CODES
from torch_projectors.ops import REFERENCE

FEW = [c for c in CASES if c.name in ("odd", "poses for each")]


def wrong(op: str, change):
    """The reference with one op's results changed."""
    names = ("forward_project", "backward_project", "project_gradients")
    ops = {name: getattr(REFERENCE.bare, name) for name in names}
    right = ops[op]
    ops[op] = lambda *args: change(right(*args))
    return lambda device: SimpleNamespace(bare=SimpleNamespace(**ops))


def test_cases_cover_every_geometry_interpolation_and_option():
    kinds = {(len(c.volume_shape), len(c.image_shape), c.interpolation) for c in CASES}
    assert kinds == {(*g, i) for g in ((2, 2), (3, 2), (3, 3)) for i in INTERPOLATION_CODES}
    for dims, image_dims, interpolation in kinds:
        of_kind = [
            c
            for c in CASES
            if (len(c.volume_shape), len(c.image_shape), c.interpolation) == (dims, image_dims, interpolation)
        ]
        assert {c.rotation_batch == c.batch for c in of_kind} == {True, False}
        assert {c.shift_batch for c in of_kind} == {None, 1, 2}
        assert {n % 2 for c in of_kind for n in c.image_shape} == {0, 1}
        assert any(c.oversampling > 1 for c in of_kind) and any(c.stretch for c in of_kind)


def test_every_loaded_backend_passes_verification():
    results = list(torch_projectors.verify(cases=FEW))
    loaded = {name for name, b in torch_projectors.backends().items() if b.status == "loaded"}
    assert {r.backend for r in results if r.device == "cpu"} <= loaded
    assert {r.dtype for r in results} == {torch.complex64, torch.complex128}
    assert [str(r.case) for r in results if not r.passed] == []


@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("forward_project", lambda y: y * (1 + 1e-3)),
        ("forward_project", lambda y: torch.full_like(y, float("nan"))),
        ("forward_project", lambda y: y[..., :-1]),
        ("backward_project", lambda out: (out[0], out[1] * (1 + 1e-3))),
        ("project_gradients", lambda out: (*out[:2], out[2] * (1 + 1e-3), out[3])),
    ],
    ids=["values", "not a number", "shape", "weights", "rotation gradient"],
)
def test_a_wrong_backend_fails_verification(monkeypatch, capsys, op, change):
    monkeypatch.setattr(verification, "selected", wrong(op, change))
    cases = [c for c in FEW if c.interpolation == "linear"]
    assert not any(r.passed for r in torch_projectors.verify(["reference"], cases))
    monkeypatch.setattr(verification.verify, "__defaults__", (None, cases, None))
    assert main(["verify", "--backend", "reference"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed and f"0 passed, {2 * len(cases)} failed" in printed


def test_a_backend_that_raises_fails_verification_with_its_reason(monkeypatch):
    def raising(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(verification, "selected", wrong("forward_project", raising))
    (result,) = [r for r in torch_projectors.verify(["reference"], FEW[:1]) if r.dtype == torch.complex64]
    assert not result.passed and result.failure == "RuntimeError: no such kernel"


def test_verifying_a_backend_that_is_not_there_says_so(capsys):
    with pytest.raises(ValueError, match="'abacus' cannot be verified, it is not installed"):
        list(torch_projectors.verify(["abacus"]))
    with pytest.raises(SystemExit) as exit:
        main(["verify", "--backend", "abacus"])
    assert exit.value.code == 2 and "not installed" in capsys.readouterr().err


def test_command_line_verifies_with_a_row_for_each_case(monkeypatch, capsys):
    monkeypatch.setattr(verification.verify, "__defaults__", (None, FEW[:2], None))
    assert main(["verify", "--backend", "reference", "--every-case"]) == 0
    printed = capsys.readouterr().out
    assert "4 passed, 0 failed" in printed and printed.count("poses for each") == 2


def test_info_names_versions_devices_and_backends(capsys, monkeypatch):
    monkeypatch.setenv("TORCH_PROJECTORS_DISABLE", "abacus")
    facts = torch_projectors.info()
    assert torch_projectors.__version__ in facts["torch_projectors"] and torch.__version__ in facts["torch"]
    assert facts["TORCH_PROJECTORS_DISABLE"] == "abacus"
    assert "loaded" in facts["backend reference"]
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed and fact in printed for name, fact in facts.items())
