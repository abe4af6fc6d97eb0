"""Processes that train, and the policy for failures. This room imports no database and no display.

pool      the contract of every pool of workers
messages  the messages between coordinator and workers: frozen values, one JSON form
piped     pools of subprocesses, JSON lines over pipes
local     workers on this machine
slurm     workers on a Slurm cluster, each started by its own srun
ray       workers on a Ray cluster, each started by its own actor
ray_node  what runs on its nodes: a worker's process, and the files that travel
ray_cluster  the connection to a Ray cluster, and its token
places    the meaning of --gpus with a cluster, and the pool for it
worker    the child process: trains on one device with `trainer.fit`, sends each epoch and waits for the answer
crew      starts, watches and replaces workers; puts bad devices aside
failures  the kinds of failure of a training, and the one policy for all of them
"""
