"""The networks, their weights, and the conversion of pixels to network values.

May import deblur.config and cluster.
"""
