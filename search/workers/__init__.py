"""Processes that train, and what is done when one fails. It knows no database and no display.

pool      the contract: what every pool of workers promises
messages  what coordinator and workers say to each other: frozen values, one JSON form
local     workers as subprocesses, JSON lines over pipes
worker    the child process: one device, `trainer.fit`, every epoch sent and answered
crew      the workers' life: ready, hanging, replaced, put aside
failures  what has gone wrong with a training, and the one policy for what becomes of it
"""
