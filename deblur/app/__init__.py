"""One replica of the web app: the service, its page, batches of requests.

May import deblur.inference, deblur.data, deblur.models, deblur.config and cluster.
"""
