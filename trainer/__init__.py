"""Trains one image classifier: pictures, models, the loop. Imports nothing of the search.

    for result in fit(TrainConfig(...), prepare_data(DataConfig(...), Path("cache")), open_device("cpu")):
        print(result)

This file imports no module of the package: `import trainer.config` runs it, and must not import torch.

fit           the training loop
graph         steps as replays of a CUDA graph
evaluate      evaluation on a split; the ensemble of models and views
results       results of an epoch, shapes, sizes
scores        scores in which each class counts the same
config        the recipe: every field of [train]
data_config   the pictures: every field of [data]
values        validated values, and their JSON
identity      which settings count in fingerprints and hashes
models        models by name: built and counted
families      the model families that are scaled, built or counted in a way of their own
wide_resnet   wide ResNets, which timm does not have
padding       ReXNets with channels padded to multiples of 8
casting       all weights cast for autocast at once
kernels       changes of a model for fewer and faster kernels
losses        the loss, with corrections of class imbalance
distill       a teacher, and its part of the loss
optim         optimizer, learning rate, gradient limits, SAM, average of the weights
hrank         filters whose feature maps have a low rank
augment       augmentation: its random parameters, and one executor each for CPU and GPU
transforms    the transforms of albumentations and torchvision that `augment` names
fancy_pca     a shift of colours along their principal axes
views         the views of test-time augmentation
order         the order of an epoch's pictures
loader        the batches of an epoch, made in this process or in loader processes
data          pictures with labels and splits
cache         the decoded pictures, memory-mapped
same          whether a cache has the pictures of its folder
pictures      reads one picture
eight_bits    the range of deep pictures without no-data, and a line that converts them
formats       files that are no pictures, by their first bytes
background    a picture without its background
problems      problems for which pictures cannot be trained on
scan          lists the pictures of a data folder
begun         the pictures of a study that an earlier version began
tree          the folders and files of a data folder
layout        which folders are splits, and which are classes
split_names   splits by the names of folders
masks         masks of data for segmentation, in folders or beside their pictures
unclear       folders that are neither splits nor classes: refusals, copies
labels        label tables
file_index    the files that the cells of a label table mean, and the rows of a table
classes       which values of a column may be classes
one_hot       label tables with a column for each class
text_lists    lists of pictures and their classes in text files
other_labels  labels that are not read, because they are in other files than tables or in the names of pictures
matlab        files of MATLAB that may have the labels
pixels        tables with the pixels of pictures in their cells
shards        numbered folders of WebDataset, and files with the class of each picture beside it
contest       label tables that a folder has and the study file does not name
unused_columns  columns that seem to have splits or groups, and are not used
joining       tables of the splits of one data set, and the line of Python that joins them
spellings     groups that are written in several ways
splits        drawn splits and folds
near          near-duplicates across splits
named_copies  copies that have related names
checkpoint    checkpoints of trainings
kept          small files that are read back, with a checksum
sums          SHA256SUMS of an export
device        all that depends on the training device
cores         CPU cores and threads
errors        errors that the user can correct
"""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # the caller chooses the log
