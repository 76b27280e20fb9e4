"""One replica of the web app: HTTP endpoints, page, dynamic batching.

May import deblur.inference, deblur.data, deblur.models, deblur.config and cluster.
"""
