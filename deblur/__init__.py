"""Trains generators that remove blur, measures them, uses and serves them.

The modules here are the commands (python -m deblur.train); they import the packages, and never each other.
"""
