"""Training tasks: pretext tasks and finetuning."""
