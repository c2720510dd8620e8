"""M3P: multitask, multilingual, multimodal pre-training."""
