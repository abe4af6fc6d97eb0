"""Preparation of a study before any worker starts: images, exact bounds, counts, cost. This room opens no study.

prepare   images and bounds of a study, room for its checkpoints
space     the study file as Optuna distributions, every candidate within the limit
width     exact counts, and the widest width that fits
limit     `search limit`
check     `search check`: the meaning of a study, and all its problems
after     the trainings after a search, planned before it
schedule  the time that is kept back for them and for the export
outlook   the plan of a launch up to the export, in one line
meaning   the answer of `search check`, and its text
extras    packages and addresses that a study's settings need
data_warnings  warnings about the pictures
survey    all timm models of a pattern under the limit, for `model = ["timm:*"]`
lr_range  `search lr-range`: the learning-rate range test
preview   a grid of augmented training images
near_duplicates  a sheet of near-duplicates across splits
"""
