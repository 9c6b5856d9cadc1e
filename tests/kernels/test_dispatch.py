"""Which implementation runs: by device, by preference, by what others registered."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest
import torch

import steer_kernels
from steer_kernels import dispatch
from steer_kernels.fused import FILES, find

OPERATIONS = sorted(FILES)


@pytest.mark.parametrize("name", OPERATIONS)
def test_both_implementations_have_one_signature(name):
    reference, fused = getattr(steer_kernels, name).reference, find(name)
    assert fused is not None
    want, have = inspect.signature(reference).parameters, inspect.signature(fused).parameters
    assert list(want) == list(have)
    for key, parameter in want.items():
        assert (parameter.kind, parameter.default) == (have[key].kind, have[key].default), key


@pytest.mark.parametrize("name", OPERATIONS)
def test_triton_on_cuda_and_torch_elsewhere(name):
    reference, fused = getattr(steer_kernels, name).reference, find(name)
    assert dispatch.best(name, "cuda") is fused
    assert dispatch.best(name, "cpu") is reference
    with steer_kernels.prefer("triton"):
        assert dispatch.best(name, "cpu") is fused
    with steer_kernels.prefer("torch"):
        assert dispatch.best(name, "cuda") is reference
    assert dispatch.best(name, "mps") is reference


def test_the_public_function_takes_its_first_argument_by_name_too():
    h, v = torch.randn(2, 3), torch.randn(3)
    torch.testing.assert_close(steer_kernels.shift(h=h, v=v), h + v)
    torch.testing.assert_close(steer_kernels.jsd(first=h, second=h), torch.zeros(2))


def test_somebody_elses_kernel_goes_first_and_is_taken_back():
    h, v = torch.randn(2, 3), torch.randn(3)
    dispatch.adopt({("shift", "cpu"): lambda h, v, *args, **kwargs: h * 0})
    try:
        assert not steer_kernels.shift(h, v).any()
        with steer_kernels.prefer("torch"):
            torch.testing.assert_close(steer_kernels.shift(h, v), h + v)
    finally:
        dispatch.adopt({})
    torch.testing.assert_close(steer_kernels.shift(h, v), h + v)


def test_an_unknown_operation_is_a_key_error():
    with pytest.raises(KeyError, match="no_such"):
        dispatch.best("no_such", "cpu")


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_the_environment_chooses_for_a_whole_program():
    ask = "from steer_kernels.dispatch import best; print(best('shift', 'cuda').__module__)"
    assert run(ask, STEER_KERNELS="torch").stdout.strip() == "steer_kernels.shift"
    refused = run(ask, STEER_KERNELS="cuda")
    assert refused.returncode != 0
    assert "auto, torch, triton" in refused.stderr


def test_without_triton_cuda_gets_torch_and_a_warning():
    done = run(
        "import sys, warnings\n"
        "sys.modules['triton'] = None\n"
        "from steer_kernels.dispatch import best\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    print(best('shift', 'cuda').__module__, best('jsd', 'cuda').__module__, len(seen), seen[0].message)\n"
    )
    assert done.stdout.startswith("steer_kernels.shift steer_kernels.jsd"), done.stderr
    assert "plain torch" in done.stdout
