"""A study made concrete before a worker exists: pictures, exact bounds, counts, cost. It opens no study.

prepare   pictures and bounds of a study, room for its checkpoints
space     the study file as Optuna distributions, every candidate within the limit
width     exact counts, and the widest width that fits
limit     `search limit`
check     `search check`: what a study means, and all its problems
lr_range  `search lr-range`: the learning-rate range test
preview   a grid of augmented training pictures
"""
