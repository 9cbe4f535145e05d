"""Numbers that pipelines share with what is around them. Imports nothing."""

# Mean and standard deviation of ImageNet's training set, on the scale of the pixels.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

# The magnitudes of DALI's tables of augmentations are those of torchvision: 0 to 30.
MAGNITUDE_BINS = 31
