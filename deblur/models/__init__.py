"""The networks, their weights, and pixels as the networks' values.

May import deblur.config and cluster.
"""
