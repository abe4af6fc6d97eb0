"""What a GPU can tell in ten minutes: ``python bench/gpu.py [--only NAME ...] [--timm-train FILE] [--quick]``.

It needs one NVIDIA GPU and the product's dependencies (the tests need those of ``dev``), and prints tables for
bench/trainer.md. Each section is a process of its own, with a limit of its own; so none can take the others' time:

    tests   the tests that are marked cuda
    step    time of a training step of rexnet_100 at 224, 64 and 128 px: as it is, as a CUDA graph, without each
            change that saves launches, and with other recipes
    bits    whether trainings end in the same bits: run to run, eager and graph, resumed
    pack    pictures a second of 1, 2 and 4 trainings at once on the GPU, and the workers_per_gpu that this suggests
    search  a search with two workers on the GPU, one of which gets kill -9
    timm    timm's train.py, which is in timm's repository and not in its wheel; left out without --timm-train

--quick takes a few steps of small pictures, for the null GPU (tests/nullgpu): it shows that everything runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where `trainer` is the package
from bench.gpuparts import RECIPE, SAVES, concatenated_shortcut, jpegs, pictures, stepper, timed, timm_rates, training

HERE, ROOT = Path(__file__), Path(__file__).parents[1]

LIMITS = {"tests": 110, "step": 180, "bits": 50, "pack": 70, "search": 110, "timm": 100}
"""Seconds of each section."""


@dataclass(frozen=True)
class Bench:
    """What the command line asks for."""

    quick: bool
    work: Path
    """Folder for pictures, caches and runs."""
    timm_train: Path | None

    @property
    def jpegs(self) -> tuple[Path, int, int]:
        """Where, how many, of how many pixels."""
        return (self.work, 300, 64) if self.quick else (self.work, 6000, 224)


def row(*cells: object) -> None:
    """Print a line of a table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def heads(*cells: str) -> None:
    """Print the head of a table."""
    row(*cells)
    row(*["---"] * len(cells))


# -- sections


