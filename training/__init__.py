"""The trainer. Read `recipe` first: what a run does, in order. Every other file is one of its parts.

========================================== ==================================================================
file                                       contents
========================================== ==================================================================
`recipe`, `commands`                       a training; a training or an evaluation, with the exit status
`run`                                      epochs: steps, evaluation, logs, checkpoints
`learner`, `model`, `optimizers`           a step; model, average, schedule; optimisers and weight decay
`networks`                                 networks for small images, such as CIFAR's
`trial`                                    a trial pass of the model before anything is written
`loaders`, `bad_files`                     DALI pipelines, used nowhere else here; unreadable files
`evaluation`                               top-1, top-5 and loss
`state`, `progress`, `random_states`       what a checkpoint keeps: registered parts, counters, generators
`checkpoints`, `resume`                    checkpoint files; which of them a run may resume from
`weights`                                  loads weights from any source into a model, by tensor names
`weight_files`, `inert_pickle`             what such a file holds; pickles, read without running them
`weight_settings`, `classes`               the architecture, sizes and classes it names; class names
`export`                                   a checkpoint's weights as safetensors
`output`, `report`                         the output folder; the picture and the table
`signals`, `nonfinite`, `storage`          what ends a run early; storage that fails for a while
`config`, `options`                        settings and their checks; the command line
`mix_schedule`, `optimization`             settings records: changes of the mixing; the optimiser
`architectures`, `published`, `inputs`     what is checked before PyTorch is imported
`ranks`, `distributed`, `hardware`         ranks and process groups; device and precision
`methods`, `mixers`                        mixing that needs the model; what runs it
`puzzlemix`, `puzzle_costs`, `puzzle_cut`  PuzzleMix: a batch; what its masks cost; which are best
`demo`, `revision`, `machine`              the run without data; the commit; what a result is of
========================================== ==================================================================
"""
