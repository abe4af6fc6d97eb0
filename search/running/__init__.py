"""A running search, and the only writer of its trials. May import every room but export.

launch       from a study to a running search
stop         `search stop`: asks a search to end, and ends paused trials
elastic      `search gpus`: adds GPUs to a running search, and takes GPUs away
coordinator  the loop: assign, answer, resume, pause, stop
trials       the trials of the study: ask, resume, tell
results      the sizes and epochs of trials, and the decisions about them: report, prune
rungs        decides which trials go on at a rung, pauses the others, promotes paused ones
allowance    the number of trials that the budget and the time allow to begin or to go on
quota        the disk space that checkpoints may take
pace         when the coordinator does costly work again that nobody waits for
clock        the time of a launch, and the part of it that is reserved for the export
queued       what the search queues: known recipes, and the repeat that measures the noise
others       trials that other programs have queued or finished
assignment   the assignment of a trial to a worker
moment       snapshots of a search for its observers; the line about a trial that has ended
records      what coordinator and trials keep in memory: trials in progress, ends of trials, unstored events
"""
