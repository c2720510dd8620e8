"""Engine, loop, checkpoints, schedules, monitor, signals."""
