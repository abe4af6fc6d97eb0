"""The subjects by name. Peers are imported only when they are used, because they are optional."""

from __future__ import annotations

from collections.abc import Callable

from optuna.samplers import BaseSampler

from quality import optuna_peers as peers
from quality import ours
from quality.optuna_peers import STARTUP, OptunaSubject
from quality.ours import PromoteSubject
from quality.replay import Subject
from search.policy.ladder import Ladder


def model(seed: int, ladder: Ladder) -> BaseSampler:
    """The product's sampler."""
    from search.policy.model import ModelSampler

    sampler: BaseSampler = ModelSampler(seed=seed, ladder=ladder, startup_trials=STARTUP)
    return sampler


def random(seed: int, ladder: Ladder) -> BaseSampler:
    """Random settings, for the product's promotion."""
    return peers.uniform(seed)


def _syne(scheduler: str) -> Subject:
    from quality.syne import SyneSubject

    return SyneSubject(scheduler)


def _smac() -> Subject:
    from quality.smac_peer import SmacSubject

    return SmacSubject()


def _neps() -> Subject:
    from quality.neps_peer import NepsSubject

    return NepsSubject()


OURS: dict[str, Callable[[], Subject]] = {
    "model": lambda: PromoteSubject(model, ours.truncated),
    "model_anew": lambda: PromoteSubject(model, ours.anew),
    "model_whole": lambda: PromoteSubject(model, ours.whole),
    "random_promote": lambda: PromoteSubject(random, ours.truncated),
    "random_anew": lambda: PromoteSubject(random, ours.anew),
}
"""Subjects made of the product's own objects."""

PEERS: dict[str, Callable[[], Subject]] = {
    "tpe": lambda: OptunaSubject(peers.tpe, peers.none),
    "tpe_median": lambda: OptunaSubject(peers.tpe, peers.median),
    "tpe_hyperband": lambda: OptunaSubject(peers.tpe, peers.hyperband),
    "tpe_sha": lambda: OptunaSubject(peers.tpe, peers.halving),
    "gp": lambda: OptunaSubject(peers.gp, peers.none),
    "random": lambda: OptunaSubject(peers.uniform, peers.none),
    "asha": lambda: _syne("ASHA"),
    "bohb": lambda: _syne("BOHB"),
    "smac": _smac,
    "priorband": _neps,
}

SUBJECTS = OURS | PEERS
BASELINE = "tpe"
"""The subject that ratios refer to: plain Optuna."""
