"""A search as people see it. It reads studies; only the study's page is written. It may know workers and below.

status     a study seen from outside: database, state file, JSON
live       80 columns of a terminal: live view, plain lines, last words
observers  who is told how a search goes; none of them can disturb it
webhook    JSON POSTs on a new best and at the end
page       the dashboard's page of a study: note, figures, an export's figures; drawn in another process
dashboard  serves optuna-dashboard, alone or beside a launch; the token
front      the WSGI application before it: hosts, token, reading methods only, waiting page
report     one HTML page, no network
findings   what a study's trials say, in words and numbers
"""
