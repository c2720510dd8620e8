"""The network: encoder, embedders, and the base of its heads; it knows nothing of ranks.

Arrows: the model imports batches, kernels and visual sources. It imports no objective and no task: tasks are given to it, each
brings its head (`HeadOwner` in heads.py), and tasks import the model.
"""
