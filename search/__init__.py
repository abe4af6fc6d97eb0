"""The service: it searches a study's space, shows the search, and exports the best model.

cli              the commands: each parses, calls one function, prints and sets the exit code
pipeline         `search launch`; with `--export`, also the export after the search
housekeeping     the commands about studies as a whole: list, write a new file, delete
steering         the commands to a running search: stop, gpus
options          options that commands share, shell completion, printing of answers
running          a search while it runs
export           the export of the best trial; predict, compare
watch            displays of a search: terminal, dashboard, report, messages
workers          processes that train
plan             preparation of a study before any worker starts: pictures, exact bounds, counts, cost
figures          figures of studies and exports
study            a study as it is stored
policy           decisions of a search: rungs, promotions, the next settings to try
devices          the meaning of --gpus
gpu_locks        locks on GPUs, and their use by other programs
paths            every file name under the runs folder
process          the command as a process: signals, exit codes, its log, no password in the process list
errors           errors for the user, and the one table of exit codes
console          output of commands: broken pipes, progress bars with the time left, --quiet
words            numbers, counts and settings as text
"""

import logging
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else ONNX Runtime, once it is imported, reports its use to its makers
logging.getLogger(__name__).addHandler(logging.NullHandler())  # the caller decides where log lines go
