"""How a search decides: which candidate goes on at a rung, and which is tried next. It imports Optuna, but not
``search.study``.

ladder      the rungs of a study: after how many steps candidates are compared
promotion   decides which candidates go on from a rung, and which are paused there
race        decides which of the best candidates is exported: rounds of trainings with fresh seeds
model       the sampler "model", which decides the settings to try next
tpe         the sampler "tpe": Optuna's, with a cache of trials
halving     the pruner "successive_halving": Optuna's, with a cache of values at rungs
replaced    which trials have changed since the sampler or the pruner read them
kernels     the density of many trials, for "tpe", up to a small error
parzen      the same density exactly
candidates  the trials of a study as the sampler sees them
estimate    the estimated end of a candidate, from the rungs that it has reached
encoding    settings as points of the unit cube
gp          the Gaussian process
propose     the point with the highest expected improvement
"""
