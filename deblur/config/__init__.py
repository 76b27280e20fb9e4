"""Recipes, flags, and the seeds of all random draws.

May import cluster.
"""
