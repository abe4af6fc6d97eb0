"""Preparation of a study before any worker starts: pictures, exact bounds, counts, cost. This room does not open the
study that it prepares; `search check` opens earlier studies, to read their recipes.

prepare   pictures and bounds of a study, room for its checkpoints
space     the study's space as Optuna distributions, with every candidate within the limit
transfer  recipes of earlier studies in the space of a new one
width     exact counts, and the widest width that fits
limit     `search limit`: the widest model within a limit
check     `search check`: what a study means, and all its problems
speed     the speed of candidates: the largest one of each model trains for a few steps
after     plan of the trainings after a search
schedule  the time that is reserved for the export
outlook   the plan of a launch with `--export`, in one line
meaning   the answer of `search check`, and its text
extras    checks optional packages and notification addresses that a study's settings need
data_warnings  warnings about the pictures
brightness  warnings about pictures of more than 8 bits that are read too dark, or on several scales
placeholders  a warning about many pictures that look the same
survey    all timm models of a pattern that fit the limit, for `model = ["timm:*"]`
lr_range  `search lr-range`: the learning-rate range test
preview   a grid of augmented training pictures
copies    the copies of pictures that `search check` lists, and what helps against them
near_duplicates  a sheet of near-duplicates across splits
"""
