"""Builds the null GPU with gcc, and says under which environment a process sees it. README.md says what it proves.

python tests/nullgpu/machine.py FOLDER    prints that environment, for a shell: env $(...) search launch digits
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).parent / "source"

COUNTERS = (
    *("launches", "to_device", "from_device", "on_device", "memsets", "syncs", "allocations", "pinned"),
    *("convolutions", "products", "norms", "bytes_to_device", "graph_launches", "streams"),
)
"""Names of the numbers in ``nullgpu_counts``, in the order of source/nullgpu.h."""

ANSWERED = r"(__)?cuda[A-Z]|cublas|cudnn|cusolver|cusparse(?!Lt)"
"""Beginnings of the calls that the null GPU answers in place of the libraries of the CUDA wheels."""

TORCH_LIBRARIES = ("torch_cuda", "c10_cuda", "torch_python", "torch_cuda_linalg", "torch_nvshmem")


class NotBuildable(Exception):
    """The machine lacks gcc, or the CUDA build of torch."""


def build(cache: Path) -> dict[str, str]:
    """Build the null GPU into ``cache``, unless it is there.

    Returns:
        The environment under which a process sees it.

    Raises:
        NotBuildable: what is missing, in words.
    """
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    if not (torch / "lib" / "libtorch_cuda.so").exists():
        raise NotBuildable("this torch was built without CUDA")
    said = "".join(file.read_text(encoding="utf-8") for file in (*sorted(SOURCE.iterdir()), torch / "version.py"))
    out = cache / hashlib.sha256(said.encode()).hexdigest()[:16]
    if not (out / "done").exists():
        try:
            _build(torch, out)
        except FileNotFoundError as error:
            raise NotBuildable(f"{error.filename} is not installed") from error
        except subprocess.CalledProcessError as error:
            raise NotBuildable(f"gcc cannot build the null GPU: {error.stderr}") from error
        (out / "done").touch()
    return {"LD_PRELOAD": f"{out}/libnullgpu.so", "LD_LIBRARY_PATH": f"{out}/lib"}


def _build(torch: Path, out: Path) -> None:
    def run(*command: str | Path) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def symbols(file: Path, which: str) -> set[str]:
        return {line.split()[-1].partition("@")[0] for line in run("nm", which, file).splitlines() if line.strip()}

    (out / "lib").mkdir(parents=True, exist_ok=True)
    packages = torch.parent / "nvidia"
    # What the CUDA wheels leave out: triton has crt/, and nv/target may be empty for C.
    (out / "include/nv").mkdir(parents=True, exist_ok=True)
    (out / "include/nv/target").touch()
    if not (out / "include/crt").exists():
        (out / "include/crt").symlink_to(packages.parent / "triton/backends/nvidia/include/crt")
    folders = [out / "include", *sorted(packages.glob("*/include"))]
    gcc = ["gcc", "-O1", "-w", "-fPIC", *(f"-I{folder}" for folder in folders)]
    objects = [out / f"{name}.o" for name in ("runtime", "libraries", "counted")]
    for file in objects:
        run(*gcc, "-c", SOURCE / f"{file.stem}.c", "-o", file)
    wanted = set().union(
        *(symbols(file, "-Du") for name in TORCH_LIBRARIES if (file := torch / "lib" / f"lib{name}.so").exists())
    )
    done = set().union(*(symbols(file, "--defined-only") for file in objects))
    rest = sorted(name for name in wanted - done if re.match(ANSWERED, name))
    (out / "rest.c").write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in rest), encoding="utf-8")
    run(*gcc, "-shared", *objects, out / "rest.c", "-o", out / "libnullgpu.so", "-lpthread")
    run(*gcc, "-shared", SOURCE / "driver.c", "-o", out / "lib/libcuda.so.1")
    run(*gcc, "-shared", SOURCE / "nvml.c", "-o", out / "lib/libnvidia-ml.so.1")


if __name__ == "__main__":
    try:
        print(*(f"{name}={value}" for name, value in build(Path(sys.argv[1]).resolve()).items()))
    except NotBuildable as error:
        sys.exit(str(error))
