"""Plots and HTML reports of runs.

May import deblur.training, deblur.data, deblur.config and cluster.
"""