def tests(bench: Bench) -> None:
    """The tests that are marked cuda; on the null GPU those that need no kernel."""
    chosen = ["-n", "0", "-k", "bf16 or copy_to or looking"] if bench.quick else ["-n", "4"]
    where = ["tests/trainer/test_device.py" if bench.quick else "tests/trainer", "tests/search/test_devices.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *chosen, *where]
    subprocess.run(command, cwd=ROOT, check=True)


def step(bench: Bench) -> None:
    """A training step, in several ways."""
    import torch

    heads("px", "rexnet_100", "ms a step", "pictures/s", "host ms", "peak GB")
    batch = 8 if bench.quick else 128

    def measure(
        size: int, name: str, *, graph: bool = False, streamed: bool = False, without: str = "", **settings: Any
    ) -> None:
        with concatenated_shortcut(without == "shortcut"):
            made = training(size, without=without, **{"batch_size": batch} | settings)
            if streamed:
                made.loader.resident = None
            if without == "casts" or name == "compiled":
                made.forward = made.model
            if name == "compiled":
                made.model.compile()
            wall, cpu = timed(stepper(made, graph=graph), 3 if bench.quick else 20)
        peak = torch.cuda.max_memory_reserved() / 1e9
        row(size, name, f"{wall:.2f}", f"{batch * 1e3 / wall:.0f}", f"{cpu:.1f}", f"{peak:.1f}")
        del made
        torch.cuda.empty_cache()

    for size in (64,) if bench.quick else (224, 64, 128):
        measure(size, "as it is")
        measure(size, "as a CUDA graph", graph=True)
        for change in SAVES:
            measure(size, f"without {change}", without=change)
    size = 64 if bench.quick else 224
    for graph in (False, True):
        how = " as a CUDA graph" if graph else ""
        measure(size, f"streamed{how}", graph=graph, streamed=True)
        measure(size, f"fp32{how}", graph=graph, precision="fp32")
        measure(size, f"agc{how}", graph=graph, agc=0.05)
        measure(size, f"mixup{how}", graph=graph, mixup=0.5)
        measure(size, f"sgd with sam{how}", graph=graph, optimizer="sgd", sam={"rho": 0.05})
    measure(size, "fp16", precision="fp16")
    measure(size, "nadam", optimizer="nadam")
    if not bench.quick:
        try:
            measure(64, "compiled")  # takes a minute or two before its first step
        except Exception as error:  # it needs a compiler, and whatever it may raise, the rows above stand
            row(64, "compiled", f"{type(error).__name__}: {error}".splitlines()[0])


def bits(bench: Bench) -> None:
    """Whether trainings end in the same bits."""
    import torch

    from trainer.checkpoint import load_checkpoint
    from trainer.config import TrainConfig
    from trainer.device import open_device
    from trainer.fit import fit

    batch, data = (8, pictures(64, 256)) if bench.quick else (128, pictures(64, 2048))

    def weights(*, graph: bool = False, **settings: Any) -> Any:
        made = training(64, data=data, batch_size=batch, **settings)
        take = stepper(made, graph=graph)
        for _ in range(10):
            take()
        return torch.cat([parameter.detach().flatten() for parameter in made.model.parameters()]).cpu()

    def trained(name: str, *, interrupted: bool = False, graph: bool = False) -> Any:
        settings = {"epochs": 2, "batch_size": batch, "cuda_graph": graph}
        config, file = TrainConfig.model_validate(RECIPE | settings), bench.work / name
        file.unlink(missing_ok=True)
        if interrupted:
            next(fit(config, data, open_device("cuda"), checkpoint=file))
        list(fit(config, data, open_device("cuda"), checkpoint=file))
        found = load_checkpoint(file)
        assert found is not None
        return torch.cat([tensor.flatten().float() for tensor in found.model.values()])

    def compare(name: str, one: Any, other: Any) -> None:
        same = torch.equal(one.view(torch.int32), other.view(torch.int32))  # not a number is unequal to itself
        row(name, "yes" if same else f"no, up to {(one - other).abs().max():.1e}")

    heads("trainings", "same bits")
    eager = weights()
    compare("run to run, 10 steps", eager, weights())
    compare("kernel by kernel and as a CUDA graph, 10 steps", eager, weights(graph=True))
    for name, settings in {
        "with mixup": {"mixup": 0.5},
        "SGD with SAM": {"optimizer": "sgd", "sam": {"rho": 0.05}},
        "with drop path and agc": {"drop_path": 0.1, "agc": 0.05},
    }.items():
        compare(f"the same {name}", weights(**settings), weights(graph=True, **settings))
    straight = trained("straight")
    compare("two epochs, and resumed after the first", straight, trained("cut", interrupted=True))
    compare("two epochs, and as a CUDA graph", straight, trained("graph", graph=True))
    compare(
        "two epochs, and as a CUDA graph resumed after the first",
        straight,
        trained("both", interrupted=True, graph=True),
    )


def pack(bench: Bench) -> None:
    """Several trainings at once on the GPU."""
    heads("px", "trainings at once", "pictures/s together", "each")
    for size, number in ((64, 3),) if bench.quick else ((64, 200), (224, 60)):
        together: dict[int, float] = {}
        for workers in (1, 2) if bench.quick else (1, 2, 4):
            command = [
                sys.executable,
                str(HERE),
                "--inside",
                "rate",
                str(size),
                str(number),
                *["--quick"] * bench.quick,
            ]
            running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(workers)]
            rates = [float(one.communicate()[0].split()[-1]) for one in running]
            together[workers] = sum(rates)
            row(size, workers, f"{sum(rates):.0f}", ", ".join(f"{rate:.0f}" for rate in rates))
        best = max(together, key=lambda workers: together[workers] / (1 + 0.05 * (workers > 1)))
        print(f"\nat {size} px: workers_per_gpu = {best}\n", flush=True)


def rate(size: int, number: int, quick: bool) -> None:
    """Print the pictures a second of one of several trainings at once."""
    batch = 8 if quick else 128
    print(batch * 1e3 / timed(stepper(training(size, batch_size=batch)), number)[0])


STUDY = """
name = "gpu"
[data]
image_size = {size}
test_fraction = 0.1
[limit]
params = 5_000_000
[train]
model = "rexnet_100"
epochs = 3
batch_size = 64
hflip = 0.5
rotate = 15.0
[space]
lr = {{ low = 1e-3, high = 5e-3, log = true }}
[search]
trials = 3
pruner = "none"
workers_per_gpu = 2
"""


