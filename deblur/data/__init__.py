"""Pairs of blurred and sharp pictures: folders to shards (packing), shards to batches (loading).

May import deblur.config and cluster.
"""
