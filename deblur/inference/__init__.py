"""A trained generator on photographs of any size, one by one or many.

May import deblur.data, deblur.models, deblur.config and cluster.
"""
