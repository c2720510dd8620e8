"""The objectives, and the tasks that they are made of: what is masked or paired, and the loss."""
