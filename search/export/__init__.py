"""Makes an export of the best trial and proves it; classifies and compares with exports. May import all but running.

export     writes the export into a temporary folder, starts the proof, moves the folder into place
place      puts an export in its place: it is made beside the place, then exchanged with the old content
folders    what a folder is to the system and to this process: a mount point, the current folder
choice     the trials that an export is made of
pictures   the pictures of the study, which may have moved, but must be those of its last launch
retrain    the trainings for an export: the best trials once more, then the chosen one
deadline   the time at which the confirmation ends in a study with limited hours
trainings  runs the trainings for an export on the workers of a pool
record     the content of metrics.json as frozen values
recorded   the types of the parts of metrics.json
description  computes the parts that are known before training, and the identity of the export
metrics    computes the parts that are measured after training
out_of_fold  the predictions of fold models for the pictures that they were not trained on
selection  chooses the members of an ensemble if more were trained than are exported
reranked   [final.rerank]: what new random weights for some filters gained, compared with plain retraining
members    the members of an ensemble in words
gallery    the most confident mistakes, with heat maps of the areas that each decision depends on
scores     the scores besides the accuracy, with their intervals; without torch
card       metrics.json in words: the model card
how_to_load  how to load an export, in words and lines of Python
front_matter  the front matter of the card, which model hubs read
build      builds the exported model, members and views included, and writes the file of each format
formats    a module per format: how its file is written, opened and described
files      the files of an export as its readers see them; without torch
proof      the clean process that compares an export with its card
machine_load  how busy the machine was while the proof measured latencies
predict    classify pictures with an export; without torch
inputs     the pictures to classify: files, folders, patterns, tables, a sample
answers    the .csv or .json file that predict writes
compare    compares two exports on the same pictures; without torch
comparison  the comparison in words
"""
