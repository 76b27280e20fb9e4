"""What is learned: an image-deblurring GAN, its data, its losses and its training loop."""
