"""The steps of a training as replays of a CUDA graph: the host launches one graph instead of a thousand kernels.

Follows the notes on graphs (pytorch.org/docs/stable/notes/cuda.html, "Whole-network capture"). Batches are made outside
the graph. All that changes from step to step is copied into tensors which the graph reads: images, labels, the shares
of mixed labels, and the learning rate.
"""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
from torch import nn

from trainer.augment import Batch
from trainer.device import Device

FIRST_STEPS = 3
"""Number of steps that are taken kernel by kernel before the capture. In them, torch and the libraries allocate what
they keep, and the optimizer makes its state."""


class Steps(Protocol):
    """The parts of a training from which a graph is made."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def step(self, batch: Batch, lr: float | torch.Tensor) -> torch.Tensor:
        """Take one optimizer step. Returns its loss and its accuracy, [2] on the device."""
        ...


class Replay:
    """Takes the steps of a training, from the fifth on as replays of a graph.

    The fourth step is taken twice from the same state: kernel by kernel, and as the first replay. If any bit of
    weights, optimizer state or loss differs, or if the step cannot be captured, this and all further steps are taken
    kernel by kernel, with a warning.

    Args:
        training: the training, before its first step in this process.
        device: a GPU.
        mixes: whether some batches are mixed. One graph then serves all batches, mixed or not.
    """

    def __init__(self, training: Steps, device: Device, *, mixes: bool) -> None:
        self.training, self.device, self.mixes = training, device, mixes
        self.inputs: _Inputs | None = None
        self.taken = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch, lr: float) -> torch.Tensor:
        """Take one optimizer step; as ``Training.step``. The result is valid until the next step."""
        if self.inputs is None:
            self.inputs = _Inputs(batch, mixes=self.mixes)
        self.inputs.fill(batch, lr)
        if self.graph is not None:
            self.graph.replay()
            if self.counters:
                torch._foreach_add_(self.counters, self.advances)
            return self.found
        self.taken += 1
        return self._capture(self.inputs) if self.taken == FIRST_STEPS + 1 else self._eager(self.inputs)

    def _eager(self, inputs: _Inputs) -> torch.Tensor:
        """Take a step kernel by kernel, on the stream on which it is captured."""
        side, training = self.device.graph_stream, torch.cuda.current_stream(self.device.torch_device)
        side.wait_stream(training)
        with torch.cuda.stream(side):
            found = self.training.step(inputs.batch, inputs.lr)
        training.wait_stream(side)
        return found

    def _capture(self, inputs: _Inputs) -> torch.Tensor:
        """Take a step in both ways; keep the graph if the results are the same. This waits for the GPU."""
        before = self._state()
        found, waits = self._watched(inputs)
        after = self._state()
        why = "a step waits for the GPU" if waits else "the captured step gives other bits"
        if not waits:
            self._set(before)
            try:
                graph, replayed = self._captured(inputs)
                graph.replay()
                if _same([*self._state(), replayed.cpu()], [*after, found.cpu()]):
                    self._keep(graph, replayed, before, after)
                    return replayed
            except RuntimeError as error:  # torch has no class of its own for errors of a capture
                why = f"a step cannot be captured: {error}".partition("\n")[0]
            self._set(after)
        warnings.warn(f"cuda_graph: {why}; this training goes on kernel by kernel", stacklevel=2)
        return found

    def _watched(self, inputs: _Inputs) -> tuple[torch.Tensor, bool]:
        """Take a step kernel by kernel. Also returns whether it waited for the GPU: a step that waits cannot be
        captured, and a capture that fails leaves torch's allocator in an undefined state."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                found = self._eager(inputs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return found, any("called a synchronizing CUDA operation" in str(one.message) for one in caught)

    def _keep(
        self, graph: torch.cuda.CUDAGraph, found: torch.Tensor, before: list[torch.Tensor], after: list[torch.Tensor]
    ) -> None:
        """Keep a graph. It does not contain batch norm's counters, because they are on the host: at each replay, they
        advance as they did in the step that was taken kernel by kernel."""
        self.graph, self.found = graph, found
        states = zip(self._tensors(), before[:-1], after[:-1], strict=True)
        counted = [(own, last - first) for own, first, last in states if own.device.type == "cpu"]
        self.counters, self.advances = [own for own, _ in counted], [advance for _, advance in counted]

    def _captured(self, inputs: _Inputs) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """The graph of a step, and the tensor into which it writes loss and accuracy. No step is taken on
        the GPU; only batch norm's counters on the host advance."""
        for group in self.training.optimizer.param_groups:
            group["capturable"] = True
        graph, side = torch.cuda.CUDAGraph(), self.device.graph_stream
        # In other threads CUDA may be used meanwhile: one of them pins pictures.
        with torch.cuda.stream(side), torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            found = self.training.step(inputs.batch, inputs.lr)
        return graph, found

    def _tensors(self) -> list[torch.Tensor]:
        """All tensors that a step changes."""
        model, states = self.training.model, self.training.optimizer.state.values()
        of_optimizer = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
        return [*(parameter.detach() for parameter in model.parameters()), *model.buffers(), *of_optimizer]

    def _state(self) -> list[torch.Tensor]:
        """Copies of all tensors that a step changes, on the host, and the random state."""
        copies = [tensor.to("cpu", copy=True) for tensor in self._tensors()]
        return [*copies, torch.cuda.get_rng_state(self.device.torch_device)]

    def _set(self, state: list[torch.Tensor]) -> None:
        for tensor, value in zip(self._tensors(), state[:-1], strict=True):
            tensor.copy_(value)
        torch.cuda.set_rng_state(state[-1], self.device.torch_device)


class _Inputs:
    """The tensors that a graph reads: a batch, and the learning rate.

    Args:
        like: a batch, for shapes and layouts.
        mixes: whether some batches are mixed. A batch that is not mixed counts as mixed with itself, with the share 1.
    """

    def __init__(self, like: Batch, *, mixes: bool) -> None:
        self.share, self.other_share, self.lr = torch.zeros(3, device=like.images.device).unbind()
        self.images, self.labels = torch.empty_like(like.images), torch.empty_like(like.labels)
        self.other_labels = torch.empty_like(like.labels) if mixes else None
        self.batch = Batch(self.images, self.labels, self.other_labels, self.share, self.other_share)

    def fill(self, batch: Batch, lr: float) -> None:
        self.lr.fill_(lr)
        self.images.copy_(batch.images)
        self.labels.copy_(batch.labels)
        if self.other_labels is not None:
            self.other_labels.copy_(batch.labels if batch.other_labels is None else batch.other_labels)
            self.share.fill_(batch.share)
            self.other_share.fill_(batch.other_share)


def _same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Whether tensors on the host have the same bits; "not a number" equals itself here."""
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8)) for a, b in pairs)
