"""A study as it is stored. It knows no worker and no display, and it alone talks to the database.

storage       storage URL -> storage: WAL, time-outs, UTC, hidden passwords
postgres      connections to a Postgres server that wait for no answer for ever
readonly      connections that can only read, for the dashboard and the page
study         opens Optuna studies: fingerprint, stored spec, looks at the test split
begun         what a study keeps of how it was begun, under a later version or file
identity      whose a study's folder is, and whether a study is still the same
lock          one process at a time owns a study
owned         a study that this process owns, and the check before each write
outage        steps that wait for a database that is away
sampling      sampler and pruner; a trial asked for, or resumed
trial         one trial as the product sees it: view, rank, outcome
progress      a search at one moment: workers, problems, time left
confirmation  which trial is best: results of fresh seeds, ties, winner
events        the lines of a journal as checked values
journal       the append-only log of a search
replay        a fresh sampler and pruner asked everything again, from the journal
"""
