-- The dashboard's role: it can read what the search writes, and nothing else. The postgres image runs this once, when
-- its volume is new, as the owner of the database.
\set ON_ERROR_STOP on

-- Read by psql itself: on a command line, everybody could read it. An empty password stops here.
\set password `cat "$DASHBOARD_PASSWORD_FILE"`
SELECT length(:'password') >= 16 AS is_password \gset
\if :is_password
\else
    DO $$ BEGIN RAISE EXCEPTION 'the file of the dashboard''s password must hold at least 16 characters'; END $$;
\endif

CREATE ROLE dashboard LOGIN PASSWORD :'password' CONNECTION LIMIT 20;
ALTER ROLE dashboard SET default_transaction_read_only = on;
ALTER ROLE dashboard SET statement_timeout = '60s';

GRANT USAGE ON SCHEMA public TO dashboard;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO dashboard;
-- The tables come later, with the first search.
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO dashboard;
