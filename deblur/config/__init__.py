"""Recipes, flags, and the seeds of every random draw.

May import cluster.
"""
