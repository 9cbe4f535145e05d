"""Named runs, one file each: ``train_imagenet.py --config NAME --data DIR``."""
