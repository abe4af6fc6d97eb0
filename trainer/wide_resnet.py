"""Wide ResNets for small pictures (Zagoruyko and Komodakis, 2016), which timm does not have."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

STEM_CHANNELS = 16
"""Channels of the first convolution, and of the first stage at width 1 (ibid., table 1)."""


class WideResNet(nn.Module):
    """A wide ResNet of ``depth`` layers: three stages of pre-activation blocks, 16, 32 and 64 times ``width`` channels.

    Args:
        depth: number of layers, 6 n + 4 for n blocks in each stage.
        width: factor on the channels; need not be an integer.
        num_classes: number of outputs.
        in_chans: channels of the input [batch, in_chans, height, width].
        drop_rate: dropout between the two convolutions of a block, as in the paper.

    Raises:
        ValueError: ``depth`` is not 6 n + 4.
    """

    def __init__(self, depth: int, width: float, num_classes: int, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"a wide ResNet has 6 n + 4 layers, so 10, 16, 22, 28, 34, 40, ...; not {depth}")
        channels = [STEM_CHANNELS, *(max(1, round(STEM_CHANNELS * factor * width)) for factor in (1, 2, 4))]
        self.stem = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False)
        self.stages = nn.Sequential(
            *(
                _Block(channels[stage] if block == 0 else out, out, 2 if stage > 0 and block == 0 else 1, drop_rate)
                for stage, out in enumerate(channels[1:])
                for block in range(blocks)
            )
        )
        self.norm = nn.BatchNorm2d(channels[-1])
        self.head = nn.Linear(channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits [batch, num_classes] of pictures [batch, in_chans, height, width]."""
        features = F.relu(self.norm(self.stages(self.stem(pictures))))
        return self.head(features.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        inner = self.conv2(self.dropout(F.relu(self.norm2(self.conv1(activated)))))
        return inner + shortcut  # type: ignore[no-any-return]
