"""What the exporter costs, beside what a user would run instead; `make bench`."""
