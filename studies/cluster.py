"""The fields of [cluster]: how workers are asked for on a cluster."""

from __future__ import annotations

from pydantic import Field

from trainer.values import FrozenModel


class Cluster(FrozenModel):
    """Workers on a cluster, with `--gpus slurm` or `--gpus ray`. May be changed between two launches of a study."""

    srun: tuple[str, ...] = ()
    """Further options of srun, for example ["--partition=gpu", "--time=12:00:00"]."""
    address: str = ""
    """HOST:PORT of a Ray cluster. Default: that of RAY_ADDRESS, else the cluster of this machine."""
    threads: int = Field(4, ge=1)
    """CPU cores of each worker, and threads of torch in it. On the CPU, another number changes results."""
