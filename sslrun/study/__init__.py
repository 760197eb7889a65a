"""Studies: what is compared on which labels, the runs that it takes, and what they say."""
