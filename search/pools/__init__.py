"""Where workers run. One implementation so far: subprocesses of this machine, one per device."""
