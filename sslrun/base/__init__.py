"""What everything else stands on: messages, files, locks, signals. It knows nothing of training."""
