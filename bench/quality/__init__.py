"""Replays of whole searches on learning curves, and what they say of a search's quality.

- curves: a task and its noise: a table of curves, or LCBench's surrogate
- folder: the tasks of a folder
- replay: workers, candidates, budget; the choice and the race that confirms it
- ours, optuna_peers, syne, smac_peer, neps_peer: the subjects
- subjects: their names
- results: what a replay leaves, a line a run
- measure: regret, compute to reach, intervals
- report: the tables and the goals
- stops: how often the best candidate is not trained to its end
"""