def search(bench: Bench) -> None:
    """A search on JPEG files whose workers get kill -9 after the first epoch."""
    import psutil

    study, runs = bench.work / "gpu.toml", bench.work / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    study.write_text(STUDY.format(size=64 if bench.quick else 224))
    command = [sys.executable, "-P", "-m", "search"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    data, begun, killed = jpegs(*bench.jpegs), time.monotonic(), 0
    launch = [*command, "launch", str(study), "--data", str(data), "--gpus", "0", "--runs", str(runs)]
    searching = subprocess.Popen(launch, env=environment)
    state = runs / "studies" / "gpu" / "state.json"
    while searching.poll() is None and not killed:
        time.sleep(0.1)
        if state.exists() and '"val_accuracy": 0' in state.read_text():
            for child in psutil.Process(searching.pid).children():
                if "search.workers.worker" in child.cmdline() and not killed:
                    child.kill()
                    killed += 1
    code = searching.wait()
    again = subprocess.run(
        [*command, "status", "gpu", "--json", "--runs", str(runs)], env=environment, capture_output=True
    )
    counts = json.loads(again.stdout)["counts"]
    heads("a search of 3 trials, {:,} pictures of {} px".format(*bench.jpegs[1:]), "")
    row("workers killed, exit code, trials by state", f"{killed}, {code}, {counts}")
    row("seconds, decoding included", f"{time.monotonic() - begun:.0f}")
    if code or not killed or counts["COMPLETE"] != 3:
        raise SystemExit("the search did not end as it should")


def timm(bench: Bench) -> None:
    """timm's train.py with its flags set as well as we can; ours stands in the section step."""
    if bench.timm_train is None:
        print("left out: timm's train.py was not given (--timm-train FILE, from timm's repository)")
        return
    heads("px", "timm's train.py, rexnet_100, bf16, channels last", "pictures/s, median of the second half")
    batch = 8 if bench.quick else 128
    for size in (64,) if bench.quick else (224, 64):
        for compiled in (False, *([] if bench.quick else [True])):
            name = f"{size}-{'compiled' if compiled else 'eager'}"
            command = [
                sys.executable,
                str(bench.timm_train),
                "--data-dir",
                str(jpegs(*bench.jpegs)),
                "--val-split",
                "train",
            ]
            command += ["--model", "rexnet_100", "--num-classes", "10", "--img-size", str(size), "-b", str(batch)]
            command += [
                "--amp",
                "--amp-dtype",
                "bfloat16",
                "--channels-last",
                "--opt",
                "adamw",
                "--opt-kwargs",
                "fused=True",
            ]
            command += [
                "--workers",
                str(max(1, len(os.sched_getaffinity(0)) - 2)),
                "--pin-mem",
                "--epoch-repeats",
                "100",
            ]
            command += ["--smoothing", "0.1", "--hflip", "0.5", "--reprob", "0.25", "--log-interval", "5"]
            command += ["--output", str(bench.work / "timm"), "--experiment", name, "--epochs", "1"]
            rates = timm_rates([*command, *["--torchcompile", "inductor"] * compiled], 3 if bench.quick else 40)
            half = rates[len(rates) // 2 :]
            row(
                size,
                "with --torchcompile" if compiled else "eager",
                f"{statistics.median(half):.0f}" if half else "none",
            )


SECTIONS: dict[str, Callable[[Bench], None]] = {
    section.__name__: section for section in (tests, step, bits, pack, search, timm)
}


def card() -> str:
    """The GPU, its memory and torch, in words."""
    import torch

    from trainer.device import best_kind

    if best_kind() == "cpu":
        raise SystemExit("torch sees no GPU here; python bench/trainer.py measures the CPU")
    free, total = torch.cuda.mem_get_info()
    name, capability = torch.cuda.get_device_name(), ".".join(map(str, torch.cuda.get_device_capability()))
    memory = f"{free / 1e9:.0f} of {total / 1e9:.0f} GB free"
    return f"{name} (compute capability {capability}, {memory}), torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def run(names: list[str], bench: Bench) -> int:
    """Run sections, each in a process of its own. Returns the exit code: 1 if one failed."""
    if subprocess.run([sys.executable, str(HERE), "--inside", "card"]).returncode:
        return 1
    ended: dict[str, str] = {}
    for name in names:
        print(f"\n### {name}\n", flush=True)
        command = [sys.executable, str(HERE), "--inside", name, "--work", str(bench.work), *["--quick"] * bench.quick]
        command += ["--timm-train", str(bench.timm_train)] if bench.timm_train else []
        begun, section = time.monotonic(), subprocess.Popen(command, start_new_session=True)
        try:
            code = section.wait(LIMITS[name] * (4 if bench.quick else 1))
            ended[name] = "done" if code == 0 else f"failed with code {code}"
        except subprocess.TimeoutExpired:
            ended[name] = f"cut at its limit of {LIMITS[name]} s"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(section.pid, signal.SIGKILL)
        section.wait()
        ended[name] += f", {time.monotonic() - begun:.0f} s"
    print("\n### sections\n")
    for name, how in ended.items():
        row(name, how)
    return int(any("failed" in how for how in ended.values()))


def main() -> None:
    """Run the sections that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--timm-train", type=Path, help="timm's train.py, from its repository; left out without it")
    parser.add_argument("--quick", action="store_true", help="a few steps of small pictures")
    parser.add_argument("--work", type=Path, help="folder for pictures and runs; default: one that is deleted")
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        bench = Bench(asked.quick, asked.work or Path(folder), asked.timm_train)
        bench.work.mkdir(parents=True, exist_ok=True)
        if asked.inside is None:
            sys.exit(run(asked.only, bench))
        name, *rest = asked.inside
        if name == "card":
            print(card())
        elif name == "rate":
            rate(int(rest[0]), int(rest[1]), bench.quick)
        else:
            SECTIONS[name](bench)
        sys.stdout.flush()
    os._exit(0)  # autograd's thread for the GPU may outlive the library it calls, on the null GPU


if __name__ == "__main__":
    main()
