"""The service: it searches a study's space, shows the search, and exports the best model.

cli              the commands: parse, call one function, print, exit code; nothing heavy at import
options          options that commands share, and what the shell completes
running, export  a search while it runs; from the best trial to a proven folder
watch            a search as people see it
workers          processes that train
plan             a study made concrete before a worker exists
figures          what is drawn
study            a study as it is stored
devices          what --gpus means, and who has them
paths            every file name under the runs folder
process          the command as a process: signals, exit codes, its log, no password in the process list
errors           what a user can do wrong, and the one table of exit codes
console          where commands print: a reader that goes away, bars with the time that is left, --quiet
words            numbers in words
"""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # what is logged goes where the caller says
