"""Data preparation: `python -m ofa_fairseq.prepare COMMAND --help` (see `__main__.py` for the commands)."""
