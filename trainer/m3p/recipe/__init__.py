"""The recipe: one YAML file and overrides that define a run."""
