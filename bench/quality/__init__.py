"""Replays of whole searches on recorded learning curves, and measures of a search's quality.

- curves: tasks and their noise: a table of curves, or LCBench's surrogate
- folder: reads the tasks of a folder
- replay: one search with its workers, candidates and budget; its choice, and the race that confirms it
- ours, optuna_peers, syne, smac_peer, neps_peer: the subjects, which are the policies to compare
- staged: common code of smac_peer and neps_peer
- subjects: the subjects by name
- results: the results file, with a line for each run
- measure: regret, compute to reach a regret, intervals
- report: the tables and the goals
- real: searches with real training, ours and plain Optuna's
- races: the race before an export, simulated
- transfer: searches with and without recipes of earlier studies
- noise: how well the noise of a training is known from two seeds
- stops: how often the best candidate is not trained to its end
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else ONNX Runtime, once it is imported, reports its use to its makers
