"""Pairs of blurred and sharp pictures: from folders to shards (packing), from shards to batches (loading).

May import deblur.config and cluster.
"""
