"""What is DeepSpeed's: the engine and what reaches into its internals."""
