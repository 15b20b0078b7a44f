"""What the exporter costs, compared with what a user would run instead; `make bench`."""
