"""Numbers that the pipelines share with other packages. Imports nothing."""

# Mean and standard deviation of ImageNet's training set, for pixels in [0, 255].
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

# DALI's augmentation tables have the magnitudes of torchvision: 0 to 30.
MAGNITUDE_BINS = 31
# Of RandAugment. Each one adds all of DALI's operators to the graph: 0.3 seconds at the start, and 8 MB.
MOST_OPERATIONS = 16
