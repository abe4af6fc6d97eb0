"""A study as it is stored: in the database and in its journal. It imports no worker and no display.

storage       storage URL -> storage: WAL, time-outs, UTC, hidden passwords
file          the file of a SQLite database: who may read and write it, what is left without it
postgres      connections to a Postgres server, with a time limit for every answer
readonly      connections that can only read: for the dashboard, the page, and users who may not write
memory        the trials of a study in memory, written through: for the process that owns it
statements    the statements that read and write trials
prepared      a statement that is compiled once
study         creates and opens studies: fingerprint, stored spec, uses of the test split
begun         settings that a study keeps under a later version or study file
identity      which study a folder belongs to, and whether a study is still the same
lock          one process at a time owns a study
inventory     lists the studies of a database; deletes one
owned         a study that this process owns, and the check before each write
outage        retries database steps during an outage
sampling      sampler and pruner; asks for trials and resumes them
marks         which finished trials are the search's own
gone          a failed trial in the place of each one that was deleted from the database
mending       has deleted trials replaced, and old ones compared with the journal, before the owner reads them
trial         one trial as the program sees it: view, rank, outcome
ended         totals over the trials that have ended
standings     the candidates that have reached each rung, and those paused there
progress      a search at one moment: workers, problems, time left
budget        what a search may spend, what it has spent, whether another candidate may begin
hours         the first launch of a study, and whether the search's part of its hours is over
transfer      the best recipes of the same person's earlier studies
noise         the standard deviation of one training: the unit in which differences are given
gain          how much better the best trial is than the first known recipe
confirmation  the race of the best trials: its plan, stored results, winner
finalists     the candidates of a confirmation: means, ties
exported      the result of the last export, for every view of the study
result        the result of a study: tested, confirmed, gain over the first known recipe
events        the lines of a journal as checked values
void          trials that have ended in the journal, and are deleted or changed in the database
journal       the append-only log of a search
replay        repeats the decisions of a journal with a fresh sampler and pruner
"""
