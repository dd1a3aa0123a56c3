"""VGG-19 (Simonyan and Zisserman 2015, arXiv:1409.1556) as a trunk: its first ten convolutions."""

#: Channels of the convolutions up to conv4_2; None is a 2x2 pooling.
VGG = (64, 64, None, 128, 128, None, 256, 256, 256, 256, None, 512, 512)
