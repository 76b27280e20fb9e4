"""Inference: a trained generator on photographs of any size, singly or in bulk.

May import deblur.data, deblur.models, deblur.config and cluster.
"""
