"""What is compared, the runs it takes, and what they show."""
