"""The commands: `python -m engine.train`, `engine.runs`, `engine.generate`.

Exit codes: 0 done, 1 it failed on the way, 2 the command line or the settings are wrong (nothing was changed).
"""
