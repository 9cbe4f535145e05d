"""What a training run needs around its loop: settings, model, loaders, checkpoints, signals, output.

Only `loaders` and `bad_files` know DALI, through `pipelines`.
"""
