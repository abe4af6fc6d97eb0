#!/bin/sh
# Reads the password of the database from the file in PGPASSWORD_FILE, as the postgres image does with its own.
# libpq's PGPASSFILE is of no use here: it refuses files that others can read, and a mounted secret belongs to
# whoever wrote it on the host.
set -eu
if [ -n "${PGPASSWORD_FILE:-}" ]; then
    PGPASSWORD=$(cat "$PGPASSWORD_FILE")
    export PGPASSWORD
    unset PGPASSWORD_FILE
fi
exec "$@"
