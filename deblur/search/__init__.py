"""A search over recipes: its space, samplers, trials, their record, and the report of it all.

May import deblur.training, deblur.plots, deblur.data, deblur.config and cluster.
"""
