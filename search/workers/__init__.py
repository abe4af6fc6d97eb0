"""Processes that train, and the policy for failures. This room imports no database and no display.

pool      the contract of every pool of workers
messages  the messages between coordinator and workers: frozen values, one JSON form
local     workers as subprocesses, JSON lines over pipes
worker    the child process: one device, `trainer.fit`, every epoch sent and answered
crew      starts, watches and replaces workers; puts bad devices aside
failures  the kinds of failure of a training, and the one policy for all of them
"""
