"""An experiment from its configuration to its verdicts: train what is missing, draw, check, write down.

torch and matplotlib are imported where they are used, so that the first line of output does not wait for them.
"""
