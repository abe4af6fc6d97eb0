"""Displays of a search: terminal, dashboard, report, messages. This room reads studies. In the
database, it writes only a study's page; with ``--allow-edits``, the dashboard writes what its user changes.

status     a study as another process sees it: database, state file, JSON
live       a search in a terminal of 80 columns: live view, plain lines, last message
heard      tells of signals and draws on while the main thread waits
shown      search status, in a terminal or as JSON
table      the content of the live view, and its tables as plain lines
observers  observers of a search; none of them can disturb it
threaded   an observer in a thread of its own
messenger  messages on a new best and at the end, from a thread
webhook    messages as JSON POSTs, also in the shapes of chats
services   messages through apprise
event_files  writes TensorBoard's files
page       the dashboard's page of a study: note, figures, an export's figures; drawn in another process
artifacts  figures among a study's artifacts in the dashboard
dashboard  serves optuna-dashboard, alone or during a launch; makes or reads its token
front      the WSGI application in front of optuna-dashboard: hosts, token, read-only methods, waiting page
server     waitress, with limits for each client
report     one HTML page that needs no network
export_section  the report's section about the last export
report_style  the report's style sheet
findings   conclusions from a study's trials, in words and numbers
"""
