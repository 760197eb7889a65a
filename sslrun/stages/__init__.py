"""The commands: one file each, read from top to bottom; a stage's keyword-only parameters are its config's keys."""
