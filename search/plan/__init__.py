"""A study made concrete before a worker exists: images, exact bounds, counts, cost. It opens no study.

prepare   images and bounds of a study, room for its checkpoints
space     the study file as Optuna distributions, every candidate within the limit
width     exact counts, and the widest width that fits
limit     `search limit`
check     `search check`: what a study means, and all its problems
meaning   the answer of `search check`, and its text
data_warnings  what to know of the pictures that stops no search
lr_range  `search lr-range`: the learning-rate range test
preview   a grid of augmented training images
near_duplicates  a sheet of near-duplicates across splits
"""
