"""How a search decides: which candidate goes on at a rung, and which is tried next. It knows Optuna, and no study.

ladder      the rungs of a study: after how many steps candidates are compared
promotion   which candidates go on from a rung, and which wait there
model       the sampler: which settings are tried next
seen        what it sees of the trials
estimate    at what a candidate would end, from the rung that it has reached
encoding    settings as points of a cube
gp          the Gaussian process
propose     the highest expected improvement
"""
