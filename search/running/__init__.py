"""A running search, and the only writer of its trials. It may know every room but export.

launch       from a study to a running search
stop         search stop: asks it to end, and ends paused trials
coordinator  the loop: assign, answer, resume, pause, stop
trials       the trials of the study: ask, report, prune, tell
rungs        who goes on at a rung, who waits, who is promoted
allowance    what the budget allows to begin or to go on
others       trials that other programs have queued or finished
assignment   what a worker is told to train
records      what both keep beside the database: trials in progress, their ends, unstored messages
"""
