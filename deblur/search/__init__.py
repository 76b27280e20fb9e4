"""A search over recipes: its space, the Optuna study that chooses trials, their record, and the report.

May import deblur.training, deblur.plots, deblur.data, deblur.config and cluster.
"""
