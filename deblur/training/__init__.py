"""One run: the job on its ranks, the loop, the update of both networks, losses, state, metrics.

May import deblur.evaluation, deblur.data, deblur.models, deblur.config and cluster.
"""
