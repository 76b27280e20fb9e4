"""Metrics of restored pictures: PSNR, SSIM, LPIPS, object detection, and tables of them.

May import deblur.inference, deblur.data, deblur.models, deblur.config and cluster.
"""
