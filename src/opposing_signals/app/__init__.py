"""An experiment from its configuration to its verdicts: train what is missing, draw, check, write down.

What needs torch or matplotlib is imported where it is used, so that the first line does not wait for it.
"""
