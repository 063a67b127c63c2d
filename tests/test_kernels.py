"""The kernel, interpreted here and for real on a GPU, and what is left without it."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from auditor.scoring.kernels import GROUP, TILES, is_available

CASES = Path(__file__).with_name("kernel_cases.py")
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
KIB = 1024
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs triton, which has no build for this machine"
)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=CASES.parents[1],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def run_cases(**environment: str) -> None:
    # Alone in a process, as Triton decides at its first import whether it interprets.
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--noconftest")
    done = run("-m", "pytest", *options, str(CASES), **environment)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@needs_triton
def test_the_kernel_interpreted() -> None:
    run_cases(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernel_on_a_gpu() -> None:
    run_cases()


def test_without_triton_the_module_says_no() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from auditor.scoring.kernels import is_available\n"
        "print(is_available(torch.device('cpu')), is_available(torch.device('cuda')))\n"
    )
    assert run("-c", code, TRITON_INTERPRET="1").stdout.split() == ["False", "False"]


def test_a_cpu_has_no_kernel_and_triton_is_not_even_read() -> None:
    assert not is_available(torch.device("cpu"))
    code = (
        "import sys, torch\n"
        "from auditor.scoring.kernels import is_available\n"
        "print(is_available(torch.device('cpu')), 'triton' in sys.modules)\n"
    )
    assert run("-c", code).stdout.split() == ["False", "False"]


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "architecture", "instruction", "shared_kib"),
    [
        (torch.bfloat16, 90, "wgmma.mma_async", 227),
        (torch.bfloat16, 86, "mma.sync", 99),
        (torch.float32, 90, "fma.rn.f32", 227),
    ],
)
def test_the_kernel_compiles_without_a_gpu_at_hand(
    dtype: torch.dtype,
    architecture: int,
    instruction: str,
    shared_kib: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For an H100 and for the smallest card: in its memory, with the products that are meant."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget

    from auditor.scoring.triton_sums import sums_of_share

    tile = TILES[dtype]
    pointer = f"*{NAMES[dtype]}"
    types = dict.fromkeys(sums_of_share.arg_names, "i32")
    types.update(hidden=pointer, weight=pointer, bias=pointer, targets="*i64", sums="*fp32")
    types.update(best_column="*i32", scale="fp32", cap="fp32", inverse_cap="fp32")
    constants = {
        "hidden_step": 1,
        "weight_step": 1,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "GROUP": GROUP,
        "HAS_BIAS": True,
        "HAS_SCALE": True,
        "HAS_CAP": True,
        "IS_EVEN": True,
        "INTERPRETED": False,
    }
    types.update(dict.fromkeys(constants, "constexpr"))
    aligned = ("hidden", "weight", "bias", "width", "hidden_row", "weight_row")
    source = triton.compiler.ASTSource(
        sums_of_share,
        types,
        constants,
        {(sums_of_share.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            "enable_fp_fusion": True,
        },
    )
    assert instruction in compiled.asm["ptx"]
    assert "tf32" not in compiled.asm["ptx"]
    assert compiled.metadata.shared <= shared_kib * KIB
