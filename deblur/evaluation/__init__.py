"""How good restored pictures are: PSNR, SSIM, LPIPS, what a detector sees in them, and tables of all that.

May import deblur.inference, deblur.data, deblur.models, deblur.config and cluster.
"""
