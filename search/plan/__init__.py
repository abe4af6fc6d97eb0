"""Preparation of a study before any worker starts: pictures, exact bounds, counts, cost. This room opens no study;
`search check` reads the recipes of earlier ones.

prepare   pictures and bounds of a study, room for its checkpoints
space     the study file as Optuna distributions, every candidate within the limit
transfer  recipes of earlier studies in the space of a new one
width     exact counts, and the widest width that fits
limit     `search limit`
check     `search check`: what a study means, and all its problems
after     plan of the trainings after a search
schedule  the time that is reserved for them and for the export
outlook   the plan of a launch up to the export, in one line
meaning   the answer of `search check`, and its text
extras    packages and addresses that a study's settings need
data_warnings  warnings about the pictures
survey    all timm models of a pattern that fit the limit, for `model = ["timm:*"]`
lr_range  `search lr-range`: the learning-rate range test
preview   a grid of augmented training pictures
near_duplicates  a sheet of near-duplicates across splits
"""
