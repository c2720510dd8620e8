"""M3P: multitask, multilingual, multimodal pre-training (arXiv 2006.02635)."""

__version__ = "0.2.0"
