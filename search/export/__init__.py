"""From the best trial to a proven folder, and the use of that folder. It may know every room but running.

export     writes the export into a temporary folder, starts the proof, moves the folder into place
place      the place of an export: made beside it, then exchanged with the old content
choice     the trials that an export is made of
retrain    the trainings for an export: the best trials once more, then the chosen one
deadline   the end of the confirmation in a study with limited hours
trainings  trainings to their end on the workers of a pool
record     the content of metrics.json as frozen values
recorded   the parts of metrics.json that are known before training
description  computes the parts in recorded, and the identity of the export
metrics    computes the other parts, which are measured once
out_of_fold  the predictions of fold models for the pictures that they did not know
selection  the members that are best together, of more that were trained
members    the members of an ensemble in words
gallery    the most confident mistakes, with heat maps of the areas that each decision depends on
scores     the scores besides the accuracy, with their intervals; without torch
card       metrics.json in words: the model card
opening    how an export is loaded, in words and lines of Python
front_matter  what model hubs read of the card
nets       the exported model as one net, members and views included, and its files
formats    a module per format: how its file is written, opened and described
files      the files of an export as its readers see them; without torch
proof      the clean process that compares an export with its card; shares no code with the writers
load       how busy the machine was while the proof measured latencies
predict    classify pictures with an export; without torch
inputs     the pictures that it is given: files, folders, patterns, tables, a sample
answers    the .csv or .json that it writes
compare    two exports on the same pictures; without torch
comparison  their comparison in words
"""
